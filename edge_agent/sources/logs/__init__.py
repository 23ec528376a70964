"""Shared by kinds: logs that grow and rotate."""
