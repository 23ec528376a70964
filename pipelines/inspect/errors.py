"""What an inspector cannot do with one sample. It is data: the sample's columns stay null and `inspect_errors` says why."""


class UninspectableError(Exception):
    """This payload cannot be inspected; the next may be."""


class InterruptedInspectionError(UninspectableError):
    """It was killed, or not asked at all: another time the same payload may be inspected, so this is not remembered."""
