"""What an inspector cannot do with one sample: its columns are null, and it is counted."""


class UninspectableError(Exception):
    """This value cannot be inspected here; the next may be."""
