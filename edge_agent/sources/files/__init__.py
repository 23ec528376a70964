"""Shared by kinds: files that others write, packed or not."""
