"""Holds one program so that nothing of it outlives the demo: `python -m pipelines.demo.subreaper PARENT_PID GRACE_S PROGRAM ...`.

The subreaper is the program's parent. To the kernel it is the "child subreaper" of everything below it: a grandchild whose
parent dies becomes its own child, so none can slip away. It ends them all when the program ends, when it gets SIGTERM, and
when the demo itself is gone, even by SIGKILL. Should it be killed, the kernel kills the program (PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.2
_HEARD = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """Run the program to its end, or to ours. Returns its exit status (128 + n for signal n)."""
    parent, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    child = os.fork()  # this process has one thread and nothing open: here a fork is safe
    if child == 0:
        _become(command)
    try:
        return _watch(child, parent, grace_s)
    finally:
        _end_all_below()


def _become(command: list[str]) -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the demo's own argument list
    except OSError as error:
        os.write(2, f"{command[0]}: cannot be started: {error.strerror}\n".encode())
        os._exit(127)


def _watch(child: int, parent: int, grace_s: float) -> int:
    deadline = None
    while True:
        status = _reap(child)
        if status is not None:
            return status
        if os.getppid() != parent or (deadline is not None and time.monotonic() > deadline):
            return 128 + signal.SIGKILL
        heard = signal.sigtimedwait(_HEARD, POLL_S)
        if heard is not None and heard.si_signo != signal.SIGCHLD:
            os.kill(child, signal.SIGTERM)
            deadline = time.monotonic() + grace_s


def _reap(child: int) -> int | None:
    """Collect what has ended below; the exit status of `child` if it is among them."""
    found = None
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return found
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                found = code if code >= 0 else 128 - code
    except ChildProcessError:
        return found


def _end_all_below() -> None:
    while below := children_of(os.getpid()):
        for pid in below:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, 0)


def children_of(pid: int) -> list[int]:
    """The direct children of a process, from /proc."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(text) for text in task.read_text(encoding="ascii").split()]
    return found


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
