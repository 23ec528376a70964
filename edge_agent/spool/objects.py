"""Large payloads as files named by their hash. A file exists, whole and synced, before any row names it."""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.atomic import make_folder, sync_folder
from edge_agent.errors import SpoolFullError
from edge_agent.spool.records import ObjectRef
from schemas.ids import Digest

_COPY_BYTES = 256 * 1024


class ObjectStore:
    """The folder of large payloads. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._pins: dict[Digest, int] = {}
        make_folder(folder)
        self._sizes = {Digest(path.name): path.stat().st_size for path in _named(folder)}
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
        try:
            with staged.open("wb") as file:
                for block in _blocks(payload):
                    hasher.update(block)
                    size_bytes += len(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            digest = Digest(hasher.hexdigest())
            with self._lock:
                self._pins[digest] = self._pins.get(digest, 0) + 1
                staged.replace(self._folder / digest)
                self._total_bytes += size_bytes - self._sizes.get(digest, 0)
                self._sizes[digest] = size_bytes
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
                    (self._folder / digest).unlink(missing_ok=True)

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
            return self._sizes.get(ref.digest) == ref.size_bytes

    @contextmanager
    def reader(self, digest: Digest) -> Iterator[int]:
        """An open descriptor of a payload, for `os.pread`.

        Raises:
            OSError: it is gone.
        """
        descriptor = os.open(self._folder / digest, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _blocks(payload: bytes | Path) -> Iterator[bytes | memoryview]:
    if isinstance(payload, bytes):
        view = memoryview(payload)
        for start in range(0, len(view), _COPY_BYTES):
            yield view[start : start + _COPY_BYTES]
        return
    with payload.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            yield block


def _named(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if len(path.name) == 64 and path.is_file():
            yield path
