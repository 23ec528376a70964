"""Every write, sync and name of a workload fails in turn, or is the last thing its process does.

A fork per fault: the child lives through the workload with the shim armed and writes down what it was promised; the
parent opens what is left, without any fault, and holds the spool to that. Run under the shim:

    python tests/faults/call_faults.py MODE [STRIDE] [MANY]
"""

import ctypes
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import structlog

from edge_agent.errors import SpoolError, SpoolFullError
from tests.faults import powercut, workload
from tests.faults.promises import Promises, check
from tests.faults.shim import preload

MODES = {"exit": 1, "no-space": 2, "io-error": 3, "short": 4, "sync-error": 5}
STEPS = 24
SEED = 11
_EXITED = 77


def live_armed(folder: Path, mode: str, at: int, many: int) -> None:
    """The child: what it writes is watched and fails, what it tells goes next to and does not."""
    shim = ctypes.CDLL(str(preload()))
    descriptor = os.open(_record_file(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    shim.shim_arm(MODES[mode], ctypes.c_long(at), ctypes.c_long(many))

    def record(what: dict[str, object]) -> None:
        os.write(descriptor, json.dumps(what).encode() + b"\n")

    try:
        life = workload.Life(folder, SEED, record)
        for _ in range(STEPS):
            try:
                life.step()
            except SpoolFullError:
                continue  # as a source does: it goes on, and comes back with the payload
        life.close()
    except SpoolError:
        # As the agent does: end, and start again.
        os._exit(3)
    os.write(descriptor, b'{"calls": %d}\n' % shim.shim_calls())
    os._exit(0)


def _record_file(folder: Path) -> Path:
    return folder.parent.with_name(f"{folder.name}.record")


def one(folder: Path, mode: str, at: int, many: int) -> tuple[int, int]:
    """Live and fail once; the child's exit status, and how many calls it made if it came to its end."""
    child = os.fork()
    if child == 0:
        live_armed(folder, mode, at, many)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    promises, calls = Promises(), 0
    record = _record_file(folder)
    for line in record.read_bytes().splitlines(keepends=True) if record.exists() else ():
        if line.endswith(b"\n"):
            what = json.loads(line)
            calls = what.get("calls", calls)
            promises.hear(what)
    assert status in (0, 3, _EXITED), f"{mode} at call {at}: ended with {status}"
    try:
        check(folder, promises)
    except Exception as error:
        raise AssertionError(f"{mode} at call {at}: {error!r}") from error
    shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)
    return status, calls


def every_call(mode: str, stride: int, many: int) -> str:
    """Fail at every call index in turn, until the workload comes to its end before it."""
    workload.make_small()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    root = Path(os.environ["SHIM_ROOT"])
    at, ended = int(os.environ.get("FIRST", "1")), {0: 0, 3: 0, _EXITED: 0}
    while True:
        (root / "x").mkdir()
        status, calls = one(root / "x", mode, at, many)
        if calls and calls < at:
            break
        ended[status] += 1
        at += stride
    points = sum(ended.values())
    how = f"{ended[0]} carried on, {ended[3]} started again, {ended[_EXITED]} ended at once"
    return f"{mode}: {points} points, {how}; 0 lost, 0 damaged"


def in_a_process(mode: str, stride: int = 1, many: int = 1, first: int = 1) -> str:
    """`every_call` under the shim; what it says at the end.

    Raises:
        AssertionError: a promise was broken.
    """
    command = [sys.executable, __file__, mode, str(stride), str(many)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FIRST": str(first)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def main() -> None:
    if "SHIM_ROOT" not in os.environ:
        with tempfile.TemporaryDirectory(prefix="calls-", dir=powercut.folder_in_memory()) as name:
            disk = Path(name) / "disk"  # what is told lies next to it, where nothing fails
            disk.mkdir()
            environment = {**os.environ, "LD_PRELOAD": str(preload()), "SHIM_ROOT": str(disk)}
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)
            code = os.spawnve(os.P_WAIT, sys.executable, [sys.executable, __file__, *sys.argv[1:]], environment)
        sys.exit(code)
    stride = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    many = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    print(every_call(sys.argv[1], stride, many))  # noqa: T201 # the figure


if __name__ == "__main__":
    main()
