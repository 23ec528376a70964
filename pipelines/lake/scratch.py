"""A folder of temporary files for each process of the core, below the lake's folder: none is left in /tmp, and none for long.

`.tmp/<name>-<pid>-<random>/` is made when a process starts and removed when it ends. It is held by its maker through a lock file
inside, so that whoever comes after a kill can tell a folder in use from one that was left.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from pipelines.lake.alone import held_alone

FOLDER = ".tmp"
_LOCK = ".lock"
_VARIABLE = "TMPDIR"

log = structlog.get_logger(__name__)


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
    with _own(root / FOLDER, f"{name}-{os.getpid()}-") as folder:
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
    for path in sorted((root / FOLDER).glob("*")):
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
