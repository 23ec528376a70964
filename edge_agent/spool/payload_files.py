"""Payload files of the spool: large bodies share files, and each large object has a file named by its hash.

Bodies above 64 kB lie in files because a database row would be written twice (log and table). Callers write into the open
file of their priority before the append is handed in; the writer syncs what was written before the rows that name it are
committed. A file is deleted when no row names it any more. Bytes that no row ever named (a crash came first) go with their file.

The file of an object exists, whole and synced, before any row names it.
"""

import errno
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import structlog

from catchment.runtime.atomic_files import make_folder, sync_folder
from edge_agent.errors import SpoolFullError
from edge_agent.spool.records import Append, BodyPlace, ObjectRef
from edge_agent.spool.sealing import Seal, SealBrokenError, sealed_bytes
from schemas.ids import Digest

FOLDER_NAME = "bodies"
MIN_BODY_BYTES = 64 * 1024
# Each new file costs a sync of its folder: with frames, a commit begins one in four times.
LARGEST_FILE_BYTES = 16 * 1024 * 1024
FILE_SHARE = 64

log = structlog.get_logger(__name__)

SEALED_SUFFIX = ".sealed"
_COPY_BYTES = 256 * 1024


@dataclass(slots=True)
class _File:
    """A file and how many of its bodies are still wanted; `descriptor` while it is written."""

    size_bytes: int = 0
    wanted: int = 0
    descriptor: int = -1


