"""Starts processes of the core by a fork, so that one that was killed is back at once and not after seconds of imports.

    python -W ignore -m tests.faults.warm_start     one request a line on stdin, one answer a line on stdout, both JSON

Each child runs the command `catchment` with the given arguments, as a process of its own that logs to its own file, and is
signalled by a process that has its number. It ends with this process.
"""

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path

import msgspec

from pipelines.cli import main as catchment
from tests.faults.forks import fork

_DIE_WITH_PARENT = 1


class Request(msgspec.Struct, frozen=True):
    """Start a command (its process's number is the answer), or wait for a process (its exit code, -1 while it runs)."""

    start: tuple[str, ...] = ()
    log: str = ""
    wait: int = 0
    is_patient: bool = True


def start(request: Request) -> int:
    """The new process's number."""
    pid = fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for found, wanted in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(found, wanted)
    os.environ["TMPDIR"] = tempfile.tempdir = str(Path(request.log).parent)  # Beam leaves a folder behind when it is killed
    code = 1
    try:
        sys.argv = ["catchment", *request.start]
        catchment()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 # a child of a fork must end here, whatever happens
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(request: Request) -> int:
    """How a process ended, as a shell counts: 128 and the signal."""
    pid, status = os.waitpid(request.wait, 0 if request.is_patient else os.WNOHANG)
    if not pid:
        return -1
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        request = msgspec.json.decode(line, type=Request)
        answer = start(request) if request.start else wait(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
