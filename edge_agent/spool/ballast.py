"""A file that holds some disk back. A database on a full disk cannot even delete: letting go of this makes room for that."""

import os
from pathlib import Path

import structlog

FILE_NAME = "ballast"
BALLAST_BYTES = 1024 * 1024
# Taken again only when the disk has so many times its size to spare.
_SPARE = 4

_log = structlog.get_logger(__name__)


def let_go_if_full(folder: Path) -> bool:
    """At start, before a writer holds it: make room where the disk is full. Whether that freed anything."""
    try:
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize >= BALLAST_BYTES:
            return False
        (folder / FILE_NAME).unlink()
    except OSError:
        # There is none, or the disk refuses more than room: whoever asked tells of that.
        return False
    _log.warning("disk full: what was held back is let go", bytes=BALLAST_BYTES)
    return True


class Ballast:
    """The file. Used by the writer thread alone."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._is_held = self._path.exists() and self._path.stat().st_size >= BALLAST_BYTES
        self.take()

    def take(self) -> None:
        """Hold disk back, where it is not held yet and there is some to spare."""
        if self._is_held:
            return
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < _SPARE * BALLAST_BYTES:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            _log.warning("no disk can be held back", error=str(error))
            return
        self._is_held = True

    def drop(self) -> bool:
        """Let go of it. Returns whether that freed anything."""
        was_held, self._is_held = self._is_held, False
        if was_held:
            self._path.unlink(missing_ok=True)
            _log.warning("disk full: what was held back is let go", bytes=BALLAST_BYTES)
        return was_held
