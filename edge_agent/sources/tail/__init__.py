"""Kind `tail`: lines of a log that grows and rotates."""
