"""Keep within the room: below the quota, and above the free space that must stay on the disk."""

import os
import sqlite3
from pathlib import Path

import structlog

from edge_agent.errors import SpoolFullError
from edge_agent.spool import database
from edge_agent.spool.payload_files import MIN_BODY_BYTES, BodyFiles, SpoolObjects
from edge_agent.spool.records import Append

# A file that reserves disk space. A database on a full disk cannot even delete: deleting this file makes room for that.
FILE_NAME = "ballast"
RESERVE_FILE_BYTES = 1024 * 1024
# Taken again only when the disk has so many times its size to spare.
_SPARE = 4

log = structlog.get_logger(__name__)


def free_if_full(folder: Path) -> bool:
    """At start, before a writer holds it: make room where the disk is full. Whether that freed anything."""
    try:
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize >= RESERVE_FILE_BYTES:
            return False
        (folder / FILE_NAME).unlink()
    except OSError:
        # There is none, or the disk refuses more than room: the caller reports that.
        return False
    log.warning("reserve_file_released", bytes=RESERVE_FILE_BYTES)
    return True


class ReserveFile:
    """The file. Used by the writer thread alone."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._is_held = self._path.exists() and self._path.stat().st_size >= RESERVE_FILE_BYTES
        self.take()

    def take(self) -> None:
        """Reserve disk space, if it is not reserved yet and there is enough."""
        if self._is_held:
            return
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < _SPARE * RESERVE_FILE_BYTES:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_FILE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("reserve_file_not_made", error=str(error))
            return
        self._is_held = True

    def drop(self) -> bool:
        """Delete the file. Returns whether that freed anything."""
        was_held, self._is_held = self._is_held, False
        if was_held:
            self._path.unlink(missing_ok=True)
            log.warning("reserve_file_released", bytes=RESERVE_FILE_BYTES)
        return was_held


# The soft limit keeps a little below the hard page cap, which stays the last resort.
SLACK_BYTES = 512 * 1024


def soft_limit_bytes(max_bytes: int) -> int:
    """From here on room is made; a little below the quota, for the log and what deletes need."""
    return max_bytes - database.RESERVE_BYTES - SLACK_BYTES


class SpaceBudget:
    """Counts what the spool takes. The database's part is counted by the writer thread; any thread may ask.

    Args:
        folder: on the disk whose free space counts.
        max_bytes: the quota for database, bodies and large payloads together.
        min_free_bytes: what the spool leaves free on the disk for others.
        objects: the large payloads.
        bodies: the bodies in files.
    """

    def __init__(self, folder: Path, max_bytes: int, min_free_bytes: int, objects: SpoolObjects, bodies: BodyFiles) -> None:
        self.soft_limit_bytes = soft_limit_bytes(max_bytes)
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._objects = objects
        self._bodies = bodies
        self._database_bytes = 0
        self._reusable_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes that count against the quota."""
        return self._database_bytes + self._objects.total_bytes + self._bodies.total_bytes

    def count_database(self, db: sqlite3.Connection) -> None:
        """Look how many pages are in use now, and how many will be filled again before the file grows."""
        self._database_bytes, self._reusable_bytes = database.used_and_free_bytes(db)

    def for_rows_bytes(self) -> int:
        """Bytes that further rows may take; negative when the quota is exceeded already."""
        return self.for_files_bytes() + self._reusable_bytes

    def takes_file(self, size_bytes: int) -> bool:
        """Whether a file of so many bytes may be written now.

        Raises:
            SpoolFullError: it could never be.
        """
        if size_bytes > self.soft_limit_bytes:
            raise SpoolFullError(f"a payload of {size_bytes} bytes is larger than the spool; raise max_bytes")
        return size_bytes <= self.for_files_bytes()

    def lacks_for_bodies(self, append: Append) -> bool:
        """Whether files lack room for the large bodies of an append, though the spool could hold it."""
        bodies_bytes = sum(len(envelope.body) for envelope in append.envelopes if len(envelope.body) >= MIN_BODY_BYTES)
        return bool(bodies_bytes) and append.cost_bytes <= self.soft_limit_bytes and bodies_bytes > self.for_files_bytes()

    def for_files_bytes(self) -> int:
        """Return the room for more files: the database's freed pages still take their place on the disk."""
        disk = os.statvfs(self._folder)
        on_disk = disk.f_bavail * disk.f_frsize - self._min_free_bytes
        return min(self.soft_limit_bytes - self.used_bytes - self._reusable_bytes, on_disk)