class BodyFiles:
    """The folder of bodies. Thread-safe.

    Args:
        folder: made if missing.
        max_bytes: the spool's quota: small spools get small files, so that giving up a little frees something.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[int, int] = {}  # priority -> file that is written
        self._unsynced: set[int] = set()
        self._finished: list[int] = []  # descriptors of full files, closed after their sync
        self._has_new_names = False
        self._file_bytes = min(LARGEST_FILE_BYTES, max_bytes // FILE_SHARE)
        make_folder(folder)
        self._files = {int(path.name): _File(path.stat().st_size) for path in folder.iterdir() if path.name.isdecimal()}
        # A number is not used again while this process lives: a rolled back row must not find another's bytes.
        self._last = max(self._files, default=0)
        self._total_bytes = sum(file.size_bytes for file in self._files.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return self._total_bytes

    def adopt(self, wanted: Iterable[tuple[int, int]]) -> None:
        """At start: which files rows name, and how many rows each. Deletes the files that none names."""
        for number, rows in wanted:
            if number in self._files:
                self._files[number].wanted = rows
            # A row whose file is gone is found when it is read, and counted then.
            self._last = max(self._last, number)
        for number in [number for number, file in self._files.items() if file.wanted == 0]:
            self._remove(number)

    def put(self, body: bytes, priority: int) -> BodyPlace | None:
        """Write a body; durable only after `sync`. None when the disk refuses: the row must then carry it itself."""
        with self._lock:
            number = self._open.get(priority)
            try:
                if number is None:
                    number = self._begin(priority)
                file = self._files[number]
                place = BodyPlace(number, file.size_bytes, len(body))
                file.wanted += 1
                self._unsynced.add(number)
                self._write(file, body)
            except OSError as error:
                log.warning("body_file_refused", error=str(error))
                if number is not None:
                    self._abandon(priority, number)
                return None
            if file.size_bytes >= self._file_bytes:
                self._end(priority, number)
            return place

    def put_all(self, append: Append, available_bytes: Callable[[], int]) -> Append:
        """The append with its large bodies written where they stay; what finds no room there goes into its row."""
        envelopes = []
        left_bytes: int | None = None
        for envelope in append.envelopes:
            envelope.sum_up()
            place = None
            if len(envelope.body) >= MIN_BODY_BYTES:
                left_bytes = available_bytes() if left_bytes is None else left_bytes
                if len(envelope.body) <= left_bytes:
                    left_bytes -= len(envelope.body)
                    place = self.put(envelope.body, append.priority_of(envelope))
            envelopes.append(envelope if place is None else envelope.put_at(place))
        return append if left_bytes is None else replace(append, envelopes=tuple(envelopes))

    def sync(self) -> None:
        """Make all that was put durable.

        Raises:
            OSError: the disk refused: nothing since the last sync may be relied on.
        """
        with self._lock:
            unsynced, self._unsynced = self._unsynced, set()
            descriptors = [self._files[number].descriptor for number in unsynced if number in self._files]
            finished, self._finished = self._finished, []
            has_new_names, self._has_new_names = self._has_new_names, False
        for descriptor in (*descriptors, *finished):
            if descriptor >= 0:
                os.fdatasync(descriptor)
        for descriptor in finished:
            os.close(descriptor)
        if has_new_names:
            sync_folder(self._folder)

    def release(self, files: Iterable[int]) -> None:
        """Bodies that are not wanted any more, one entry each; call it after their rows' delete is committed."""
        with self._lock:
            for number, bodies in Counter(files).items():
                file = self._files.get(number)
                if file is None:
                    continue
                file.wanted -= bodies
                if file.wanted <= 0:
                    self._remove(number)

    def freed_bytes(self, files: Iterable[int]) -> int:
        """Bytes that releasing one body in each of these files would free."""
        with self._lock:
            return sum(
                self._files[number].size_bytes
                for number, bodies in Counter(files).items()
                if number in self._files and self._files[number].wanted <= bodies
            )

    def read(self, place: BodyPlace) -> bytes:
        """A body.

        Raises:
            OSError: its file is gone.
        """
        return read_body(self._folder, place)

    def close(self) -> None:
        """Close the open files."""
        with self._lock:
            for number in self._open.values():
                os.close(self._files[number].descriptor)
            for descriptor in self._finished:
                os.close(descriptor)
            self._open.clear()
            self._finished.clear()

    def _begin(self, priority: int) -> int:
        self._last += 1
        path = self._folder / str(self._last)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._files[self._last] = _File(descriptor=descriptor)
        self._open[priority] = self._last
        self._has_new_names = True
        return self._last

    def _write(self, file: _File, body: bytes) -> None:
        view = memoryview(body)
        while view:
            written = os.write(file.descriptor, view)
            file.size_bytes += written
            self._total_bytes += written
            view = view[written:]

    def _end(self, priority: int, number: int) -> None:
        file = self._files[number]
        self._finished.append(file.descriptor)
        file.descriptor = -1
        del self._open[priority]
        self._unsynced.discard(number)

    def _abandon(self, priority: int, number: int) -> None:
        """Stop writing to a file whose write failed; the bodies it holds already are kept."""
        file = self._files[number]
        file.wanted -= 1
        self._end(priority, number)
        if file.wanted <= 0:
            self._remove(number)

    def _remove(self, number: int) -> None:
        file = self._files.pop(number)
        self._total_bytes -= file.size_bytes
        for priority in [priority for priority, open_ in self._open.items() if open_ == number]:
            del self._open[priority]
            os.close(file.descriptor)
        self._unsynced.discard(number)
        with suppress(FileNotFoundError):
            (self._folder / str(number)).unlink()


