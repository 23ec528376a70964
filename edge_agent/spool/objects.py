"""Large payloads as files named by their hash. A file exists, whole and synced, before any row names it."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from catchment.runtime.atomic_files import make_folder, sync_folder
from edge_agent.errors import SpoolFullError
from edge_agent.spool.records import ObjectRef
from edge_agent.spool.sealing import Seal, SealBrokenError, sealed_bytes
from schemas.ids import Digest

SEALED_SUFFIX = ".sealed"
_COPY_BYTES = 256 * 1024


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
