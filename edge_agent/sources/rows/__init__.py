"""Shared by kinds: text and JSON rows become columns of a contract."""
