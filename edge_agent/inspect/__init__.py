"""Inspectors on the device: columns computed from a payload or a text, for rules to read before anything is stored."""
