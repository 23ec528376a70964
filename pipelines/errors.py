"""Errors of the core, in families named for what the reader does next. Third-party exceptions never leave their adapter.

A bad sample is none of these: it is data, and goes to quarantine with stage and reason.
"""


class UninspectableError(Exception):
    """This payload cannot be inspected; the next may be."""


class InterruptedInspectionError(UninspectableError):
    """The inspection was killed or never started: the same payload may be inspected later, so this is not remembered."""


class PipelineError(Exception):
    """Something of the core's. The message says what to do next."""


class ConfigError(PipelineError):
    """Stop and correct the configuration; the message names the file, the line where known, and the key."""


class RetryLaterError(PipelineError):
    """Try again: something outside is away for now (broker, storage)."""


class ConflictError(RetryLaterError):
    """Somebody else did it first: look at the new state, then decide again."""


class CorruptLakeError(PipelineError):
    """Stop: a file of the lake is missing or not what was written. Never guess; restore it or discard it knowingly."""


class BadReferenceError(CorruptLakeError):
    """Stop: a row, a manifest or a log names a file outside the lake, or a link. Find out who wrote that before going on."""


class FaultError(PipelineError):
    """Stop and report it: our own code failed on data that it should have judged. Trying again gives the same."""


class RefusedError(PipelineError):
    """The request cannot be carried out as it stands; the message says what would be accepted."""


class ExpressionError(RefusedError):
    """A rule's expression is not in the language, or not of the right types; the message shows where."""


class NotFoundError(RefusedError):
    """There is no such thing (stream, set, model, sample)."""


class UnreadableImageError(RefusedError):
    """This image cannot be cut: not a TIFF, not of a supported kind, above a limit, or damaged. The message says which.

    An image is data, so this ends as a rejection with the message as its reason.
    """
