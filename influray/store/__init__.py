"""What a run leaves on disk: artifacts that exist only when their manifest does."""
