"""The counters of documents: `<lake>/models/director/<kind>.counter`. A device never follows a lower one than it has seen.

A counter is at least the time in milliseconds: a lake that was restored from an older copy, or whose counter was lost,
still goes on above what devices have seen.
"""

import fcntl
import os
from pathlib import Path

from catchment.runtime.atomic_files import write_atomic
from pipelines.config import CoreConfig
from pipelines.errors import CorruptLakeError
from schemas.signed_document import MAX_NUMBER, DocumentKind

_MAX_BYTES = 100


def counters_folder(config: CoreConfig) -> Path:
    """Where the counters are."""
    return config.lake_root / "models" / "director"


def director_folder(config: CoreConfig) -> Path:
    """The director's keys: as configured, else `director` beside the models' signing keys. Never inside the lake."""
    if config.director.keys:
        return Path(config.director.keys)
    return (Path(config.models) if config.models else config.lake_root.parent / "model-keys") / "director"


def next_counter(folder: Path, kind: DocumentKind, now_ms: int) -> int:
    """Take the next counter of a kind; it was given to nobody before, and no lower one will be. Safe between processes.

    Raises:
        CorruptLakeError: the last one cannot be read.
        OSError: the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind.value}.counter"
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        counter = max(_last(path) + 1, now_ms)
        write_atomic(path, f"{counter}\n".encode(), mode=0o644)
        return counter
    finally:
        os.close(descriptor)


def _last(path: Path) -> int:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return 0
    if not text.isdecimal() or not int(text) < MAX_NUMBER - 1:
        raise CorruptLakeError(f"{path}: not a counter; delete it, and the next one is the time in milliseconds")
    return int(text)
