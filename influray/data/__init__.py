"""Records in, tokens and loss masks out: what a pool row and a target row are."""
