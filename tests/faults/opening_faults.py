"""A disk that refuses from any call of a start on: the next start holds all that was promised, be the database sound or not.

python tests/faults/opening_faults.py MODE sound|damaged
"""

import ctypes
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import structlog

from edge_agent.errors import SpoolError
from edge_agent.spool import database
from edge_agent.spool.opening import Opened
from tests.faults import powercut, workload
from tests.faults.call_faults import MODES
from tests.faults.promises import Promises, check, hold
from tests.faults.shim import preload

STEPS = 24
SEED = 11
_FOR_GOOD = 1_000_000


def start_armed(folder: Path, mode: str, at: int) -> bool:
    """Start in a process of its own, whose disk refuses from the `at`th call on. Whether it came up all the same."""
    child = os.fork()
    if child == 0:
        ctypes.CDLL(str(preload())).shim_arm(MODES[mode], ctypes.c_long(at), ctypes.c_long(_FOR_GOOD))
        try:
            workload.open_small(folder / "state" / "spool")
        except SpoolError:
            os._exit(3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 3), f"{mode} at call {at}: ended with {status}"
    return status == 0


def every_start(root: Path, mode: str, stride: int, *, is_damaged: bool) -> str:
    """Refuse from every `stride`th call of a start on, until it comes up before that."""
    workload.make_small()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    promises = Promises()
    life = workload.Life(root / "life", SEED, promises.hear)
    for _ in range(STEPS):
        life.step()
    life.close()
    if is_damaged:
        _damage(root / "life" / "state" / "spool" / database.FILE_NAME)
    at, starts, is_up = 1, 0, False
    while not is_up:
        shutil.copytree(root / "life", root / "x")
        is_up = start_armed(root / "x", mode, at)
        _hold(root / "x", promises, f"{mode} from call {at} on", is_damaged=is_damaged)
        shutil.rmtree(root / "x")
        at, starts = at + stride, starts + 1
    return f"{mode}: {starts} starts, nothing lost"


def _damage(path: Path) -> None:
    """An index page's kind is rotten: every row can be read, but the database is not sound."""
    with closing(sqlite3.connect(path)) as db:
        page_bytes = db.execute("PRAGMA page_size").fetchone()[0]
        page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'envelope_by_span'").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff")
    (path.parent / "spool.suspect").touch()


def _hold(folder: Path, promises: Promises, where: str, *, is_damaged: bool) -> None:
    try:
        if not is_damaged:
            check(folder, promises)
            return
        spool = workload.open_small(folder / "state" / "spool")
        aside = [
            path.name for path in (folder / "state" / "spool").glob("*.corrupt-*") if path.name.rsplit("-", 1)[1].isdecimal()
        ]
        assert len(aside) == 1, aside
        spool.opened = Opened(spool.opened.db)  # moved aside at this start or the one before: as it should be
        try:
            hold(spool, promises)
        finally:
            spool.close()
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}") from error


def in_a_process(mode: str, database_is: str, stride: int = 1) -> str:
    """`every_start` under the shim; what it says at the end.

    Raises:
        AssertionError: a promise was broken.
    """
    with tempfile.TemporaryDirectory(prefix="starts-", dir=powercut.folder_in_memory()) as name:
        environment = {**os.environ, "LD_PRELOAD": str(preload()), "SHIM_ROOT": name}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, __file__, mode, database_is, str(stride)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def main() -> None:
    mode, database_is, stride = sys.argv[1:]
    print(every_start(Path(os.environ["SHIM_ROOT"]), mode, int(stride), is_damaged=database_is == "damaged"))  # noqa: T201 # the figure


if __name__ == "__main__":
    main()
