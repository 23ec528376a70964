"""What people say about samples: append-only tables of labels, read from and written for labelling tools."""
