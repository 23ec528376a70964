"""Kind `zeek`: a log that Zeek writes and rotates."""
