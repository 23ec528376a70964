"""Signed documents from the core: whether this device may act on one, and the counters that keep older ones out."""
