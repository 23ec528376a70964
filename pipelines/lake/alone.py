"""A file that one process at a time holds, until it ends however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held_alone(path: Path, *, is_made: bool = True) -> Iterator[bool]:
    """Try to hold a file; whether it is held.

    Args:
        path: the file; it stays.
        is_made: make it if need be; if not, nobody holds a file that is not there.

    Raises:
        OSError: the disk refused.
    """
    if not is_made and not path.exists():
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