def read_body(folder: Path, place: BodyPlace) -> bytes:
    """A body; empty where its file does not hold it all. The checksum tells whether it is the one that was stored.

    Raises:
        OSError: its file is gone, or there are no descriptors left.
        ValueError: the place is rotten.
    """
    descriptor = os.open(folder / f"{place.file:d}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_there = place.offset >= 0 and 0 <= place.size_bytes <= os.fstat(descriptor).st_size - place.offset
        return os.pread(descriptor, place.size_bytes, place.offset) if is_there else b""
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
    finally:
        os.close(descriptor)


class SpoolObjects:
    """The folder of large payloads. Thread-safe.

    Args:
        folder: made if missing.
        seal: encrypts what is put from now on; None: it is kept as it comes.
    """

    def __init__(self, folder: Path, seal: Seal | None = None) -> None:
        self._folder = folder
        self._seal = seal
        self._lock = threading.Lock()
        self._pins: dict[Digest, int] = {}
        make_folder(folder)
        self._sizes = {Digest(path.stem): path.stat().st_size for path in _named(folder)}
        self._sealed = {Digest(path.stem) for path in _named(folder) if path.suffix}
        self._total_bytes = sum(self._sizes.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return self._total_bytes

    def put(self, payload: bytes | Path) -> ObjectRef:
        """Store a payload. It is pinned (not swept) until `unpin` is called for it.

        Raises:
            SpoolFullError: the disk refused.
            OSError: a file source cannot be read.
        """
        staged = self._folder / f".{os.getpid()}-{threading.get_ident()}.tmp"
        hasher = hashlib.sha256()
        size_bytes = 0

        def hashed() -> Iterator[bytes | memoryview]:
            nonlocal size_bytes
            for block in _blocks(payload):
                hasher.update(block)
                size_bytes += len(block)
                yield block

        try:
            with staged.open("wb") as file:
                file.writelines(hashed() if self._seal is None else self._seal.seal_object(hashed()))
                file.flush()
                os.fsync(file.fileno())
                stored_bytes = file.tell()
            digest = Digest(hasher.hexdigest())
            with self._lock:
                self._pins[digest] = self._pins.get(digest, 0) + 1
                if self._seal is not None:
                    (self._folder / digest).unlink(missing_ok=True)  # one stored before there was a key
                    self._sealed.add(digest)
                staged.replace(self._path(digest))
                self._total_bytes += stored_bytes - self._sizes.get(digest, 0)
                self._sizes[digest] = stored_bytes
            sync_folder(self._folder)
        except OSError as error:
            staged.unlink(missing_ok=True)
            if isinstance(payload, Path) and error.filename == str(payload):
                raise
            raise SpoolFullError(f"a payload of {size_bytes} bytes or more cannot be stored: {error}; free some disk") from error
        return ObjectRef(digest, size_bytes)

    def unpin(self, *digests: Digest) -> None:
        """The rows that name them are durable, or will never be."""
        with self._lock:
            for digest in digests:
                left = self._pins.pop(digest, 0) - 1
                if left > 0:
                    self._pins[digest] = left

    def remove(self, digests: Iterable[Digest]) -> None:
        """Delete files that no row names any more; call it after that row's delete is committed."""
        with self._lock:
            for digest in digests:
                if digest not in self._pins and (size_bytes := self._sizes.pop(digest, None)) is not None:
                    self._total_bytes -= size_bytes
                    self._path(digest).unlink(missing_ok=True)
                    self._sealed.discard(digest)

    def sweep(self, wanted: Iterable[str]) -> int:
        """At start: delete what a crash left behind. Returns how many files went."""
        keep = set(wanted)
        with self._lock:
            gone = [digest for digest in self._sizes if digest not in keep]
        self.remove(gone)
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        return len(gone)

    def size_of(self, digest: Digest) -> int:
        """Bytes of one file; 0 when there is none."""
        with self._lock:
            return self._sizes.get(digest, 0)

    def holds(self, ref: ObjectRef) -> bool:
        """Whether the file is there in its full size."""
        with self._lock:
            wanted_bytes = sealed_bytes(ref.size_bytes) if ref.digest in self._sealed else ref.size_bytes
            return self._sizes.get(ref.digest) == wanted_bytes

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """Bytes `[offset, offset + length)` of a payload, as far as it has them.

        Raises:
            OSError: it is gone, or its seal is broken.
        """
        path = self._path(digest)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not path.suffix:
                return os.pread(descriptor, length, offset)
            if self._seal is None:
                raise OSError(errno.EACCES, "it is sealed and there is no spool.key", str(path))
            return self._seal.read_object(descriptor, offset, length)
        except SealBrokenError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        finally:
            os.close(descriptor)

    def _path(self, digest: Digest) -> Path:
        return self._folder / (digest + SEALED_SUFFIX if digest in self._sealed else digest)


def _blocks(payload: bytes | Path) -> Iterator[bytes | memoryview]:
    if isinstance(payload, bytes):
        view = memoryview(payload)
        for start in range(0, len(view), _COPY_BYTES):
            yield view[start : start + _COPY_BYTES]
        return
    with payload.open("rb") as file:
        while block := _read(file, payload):
            yield block


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(_COPY_BYTES)
    except OSError as error:
        error.filename = str(path)  # a rotten sector names no file, and must not be taken for the spool's own disk
        raise


def _named(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if len(path.stem) == 64 and path.suffix in ("", SEALED_SUFFIX) and path.is_file():
            yield path
