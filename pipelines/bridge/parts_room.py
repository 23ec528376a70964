"""Keep room for large payloads that are being put together, and record which of their bytes are durable.

What a payload takes is counted in blocks of the disk, not in bytes sent: one byte in every block fills it just as well.
A device that begins a payload has room reserved for its rest, though never more than it has brought already (and a little to
begin with): one that declares much and brings nothing keeps nobody out. The whole disk counts as plenty, little, or so little
that nothing more is landed.

The durable ranges of an unfinished object lie in one small JSON file next to it, replaced as a whole.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import sync_folder, write_atomic
from pipelines.config import ShareConfig
from schemas.errors import SchemaError
from schemas.ranges import Ranges

log = structlog.get_logger(__name__)
RECEIVED_SUFFIX = ".have"

FIRST_PROMISE_BYTES = 64 * 1024 * 1024
# A payload in more pieces than this is not how anyone sends; each piece costs at every part.
MAX_PIECES = 1_024
WAIT_MS = 30_000
# What a directory entry, an inode and the received ranges take.
_LEAST_BYTES = 8_192
_BLOCK_BYTES = 4_096

_LOW_PART, _MIN_PART = 10, 20


@dataclass(frozen=True, slots=True)
class ReceivedRanges:
    """`have` of `total` bytes are durable."""

    total: int
    have: Ranges


class _Document(msgspec.Struct, frozen=True):
    total: int
    have: list[tuple[int, int]]


def read_received(path: Path) -> ReceivedRanges | None:
    """Read the received ranges of the bytes at `path`; None where there are none, or they cannot be trusted.

    Raises:
        OSError: the disk refused.
    """
    try:
        document = msgspec.json.decode(_ranges_path(path).read_bytes(), type=_Document)
        received = ReceivedRanges(document.total, Ranges.of(document.have))
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, SchemaError) as error:
        log.warning("received_ranges_unreadable", path=str(path), error=str(error))
        return None
    if received.have and received.have.spans[-1][1] > size:
        log.warning("received_ranges_beyond_file", path=str(path), claimed=received.have.spans[-1][1], size=size)
        return None
    return received


def write_received(path: Path, received: ReceivedRanges) -> None:
    """Write the received ranges; the bytes must be durable already.

    Raises:
        OSError: the disk refused.
    """
    write_atomic(_ranges_path(path), msgspec.json.encode(_Document(received.total, list(received.have))))


def discard_received(path: Path) -> None:
    """Delete the received ranges, durably.

    Raises:
        OSError: the disk refused.
    """
    ranges_path = _ranges_path(path)
    if ranges_path.exists():
        ranges_path.unlink()
        sync_folder(ranges_path.parent)


def _ranges_path(path: Path) -> Path:
    return path.with_name(path.name + RECEIVED_SUFFIX)


@dataclass(slots=True)
class _Open:
    """One unfinished payload: what it takes on disk, what it will take when whole, how much of it is there."""

    disk_bytes: int
    total_bytes: int
    have_bytes: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The reason why parts are not taken now; they may be retried after `wait_ms`."""

    reason: str
    wait_ms: int = WAIT_MS


