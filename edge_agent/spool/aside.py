"""Moving a damaged database aside so that a stop at any moment, by a power cut or a full disk, is made up for at the next start.

A marker file names where the damaged one goes, from before the move until all that can be read of it is carried over. Without
it a start that failed half-way would leave an empty spool behind, and sources would begin again.
"""

from contextlib import suppress
from pathlib import Path

from catchment.runtime.atomic_files import sync_folder, write_atomic
from catchment.runtime.clock import Clock

MARKER_NAME = "spool.mending"
# The database last: as long as it lies in its old place, the move is not over.
_SUFFIXES = ("-shm", "-wal", "")


def begin(path: Path, clock: Clock) -> None:
    """Decide where the damaged database goes.

    Raises:
        OSError: the disk refused; nothing was touched.
    """
    write_atomic(path.with_name(MARKER_NAME), f"{path.name}.corrupt-{clock.now_ms()}".encode())


def is_begun(path: Path) -> bool:
    """Whether a mending was begun, now or by an earlier process, and is not over."""
    return path.with_name(MARKER_NAME).exists()


def move(path: Path) -> Path:
    """Move the damaged database to where `begin` decided, or, where that was done before, delete its unfinished successor.

    Returns:
        Where the damaged one is.

    Raises:
        OSError: the disk refused; call it again at the next start.
    """
    aside = path.with_name(path.with_name(MARKER_NAME).read_text(encoding="utf-8"))
    is_moved = aside.exists()
    for suffix in _SUFFIXES:
        part = path.with_name(path.name + suffix)
        if is_moved:
            part.unlink(missing_ok=True)
        elif part.exists():
            part.rename(aside.with_name(aside.name + suffix))
            # Durable one by one: a log must never be left in the old place when its database is gone from there.
            sync_folder(path.parent)
    return aside


def forget_successor(path: Path) -> None:
    """Delete what was made in the damaged one's place and is not whole. What the disk refuses to delete is deleted next time."""
    for suffix in _SUFFIXES:
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def end(path: Path) -> None:
    """All that can be read was carried over, durably.

    Raises:
        OSError: the disk refused; it is carried over once more at the next start.
    """
    path.with_name(MARKER_NAME).unlink(missing_ok=True)
    sync_folder(path.parent)
