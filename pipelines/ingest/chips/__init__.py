"""Cutting as runs of their own: slides that runs have committed become rows of `<stream>_chips`, and hold no run up."""
