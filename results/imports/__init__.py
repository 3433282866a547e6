"""What others publish and serve, read as rescale factors: one form a file."""
