"""How the commands of the core end: what they raise, as one line on standard error and an exit code."""

from catchment.runtime.exits import REFUSED, RETRY, STOP, USAGE
from catchment.runtime.output import say
from pipelines.errors import ConfigError, PipelineError, RefusedError, RetryLaterError
from schemas.errors import SchemaError

# The first that fits decides.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (RetryLaterError, RETRY),
    (ConfigError, USAGE),
    (RefusedError, REFUSED),
    (SchemaError, REFUSED),
    (PipelineError, STOP),
    (OSError, RETRY),
)
REPORTED = tuple(kind for kind, _ in _CODES)


def exit_code(error: Exception) -> int:
    """The exit code for an error, by the table that `catchment --help` shows."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), STOP)


def report(error: Exception) -> int:
    """Print an error on standard error; its exit code."""
    hint = "; is the disk there, with room, and may this user read and write it?" if isinstance(error, OSError) else ""
    say(f"catchment: {error}{hint}", err=True)
    return exit_code(error)
