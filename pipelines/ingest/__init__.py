"""Ingest: sealed segments to committed rows, one bounded run after another."""
