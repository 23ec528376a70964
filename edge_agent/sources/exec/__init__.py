"""Kind `exec`: lines that a program prints."""
