"""Sources of samples: a folder for each kind, and shared readers of rows, files, logs and the network."""
