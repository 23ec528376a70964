"""The payloads of a split: one pread each, told to the kernel ahead where they come from a disk, compared with their sha256."""

import hashlib
import os
import resource
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from enum import StrEnum
from itertools import accumulate
from pathlib import Path
from threading import Lock
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from pipelines.errors import CorruptLakeError
from pipelines.lake.payload import pread_exactly, read_row
from pipelines.lake.reference import sample_label
from pipelines.training.index import SplitIndex
from pipelines.training.manifest import FileEntry, Manifest, open_set_file
from pipelines.training.shards import NAMED_BY, PAYLOAD_DIGEST

Int64s = npt.NDArray[np.int64]
# Descriptors that stay free for the rest of the process.
_SPARE_DESCRIPTORS = 256
_LEAST_OPEN = 256
# A read that takes longer than this, and 1 us for each 2 kB, came from a disk. Then the next reads are told to the kernel, so
# many ahead; after a while it is looked again.
_SLOW_NS = 60_000
_NS_PER_KB = 500
_AHEAD = 64
_AHEAD_FOR = 2_048


class PayloadCheck(StrEnum):
    """When a payload is compared with its sha256: at its first read in this process, at each read, or never."""

    FIRST = "first"
    ALWAYS = "always"
    NEVER = "never"


class ShardFiles:
    """Descriptors are opened on first use, never shared through a pickle, and closed with the object.

    pread keeps no position, so threads and forked workers may read through the same descriptors.
    """

    def __init__(self, folder: Path, shards: tuple[FileEntry, ...]) -> None:
        self._folder = folder
        self._shards = shards
        self._starts = [0, *accumulate(shard.rows for shard in shards)]
        self._open: OrderedDict[int, Descriptor] = OrderedDict()
        self._max_open = _room_for(len(shards))
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["ShardFiles"], tuple[Path, tuple[FileEntry, ...]]]:
        return ShardFiles, (self._folder, self._shards)

    def shard_of(self, index: int) -> int:
        """The number of the shard that holds row `index` of the split."""
        return bisect_right(self._starts, index) - 1

    def shards_of(self, indexes: Int64s) -> Int64s:
        """The numbers of the shards that hold these rows."""
        return np.asarray(np.searchsorted(self._starts, indexes, side="right") - 1, np.int64)

    def descriptor(self, number: int) -> "Descriptor":
        """An open shard; the one opened longest ago closes when the last reader lets go of it.

        Raises:
            CorruptLakeError: the shard is missing, or has another size than the manifest tells.
        """
        held = self._open.get(number)
        if held is not None:
            return held
        with self._lock:
            held = self._open.get(number)
            if held is None:
                held = Descriptor(self._folder, self._shards[number])
                self._open[number] = held
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            return held

    def slowly(self, index: int, length: int) -> bytes:
        """The payload of a row through pyarrow: what holds where its offset does not.

        Raises:
            CorruptLakeError: the shard holds no such row.
        """
        number = self.shard_of(index)
        with open_set_file(self._folder, self._shards[number].path) as shard:
            return read_row(shard, index - self._starts[number], length)