class PartsRoom:
    """Counts unfinished payloads by device. One thread uses it.

    Args:
        folder: `<lake>/objects/.parts`, read once.
        free_bytes: what the disk has left, the reserve taken off.
        max_open: payloads of one device at a time; 0: no limit.
        max_bytes: what they may take on disk together, reserved or written; 0: no limit.

    Raises:
        OSError: the folder cannot be read.
    """

    def __init__(self, folder: Path, free_bytes: Callable[[], int], max_open: int, max_bytes: int) -> None:
        self.deferred = 0
        self._free_bytes = free_bytes
        self._max_open = max_open
        self._max_bytes = max_bytes
        self._devices: dict[str, dict[str, _Open]] = {}
        for device in folder.iterdir() if folder.is_dir() else ():
            for path in device.iterdir() if device.is_dir() else ():
                if path.suffix != RECEIVED_SUFFIX:
                    received = read_received(path)
                    total = path.stat().st_size if received is None else received.total
                    have = 0 if received is None else received.have.count
                    self._devices.setdefault(device.name, {})[path.name] = _Open(disk_bytes_of(path), total, have)

    @property
    def open_objects(self) -> int:
        """Unfinished payloads of all devices."""
        return sum(len(objects) for objects in self._devices.values())

    @property
    def disk_bytes(self) -> int:
        """The bytes that they take on disk."""
        return sum(one.disk_bytes for objects in self._devices.values() for one in objects.values())

    def refusal(self, device: str, digest: str, total_bytes: int, new_bytes: int) -> NoRoom | None:
        """Whether parts must wait.

        Args:
            device: who sends them.
            digest: of which payload.
            total_bytes: of the whole payload.
            new_bytes: what the parts take on disk at most.
        """
        objects = self._devices.get(device, {})
        known = objects.get(digest)
        refusal = self._over_share(objects, known, total_bytes, new_bytes) or self._lack(known, total_bytes, new_bytes)
        if refusal is not None:
            self.deferred += 1
        return refusal

    def note(self, device: str, digest: str, path: Path, total_bytes: int, have_bytes: int) -> None:
        """Note what a payload takes after its parts were written."""
        self._devices.setdefault(device, {})[digest] = _Open(disk_bytes_of(path), total_bytes, have_bytes)

    def forget(self, device: str, digest: str) -> None:
        """Forget a payload that is whole or was taken away."""
        objects = self._devices.get(device, {})
        objects.pop(digest, None)
        if not objects:
            self._devices.pop(device, None)

    def _over_share(self, objects: dict[str, _Open], known: _Open | None, total_bytes: int, new_bytes: int) -> NoRoom | None:
        if known is None and self._max_open and len(objects) >= self._max_open:
            return NoRoom(f"{self._max_open} objects of this device are unfinished; finish those first")
        taken = sum(one.disk_bytes for one in objects.values())
        wanted = total_bytes if known is None else new_bytes
        if self._max_bytes and taken + wanted > self._max_bytes:
            return NoRoom(
                f"unfinished objects of this device take {taken} bytes, and may take {self._max_bytes}; finish those first"
            )
        return None

    def _lack(self, known: _Open | None, total_bytes: int, new_bytes: int) -> NoRoom | None:
        free = self._free_bytes()
        if known is not None:
            wanted, kept = new_bytes + _LEAST_BYTES, 0
        else:
            wanted, kept = total_bytes + _LEAST_BYTES, sum(_promise(objects) for objects in self._devices.values())
        if wanted <= free - kept:
            return None
        return NoRoom(f"no room: {wanted} bytes asked for, {max(free - kept, 0)} to give; try again later")


def _promise(objects: dict[str, _Open]) -> int:
    """The bytes reserved for the rest of a device's payloads."""
    rest = sum(one.total_bytes - one.have_bytes for one in objects.values())
    return min(rest, FIRST_PROMISE_BYTES + sum(one.disk_bytes for one in objects.values()))


def blocks_of(low: int, high: int) -> int:
    """Return the most that bytes `[low, high)` of a file take on disk."""
    return (-(-high // _BLOCK_BYTES) - low // _BLOCK_BYTES) * _BLOCK_BYTES


def disk_bytes_of(path: Path) -> int:
    """Return the size of a file on disk, with its received ranges: whole blocks, holes not counted."""
    try:
        return path.stat().st_blocks * 512 + _LEAST_BYTES
    except FileNotFoundError:
        return 0


def free_bytes_of(folder: Path) -> int:
    """Return the bytes that an ordinary user may still write to the disk of a folder.

    Raises:
        OSError: the disk does not answer.
    """
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def size_bytes_of(folder: Path) -> int:
    """Return the size of the disk of a folder.

    Raises:
        OSError: the disk does not answer.
    """
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize


class Disk:
    """Looks at the disk of a folder.

    Args:
        folder: on it.
        config: below how many free bytes it is low, and full; on a small disk a tenth and a twentieth of it are enough.

    Raises:
        OSError: the disk does not answer.
    """

    def __init__(self, folder: Path, config: ShareConfig) -> None:
        size_bytes = size_bytes_of(folder)
        self._folder = folder
        self.min_free_bytes = min(config.min_free_bytes, size_bytes // _MIN_PART)
        self.low_free_bytes = max(self.min_free_bytes, min(config.low_free_bytes, size_bytes // _LOW_PART))

    def free_bytes(self) -> int:
        """Return the bytes that may be written now, including the part that stays free. 0 where the disk does not answer.

        The write that follows meets the same disk, and says so.
        """
        try:
            return free_bytes_of(self._folder)
        except OSError:
            return 0

    def low_room_bytes(self, free_bytes: int) -> int | None:
        """Return the bytes that may still be written at this free space; None: there is plenty."""
        return None if free_bytes >= self.low_free_bytes else max(0, free_bytes - self.min_free_bytes)

    def demand_room(self, new_bytes: int) -> None:
        """Refuse to fill the disk: runs, and whatever else lives on it, need some of it to make room again.

        Raises:
            OSError: less than `min_free_bytes` would be left.
        """
        free_bytes = free_bytes_of(self._folder)
        if free_bytes - new_bytes < self.min_free_bytes:
            reason = f"{free_bytes} bytes are free, {new_bytes} wait, {self.min_free_bytes} stay free; make room"
            raise OSError(errno.ENOSPC, reason, str(self._folder))
