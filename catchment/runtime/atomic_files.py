"""Write files so that a reader, and a power cut, see the old bytes or the new ones and nothing else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write that takes its name, durable, when the block ends; an exception leaves the old file as it is.

    Written under a name next to `path` (the file object's `name`), fsync, rename over `path`, fsync of the folder.

    Raises:
        OSError: the disk refused; the old file is untouched.
    """
    temporary = beside_path(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(temporary, "wb", opener=lambda _path, _flags: descriptor) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, body: bytes, *, mode: int = 0o600) -> None:
    """Write next to, fsync, rename over, fsync the folder.

    Raises:
        OSError: the disk refused; the old file is untouched.
    """
    with atomic_file(path, mode=mode) as file:
        file.write(body)


def write_unsynced(path: Path, body: bytes) -> None:
    """Replace a file that readers always see whole but that a power cut may lose: it is no data, and flash is spared.

    Raises:
        OSError: the disk refused; the old file is untouched.
    """
    temporary = beside_path(path)
    try:
        temporary.write_bytes(body)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def beside_path(path: Path) -> Path:
    """The name next to a file under which it is written before it takes its own; hidden, and with the id of the process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def make_folder(folder: Path) -> None:
    """Make a folder that survives a power cut with all that is later synced in it; the missing ones above it likewise.

    Its own name is synced even when it is there already: its maker may have been killed before that.

    Raises:
        OSError: the disk refused.
    """
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in reversed(missing or [folder]):
        sync_folder(made.parent)


def sync_file(path: Path) -> None:
    """Make the bytes of a file that another program or library wrote survive a power cut."""
    _sync(path, os.O_RDONLY | os.O_CLOEXEC)


def sync_folder(folder: Path) -> None:
    """Make names created or renamed in a folder survive a power cut."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
