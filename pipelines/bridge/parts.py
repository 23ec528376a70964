"""Puts large payloads together from their parts, so that only durable bytes are ever claimed.

`objects/.parts/<device>/<sha256>` holds the bytes, `<sha256>.have` beside it which of them are durable. The bytes are
synced before the claim is written, and the claim before anyone is told. Paths are built from a `DeviceId` and a
`Digest` alone, both validated at birth.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from pipelines.atomic import sync_folder
from pipelines.bridge.claim import Claim, discard_claim, read_claim, write_claim
from pipelines.bridge.rows import Body
from pipelines.bridge.ship import FolderOfObjects, ObjectStore
from schemas.ids import DeviceId, Digest
from schemas.parts import PartHead
from schemas.ranges import Ranges
from schemas.receipts import ObjectState

_log = structlog.get_logger(__name__)

PARTS_FOLDER = ".parts"
_READ_BYTES = 4 * 1024 * 1024
_RESERVE_BYTES = 1024 * 1024 * 1024
_MAX_UNFINISHED_PER_DEVICE = 256
_MAX_HASHES = 256
_INLINE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """A part, or a query, from a device."""

    device: DeviceId
    head: PartHead
    payload: Body


class Assembler:
    """Writes parts, and settles an object once all of it is there and its hash is true. One thread uses it.

    A large object that came out of order must be read again to be hashed. That is done beside, on a thread of its own;
    whoever asks meanwhile is told that all bytes are there, and `finished` tells when the object is settled.

    Args:
        objects: `<lake>/objects`.
        reserve_bytes: an object is refused if it would leave the disk with less than this.
        store: where whole objects go; `objects` itself if not given.
        inline_bytes: up to so many bytes are hashed at once.

    Raises:
        OSError: the disk refused.
    """

    def __init__(
        self,
        objects: Path,
        reserve_bytes: int = _RESERVE_BYTES,
        inline_bytes: int = _INLINE_BYTES,
        store: ObjectStore | None = None,
    ) -> None:
        self.settled = 0
        self.refused = 0
        self._objects = objects
        self._store = store or FolderOfObjects(objects)
        self._reserve_bytes = reserve_bytes
        # Running hashes of what came in order, so that the last part does not wait for the whole file to be read again.
        self._hashes: dict[Path, tuple[int, hashlib._Hash]] = {}
        self._inline_bytes = inline_bytes
        self._hashing: dict[tuple[DeviceId, Digest], Future[str]] = {}
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="object-hash")
        (objects / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)

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
        claim = self._claim(path, head)
        refusal = self._refusal(path, claim)
        if refusal:
            self.refused += 1
            _log.warning("object_refused", device=device, digest=head.digest, total=head.total, reason=refusal)
            return ObjectState(str(head.digest), head.total, [], error=refusal)
        claim = self._write(path, claim, [part for part in parts if not part.head.is_query and part.head.total == claim.total])
        if not claim.have.covers(0, claim.total):
            return ObjectState(str(head.digest), claim.total, list(claim.have))
        hashed, _running = self._hashes.get(path, (0, None))
        if claim.total - hashed <= self._inline_bytes:
            return self._settle(path, whole, head.digest, claim, self._hash(path))
        if (device, head.digest) not in self._hashing:
            self._hashing[device, head.digest] = self._beside.submit(self._hash, path)
        return ObjectState(str(head.digest), claim.total, list(claim.have))

    def finished(self) -> list[tuple[DeviceId, ObjectState]]:
        """Settle the objects whose hash has become known; what to tell to whom.

        Raises:
            OSError: the disk refused; the device's next query starts over.
        """
        told: list[tuple[DeviceId, ObjectState]] = []
        for key in [key for key, future in self._hashing.items() if future.done()]:
            device, digest = key
            path = self._objects / PARTS_FOLDER / device / digest
            try:
                found = self._hashing.pop(key).result()
            except FileNotFoundError:
                continue  # it was begun anew meanwhile
            claim = read_claim(path)
            if claim is not None:
                told.append((device, self._settle(path, self._objects / digest, digest, claim, found)))
        return told

    def close(self) -> None:
        """Let hashes that are being computed go; a query after the next start asks for them again."""
        self._beside.shutdown(wait=True, cancel_futures=True)

    def forget(self, path: Path) -> None:
        """Take an unfinished object's bytes and claim away.

        Raises:
            OSError: the disk refused.
        """
        self._discard(path)

    def is_hashing(self, path: Path) -> bool:
        """Whether the object at this path is being hashed."""
        return any(self._objects / PARTS_FOLDER / device / digest == path for device, digest in self._hashing)

    def _claim(self, path: Path, head: PartHead) -> Claim:
        """What is durable of it. Another total than before means the sender was wrong once: only a fresh start can come true."""
        claim = read_claim(path)
        if claim is None:
            return Claim(head.total, Ranges())
        if claim.total == head.total:
            return claim
        _log.warning("object_restarted", path=str(path), total_before=claim.total, total=head.total)
        self._discard(path)
        return Claim(head.total, Ranges())

    def _refusal(self, path: Path, claim: Claim) -> str:
        if claim.have:
            return ""
        free = shutil.disk_usage(self._objects).free - self._reserve_bytes
        if claim.total > free:
            return f"no room: {claim.total} bytes asked for, {max(free, 0)} to give; try again later"
        if path.parent.exists() and not path.exists() and sum(1 for _ in path.parent.iterdir()) >= 2 * _MAX_UNFINISHED_PER_DEVICE:
            return f"{_MAX_UNFINISHED_PER_DEVICE} objects of this device are unfinished; finish those first"
        return ""

    def _write(self, path: Path, claim: Claim, parts: Sequence[Part]) -> Claim:
        """Bytes that are durable already are never written again: the first to come stay, and the hash decides."""
        if not parts:
            return claim
        is_new = not path.exists()
        if not path.parent.exists():
            path.parent.mkdir()
            sync_folder(path.parent.parent)
        have = claim.have
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
        written = Claim(claim.total, have)
        if written != claim:
            write_claim(path, written)
            self._hash_on(path, parts)
        return written

    def _hash_on(self, path: Path, parts: Sequence[Part]) -> None:
        hashed, digest = self._hashes.get(path, (0, hashlib.sha256()))
        for part in parts:
            if part.head.offset == hashed:
                digest.update(part.payload)
                hashed += part.head.length
        if hashed and (path in self._hashes or len(self._hashes) < _MAX_HASHES):
            self._hashes[path] = (hashed, digest)

    def _settle(self, path: Path, whole: Path, digest: Digest, claim: Claim, found: str) -> ObjectState:
        if found != digest:
            self._discard(path)
            self.refused += 1
            _log.warning("object_refused", digest=digest, total=claim.total, reason="hash differs", found=found)
            return ObjectState(str(digest), claim.total, [], error=f"the bytes hash to {found}; send them again from the start")
        self._store.settle(path, whole)
        discard_claim(path)
        self._hashes.pop(path, None)
        self.settled += 1
        return ObjectState(str(digest), claim.total, [(0, claim.total)], settled=True)

    def _hash(self, path: Path) -> str:
        hashed, running = self._hashes.get(path, (0, hashlib.sha256()))
        digest = running.copy()
        with path.open("rb") as file:
            file.seek(hashed)
            while block := file.read(_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def _discard(self, path: Path) -> None:
        """The claim goes first: bytes without a claim are nothing, a claim without bytes would be a lie."""
        discard_claim(path)
        path.unlink(missing_ok=True)
        self._hashes.pop(path, None)


def _pwrite(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
