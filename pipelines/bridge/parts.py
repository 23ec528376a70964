"""Put large payloads together from their parts, so that only durable bytes are ever claimed.

`objects/.parts/<device>/<sha256>` holds the bytes, `<sha256>.have` next to it which of them are durable. The bytes are
synced before the ranges are written, and the ranges before the device gets an answer. Paths are built from a `DeviceId` and a
`Digest` alone, both validated at birth. Parts whose device has sent nothing more for days are deleted.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import sync_folder
from pipelines.bridge.landing import StoredObjects
from pipelines.bridge.parts_room import (
    MAX_PIECES,
    RECEIVED_SUFFIX,
    NoRoom,
    PartsRoom,
    ReceivedRanges,
    blocks_of,
    discard_received,
    free_bytes_of,
    read_received,
    write_received,
)
from pipelines.bridge.rows import Body
from pipelines.lake.store import LocalStore
from pipelines.logs import LogLimit
from schemas.ids import DeviceId, Digest
from schemas.parts import PartHead
from schemas.ranges import Ranges
from schemas.receipts import ObjectState

log = structlog.get_logger(__name__)

PARTS_FOLDER = ".parts"
_READ_BYTES = 4 * 1024 * 1024
_RESERVE_BYTES = 1024 * 1024 * 1024
_MAX_UNFINISHED_PER_DEVICE = 256
_MAX_HASHES = 1_024
_MAX_HASHES_PER_DEVICE = 16
_INLINE_BYTES = 32 * 1024 * 1024

EVERY_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Part:
    """A part, or a query, from a device."""

    device: DeviceId
    head: PartHead
    payload: Body


class Assembler:
    """Writes parts, and settles an object once all of it is there and its hash is true. One thread uses it.

    A large object that came out of order must be read again to be hashed. That is done next to, on a thread of its own;
    a caller meanwhile is told that all bytes are there, and `finished` tells when the object is settled.

    Args:
        objects: `<lake>/objects`.
        reserve_bytes: parts are not taken if they would leave the disk with less than this.
        store: where whole objects go; `objects` itself if not given.
        inline_bytes: up to so many bytes are hashed at once.
        max_open: unfinished objects of one device.
        max_device_bytes: what those may take on disk; 0: no limit.
        max_pieces: pieces of one object with gaps between them; one that was here in more keeps them.

    Raises:
        OSError: the disk refused.
    """

    def __init__(
        self,
        objects: Path,
        reserve_bytes: int = _RESERVE_BYTES,
        inline_bytes: int = _INLINE_BYTES,
        store: StoredObjects | None = None,
        max_open: int = _MAX_UNFINISHED_PER_DEVICE,
        max_device_bytes: int = 0,
        max_pieces: int = MAX_PIECES,
    ) -> None:
        self._max_pieces = max_pieces
        self.settled = 0
        self.refused = 0
        self._objects = objects
        self._store = store or StoredObjects(LocalStore(objects), folder="")
        # Running hashes of what came in order, so that the last part does not wait for the whole file to be read again.
        self._hashes: dict[Path, tuple[int, hashlib._Hash]] = {}
        self._inline_bytes = inline_bytes
        self._logged = LogLimit()
        self._hashing: dict[tuple[DeviceId, Digest], Future[str]] = {}
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="object-hash")
        (objects / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
        self.room = PartsRoom(objects / PARTS_FOLDER, lambda: free_bytes_of(objects) - reserve_bytes, max_open, max_device_bytes)

    def apply(self, device: DeviceId, parts: Sequence[Part]) -> ObjectState:
        """Make parts of one object durable and say what is there now.

        Args:
            device: who sends them.
            parts: all of one digest, in the order in which they came.

        Raises:
            OSError: the disk refused; apply the same parts again later.
        """
        head = parts[-1].head
        whole = self._objects / head.digest
        size = self._store.size(head.digest)
        if size is not None:
            return ObjectState(str(head.digest), size, [(0, size)], settled=True)
        path = self._objects / PARTS_FOLDER / device / head.digest
        received = self._received(path, head)
        bring = [part for part in parts if not part.head.is_query and part.head.total == received.total]
        refusal = self._refusal(device, received, bring, head)
        if refusal is not None:
            return self._wait(device, head, received, refusal)
        received = self._write(path, received, bring)
        if not received.have.covers(0, received.total):
            return ObjectState(str(head.digest), received.total, list(received.have))
        hashed, _running = self._hashes.get(path, (0, None))
        if received.total - hashed <= self._inline_bytes:
            return self._settle(path, whole, head.digest, received, self._hash(path))
        # One at a time for a device: the others' objects wait for the same thread.
        if not any(busy == device for busy, _ in self._hashing):
            self._hashing[device, head.digest] = self._beside.submit(self._hash, path)
        return ObjectState(str(head.digest), received.total, list(received.have))

    def finished(self) -> list[tuple[DeviceId, ObjectState]]:
        """Settle the objects whose hash has become known; what to tell to whom.

        Raises:
            OSError: the disk refused; the device's next query starts over.
        """
        settled: list[tuple[DeviceId, ObjectState]] = []
        for key in [key for key, future in self._hashing.items() if future.done()]:
            device, digest = key
            path = self._objects / PARTS_FOLDER / device / digest
            try:
                found = self._hashing.pop(key).result()
            except FileNotFoundError:
                continue  # it was begun again meanwhile
            received = read_received(path)
            if received is not None:
                settled.append((device, self._settle(path, self._objects / digest, digest, received, found)))
        return settled

    def close(self) -> None:
        """Let hashes that are being computed go; a query after the next start asks for them again."""
        self._beside.shutdown(wait=True, cancel_futures=True)

    def forget(self, path: Path) -> None:
        """Delete an unfinished object's bytes and received ranges.

        Raises:
            OSError: the disk refused.
        """
        self._discard(path)

    def is_hashing(self, path: Path) -> bool:
        """Whether the object at this path is being hashed."""
        return any(self._objects / PARTS_FOLDER / device / digest == path for device, digest in self._hashing)

    def _received(self, path: Path, head: PartHead) -> ReceivedRanges:
        """Return the durable ranges. With another total the sender was wrong once: only a fresh start can come true."""
        received = read_received(path)
        if received is None:
            return ReceivedRanges(head.total, Ranges())
        if received.total == head.total:
            return received
        if self._logged.due((path.parent.name, "restart"), time.monotonic()) is not None:
            log.warning("object_restarted", path=str(path), total_before=received.total, total=head.total)
        self._discard(path)
        return ReceivedRanges(head.total, Ranges())

    def _refusal(self, device: DeviceId, received: ReceivedRanges, bring: Sequence[Part], head: PartHead) -> NoRoom | None:
        """Return why parts must wait; the room is checked for each of them, and for a query that would begin an object."""
        if not bring and received.have:
            return None
        new = Ranges.of([(part.head.offset, part.head.offset + part.head.length) for part in bring])
        pieces = len(received.have.union(new).spans)
        if pieces > max(self._max_pieces, len(received.have.spans)):
            return NoRoom(f"the object is here in {self._max_pieces} pieces; send what lies between them first")
        new_bytes = sum(blocks_of(low, high) for low, high in new.minus(received.have))
        if not new_bytes and received.have:
            return None
        return self.room.refusal(device, head.digest, received.total, new_bytes)

    def _wait(self, device: DeviceId, head: PartHead, received: ReceivedRanges, refusal: NoRoom) -> ObjectState:
        """Parts are not taken for now. What is here stays; an object of which nothing is here is refused with an error, too."""
        self.refused += 1
        left_out = self._logged.due((device, "wait"), time.monotonic())
        if left_out is not None:
            log.warning(
                "parts_wait", device=device, digest=head.digest, total=received.total, reason=refusal.reason, more=left_out
            )
        error = "" if received.have else refusal.reason
        return ObjectState(
            str(head.digest), received.total, list(received.have), error=error, wait_ms=refusal.wait_ms, reason=refusal.reason
        )

    def _write(self, path: Path, received: ReceivedRanges, parts: Sequence[Part]) -> ReceivedRanges:
        """Bytes that are durable already are never written again: the first to come stay, and the hash decides."""
        if not parts:
            return received
        is_new = not path.exists()
        if not path.parent.exists():
            path.parent.mkdir()
            sync_folder(path.parent.parent)
        have = received.have
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            for part in parts:
                span = Ranges.of([(part.head.offset, part.head.offset + part.head.length)])
                for low, high in span.minus(have):
                    _pwrite(descriptor, memoryview(part.payload)[low - part.head.offset : high - part.head.offset], low)
                have = have.union(span)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(path.parent)
        written = ReceivedRanges(received.total, have)
        if written != received:
            write_received(path, written)
            self._hash_on(path, parts)
        self.room.note(path.parent.name, path.name, path, written.total, have.count)
        return written

    def _hash_on(self, path: Path, parts: Sequence[Part]) -> None:
        hashed, digest = self._hashes.get(path, (0, hashlib.sha256()))
        for part in parts:
            if part.head.offset == hashed:
                digest.update(part.payload)
                hashed += part.head.length
        if hashed and (path in self._hashes or self._may_hash_on(path)):
            self._hashes[path] = (hashed, digest)

    def _may_hash_on(self, path: Path) -> bool:
        """Whether one more running hash may be kept; without one the object is read again at its end."""
        same = sum(other.parent == path.parent for other in self._hashes)
        return len(self._hashes) < _MAX_HASHES and same < _MAX_HASHES_PER_DEVICE

    def _settle(self, path: Path, whole: Path, digest: Digest, received: ReceivedRanges, found: str) -> ObjectState:
        if found != digest:
            self._discard(path)
            self.refused += 1
            device = path.parent.name
            left_out = self._logged.due((device, "hash"), time.monotonic())
            if left_out is not None:
                reason = "hash differs"
                log.warning("object_refused", device=device, digest=digest, total=received.total, reason=reason, more=left_out)
            return ObjectState(
                str(digest), received.total, [], error=f"the bytes hash to {found}; send them again from the start"
            )
        self._store.settle(path, whole)
        self.room.forget(path.parent.name, path.name)
        discard_received(path)
        self._hashes.pop(path, None)
        self.settled += 1
        return ObjectState(str(digest), received.total, [(0, received.total)], settled=True)

    def _hash(self, path: Path) -> str:
        hashed, running = self._hashes.get(path, (0, hashlib.sha256()))
        digest = running.copy()
        with path.open("rb") as file:
            file.seek(hashed)
            while block := file.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def _discard(self, path: Path) -> None:
        """Delete the ranges first: bytes without ranges are ignored, ranges without bytes would be wrong."""
        self.room.forget(path.parent.name, path.name)
        discard_received(path)
        path.unlink(missing_ok=True)
        self._hashes.pop(path, None)


def _pwrite(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


class Sweeper:
    """Looks for abandoned parts now and then, on the disk thread.

    Args:
        objects: `<lake>/objects`.
        assembler: whose parts they are.
        keep_s: how long parts lie untouched before they count as abandoned.
    """

    def __init__(self, objects: Path, assembler: Assembler, keep_s: float) -> None:
        self.swept = 0
        self.swept_bytes = 0
        self._parts = objects / PARTS_FOLDER
        self._assembler = assembler
        self._keep_s = keep_s
        self._due_s = 0.0

    def sweep_if_due(self, now_s: float) -> None:
        """Look, once an hour.

        Args:
            now_s: monotonic seconds.

        Raises:
            OSError: the disk refused.
        """
        if now_s < self._due_s:
            return
        self._due_s = now_s + EVERY_S
        before = time.time() - self._keep_s
        for folder in sorted(self._parts.iterdir()):
            for path in {path.with_name(path.name.removesuffix(RECEIVED_SUFFIX)) for path in folder.iterdir()}:
                self._sweep(path, before)

    def _sweep(self, path: Path, before: float) -> None:
        files = [file for file in (path, path.with_name(path.name + RECEIVED_SUFFIX)) if file.exists()]
        if not files or max(file.stat().st_mtime for file in files) >= before or self._assembler.is_hashing(path):
            return
        size = path.stat().st_size if path.exists() else 0
        self._assembler.forget(path)
        self.swept += 1
        self.swept_bytes += size
        log.warning("parts_abandoned", device=path.parent.name, digest=path.name, bytes=size)