class Descriptor:
    """A descriptor that closes when nobody holds it any more, so no thread reads from a number given to another file."""

    __slots__ = ("number",)

    def __init__(self, folder: Path, entry: FileEntry) -> None:
        self.number = -1
        with open_set_file(folder, entry.path) as file:
            found = os.fstat(file.fileno()).st_size
            if found != entry.bytes:
                raise CorruptLakeError(
                    f"{file.name}: {found} bytes where the manifest tells {entry.bytes}; restore the set or build it again"
                )
            self.number = os.dup(file.fileno())
        # Samples are read in an order of their own: what lies behind one is not read next.
        os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class PayloadReader:
    """Reads payloads by row number, one or many; checks each as `check` says."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, rows: SplitIndex, check: PayloadCheck) -> None:
        self._folder = folder
        self._rows = rows
        self._files = ShardFiles(folder, manifest.shards_of(split))
        has_digest = manifest.has_payload and PAYLOAD_DIGEST in {column.name for column in manifest.columns}
        self._check = check if has_digest else PayloadCheck.NEVER
        count = manifest.split_rows()[split] if self._check is PayloadCheck.FIRST else 0
        self._checked = np.zeros(-(-count // 8), np.uint8)
        self._ahead_left = 0

    def one(self, index: int) -> bytes:
        """The payload of a row.

        Raises:
            CorruptLakeError: the shard is missing, or the payload is not the one that was captured.
        """
        offset, length = self._rows.place(index)
        descriptor = self._files.descriptor(self._files.shard_of(index))
        return self._read(descriptor.number, index, offset, length, is_due=self._is_due(index))

    def many(self, indexes: Int64s) -> Iterator[bytes]:
        """The payloads of these rows, in their order. Raises as `one`."""
        offsets, lengths = (column.tolist() for column in self._rows.places(indexes))
        shards, rows = self._files.shards_of(indexes).tolist(), indexes.tolist()
        due = self._due(indexes)
        for at, (index, shard, offset, length) in enumerate(zip(rows, shards, offsets, lengths, strict=True)):
            if self._ahead_left:
                self._tell_ahead(at, shards, offsets, lengths)
            descriptor = self._files.descriptor(shard)
            began = perf_counter_ns()
            payload = self._read(descriptor.number, index, offset, length, is_due=due is not None and due[at])
            if perf_counter_ns() - began > _SLOW_NS + (length >> 10) * _NS_PER_KB and not self._ahead_left:
                self._ahead_left = _AHEAD_FOR
                self._tell(range(at + 1, min(at + _AHEAD, len(rows))), shards, offsets, lengths)
            yield payload

    def _read(self, descriptor: int, index: int, offset: int, length: int, *, is_due: bool) -> bytes:
        if self._check is PayloadCheck.NEVER:
            value = pread_exactly(descriptor, offset, length)
            return self._files.slowly(index, length) if value is None else value
        payload = os.pread(descriptor, length, offset)
        return self._compared(index, payload, length) if is_due or len(payload) != length else payload

    def _compared(self, index: int, payload: bytes, length: int) -> bytes:
        """The payload, once it is known to be the one that was captured."""
        wanted = self._rows.value(index, PAYLOAD_DIGEST)
        if wanted is None and len(payload) == length:
            return payload
        if hashlib.sha256(payload).hexdigest() != wanted:
            payload = self._otherwise(index, length, wanted)
        if self._check is PayloadCheck.FIRST:
            # Two threads may lose each other's bit; then a payload is compared once more.
            self._checked[index >> 3] |= np.uint8(1 << (index & 7))
        return payload

    def _otherwise(self, index: int, length: int, wanted: str | None) -> bytes:
        """The payload as pyarrow finds it, where its place did not hold the bytes that were captured."""
        name = sample_label(*(self._rows.value(index, column) for column in NAMED_BY))
        rotten = (
            f"{self._folder}: the payload of sample {index} ({name}) is not the one that was captured: its sha256 is another; "
            "run `set verify`, then restore the set or build it again"
        )
        try:
            payload = self._files.slowly(index, length)
        except CorruptLakeError as error:
            raise CorruptLakeError(rotten) from error
        if wanted is not None and hashlib.sha256(payload).hexdigest() != wanted:
            raise CorruptLakeError(rotten)
        return payload

    def _is_due(self, index: int) -> bool:
        if self._check is PayloadCheck.FIRST:
            return not self._checked[index >> 3] >> (index & 7) & 1
        return self._check is PayloadCheck.ALWAYS

    def _due(self, indexes: Int64s) -> list[bool] | None:
        """Which of these rows are to be compared; None: none of them."""
        if self._check is PayloadCheck.NEVER:
            return None
        if self._check is PayloadCheck.ALWAYS:
            return [True] * len(indexes)
        due = (self._checked[indexes >> 3] >> (indexes & 7).astype(np.uint8) & 1) == 0
        return due.tolist() if due.any() else None

    def _tell_ahead(self, at: int, shards: list[int], offsets: list[int], lengths: list[int]) -> None:
        self._ahead_left -= 1
        if (next_one := at + _AHEAD) < len(shards):
            self._tell(range(next_one, next_one + 1), shards, offsets, lengths)

    def _tell(self, rows: range, shards: list[int], offsets: list[int], lengths: list[int]) -> None:
        """Have the kernel fetch some payloads while others are worked on."""
        for row in rows:
            number = self._files.descriptor(shards[row]).number
            os.posix_fadvise(number, offsets[row], lengths[row], os.POSIX_FADV_WILLNEED)


def _room_for(shards: int) -> int:
    """How many shards may be open at once: all of them, if the process may have so many descriptors.

    The soft limit is raised where the hard one allows: reading must not get slower with the number of shards.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = shards + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        if raised > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return shards if soft == resource.RLIM_INFINITY else max(_LEAST_OPEN, min(shards, soft - _SPARE_DESCRIPTORS))
