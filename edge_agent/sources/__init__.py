"""Where samples come from: a folder for each kind, and what kinds share to read rows, files, logs and the network."""
