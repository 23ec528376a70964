"""Map errors of the core's commands to one line on standard error and an exit code.

Stands alone because the exit codes of all commands are in one place.
"""

import atexit
import os
import sys
import threading
from typing import NoReturn

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


def leave(code: int) -> NoReturn:
    """Do what the interpreter does at its end, but for the libraries: join threads, run exit functions, write output out.

    Arrow's threads may still be letting go of what they have read when the interpreter takes its libraries apart, and then
    abort a process that had done everything it was asked for (apache/arrow#39862): exit code 134 instead of 0, once in thousands.
    """
    # Private both, and the only way to do this and not the rest. The first also tells executors' idle threads to end.
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The reader is gone; a shell calls that 141, and so does Python's own end.
            code = code or 1
    os._exit(code)


def code_of(ended: SystemExit) -> int:
    """The exit code that the interpreter would give; it prints what is no number."""
    if ended.code is None:
        return 0
    if isinstance(ended.code, int):
        return ended.code
    say(ended.code, err=True)
    return 1
