"""Capture: sources turn the world into batches of samples. Knows the spool, never the uplink."""
