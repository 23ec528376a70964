"""Training sets: built once, immutable, read at full speed."""
