"""Uplink: from the spool to the broker, and what comes down. Knows the spool, never capture."""
