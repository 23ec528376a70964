"""Data quality: profiles of committed rows, drift between runs, and how often tagging rules fail."""
