"""Folders that work is done in: temporary files of a process below the lake's folder, and maintenance's own working copy.

Files of a remote lake that are rewritten are fetched to a working copy, and the new ones brought to the bucket before their
commit. A folder of its own, so that a run loop that shares the working copy never finds a file gone that it was about to
read.

`.tmp/<name>-<pid>-<random>/` is made when a process starts and removed when it ends. It is held by its maker through a lock
file inside, so that the next process can tell a folder in use from one that a killed process left.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from pipelines.lake.claims import MAINTENANCE_NAME, held_alone
from pipelines.lake.lake import Lake

log = structlog.get_logger(__name__)

WORK_FOLDER = ".work"
SCRATCH_FOLDER = ".tmp"
_LOCK = ".lock"
_VARIABLE = "TMPDIR"


@contextmanager
def workplace(lake: Lake, name: str) -> Iterator[Lake]:
    """The same lake, to work in another folder if it is in a bucket; the caller sees to it that nobody else asks by this name.

    Raises:
        OSError: the disk refused.
    """
    folder = lake.root / WORK_FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)  # what a crash left
    try:
        yield Lake(lake.store.working_in(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def only_maintainer(lake: Lake, what: str) -> Iterator[None]:
    """Be the only one, on any machine, that rewrites or deletes files of a remote lake; of a folder, a file lock says so.

    Raises:
        RefusedError: another one is at work.
        RetryLaterError: the storage is away.
    """
    with lake.store.claimed(MAINTENANCE_NAME, "maintenance or retag", owner=what):
        yield


@contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """Have all temporary files of this process, and of those that it starts, in a folder of its own that goes with it.

    What processes before this one left is removed first.

    Raises:
        OSError: the disk refused.
    """
    for path in abandoned(root):
        log.info("scratch_removed", path=str(path))
        shutil.rmtree(path, ignore_errors=True)
    before = os.environ.get(_VARIABLE), tempfile.tempdir
    with _own(root / SCRATCH_FOLDER, f"{name}-{os.getpid()}-") as folder:
        os.environ[_VARIABLE] = tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before[1]
            os.environ.pop(_VARIABLE)
            if before[0] is not None:
                os.environ[_VARIABLE] = before[0]


def abandoned(root: Path) -> Iterator[Path]:
    """Folders whose process is gone.

    Raises:
        OSError: the disk refused.
    """
    for path in sorted((root / SCRATCH_FOLDER).glob("*")):
        if not path.is_dir():
            continue
        try:
            with held_alone(path / _LOCK) as is_ours:
                if is_ours:
                    yield path
        except FileNotFoundError:
            continue  # it went meanwhile


@contextmanager
def _own(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, held. Between its making and its holding another process may take it for abandoned: then one more is made."""
    while True:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with held_alone(folder / _LOCK) as is_ours:
            if not is_ours or not (folder / _LOCK).exists():
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                _forget_empty(parent)
            return


def _forget_empty(parent: Path) -> None:
    try:
        parent.rmdir()
    except OSError:
        return  # others are at work
