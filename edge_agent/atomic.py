"""Write a file so that a reader, and a power cut, see the old bytes or the new ones and nothing else."""

import os
from pathlib import Path


def write_atomic(path: Path, body: bytes, *, mode: int = 0o600) -> None:
    """Write beside, fsync, rename over, fsync the folder.

    Raises:
        OSError: the disk refused; the old file is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder that survives a power cut with all that is later synced in it; the missing ones above it likewise.

    Its own name is synced even when it is there already: whoever made it may have been killed before that.

    Raises:
        OSError: the disk refused.
    """
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in reversed(missing or [folder]):
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Make names created or renamed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
