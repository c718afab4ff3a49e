"""The seam from a batch of examples to one feature row each."""
