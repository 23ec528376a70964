"""Inspectors: columns computed from a payload, or from text, for rules to use."""
