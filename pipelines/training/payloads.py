"""The payloads of a split: one pread each, told to the kernel ahead where they come from a disk, compared with their sha256."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from sys import maxsize

import numpy as np
import numpy.typing as npt

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.payload import pread_exactly
from pipelines.lake.reference import sample_label
from pipelines.training.arrivals import Arrivals
from pipelines.training.index import SplitIndex
from pipelines.training.manifest import Manifest
from pipelines.training.set_files import SetFiles
from pipelines.training.shard_files import ShardFiles
from pipelines.training.shards import NAMED_BY, PAYLOAD_DIGEST

Int64s = npt.NDArray[np.int64]
# Where payloads come from a disk, the next reads are announced to the kernel, so many ahead; after a while it is probed again.
AHEAD_ROWS = 64
_AHEAD_FOR = 2_048
# Large payloads: the kernel's memory is not all ours, and of one announcement it may fetch no more than its read-ahead.
_AHEAD_BYTES = 64 * 1024 * 1024
_ANNOUNCED_BYTES = 128 * 1024
_CHUNK_ROWS = 128
_CHUNK_BYTES = 512 * 1024


class PayloadCheck(StrEnum):
    """When a payload is compared with its sha256: at its first read in this process, at each, at a share of them, or never."""

    FIRST = "first"
    ALWAYS = "always"
    SHARE = "share"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class CheckRule:
    """When payloads are compared; `every_nth` read, where it is a share of them."""

    kind: PayloadCheck = PayloadCheck.FIRST
    every_nth: int = 1

    def __post_init__(self) -> None:
        if self.every_nth < 1:
            raise RefusedError("check: give a share above 0 and up to 1")


def check_rule(check: PayloadCheck | str | float) -> CheckRule:
    """A rule by its word, or by the share of reads that are compared.

    Raises:
        RefusedError: neither such a word nor a share.
    """
    if isinstance(check, int | float):
        if not 0 < check <= 1:
            raise RefusedError(f'check: {check:g} is no share of reads; give above 0 up to 1, or "first", "always" or "never"')
        return CheckRule(PayloadCheck.SHARE, max(1, round(1 / check)))
    if check not in (PayloadCheck.FIRST, PayloadCheck.ALWAYS, PayloadCheck.NEVER):
        raise RefusedError(f'check: {check!r} is no rule; give "first", "always", "never", or a share such as 0.01')
    return CheckRule(PayloadCheck(check))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Rows to read: number in the split, shard, offset, length, and which are to be compared; None: none of them."""

    indexes: list[int]
    shards: list[int]
    offsets: list[int]
    lengths: list[int]
    due: list[bool] | None


class PayloadReader:
    """Reads payloads by row number, one or many; checks each as `check` says."""

    def __init__(
        self, files: SetFiles, manifest: Manifest, split: str, rows: SplitIndex, check: CheckRule, *, in_pieces: bool = False
    ) -> None:
        self._parts = (files, manifest, split, rows, check)
        self._folder = files.folder
        self._rows = rows
        self._files = ShardFiles(files, manifest.shards_of(split))
        has_digest = manifest.has_payload and PAYLOAD_DIGEST in {column.name for column in manifest.columns}
        self._check = check.kind if has_digest else PayloadCheck.NEVER
        self._every_nth = check.every_nth
        self._reads = 0
        count = manifest.split_rows()[split] if self._check is PayloadCheck.FIRST else 0
        self._checked = np.zeros(-(-count // 8), np.uint8)
        self._ahead_left = 0
        self._announced: set[int] = set()
        self._probe = bytearray(1)
        cache = files.rows
        self._arrivals = None if cache is None else Arrivals(cache, self._files, rows, in_pieces=in_pieces)

    def in_pieces(self) -> "PayloadReader":
        """A reader for which rows next to the wanted ones come along from a bucket."""
        return PayloadReader(*self._parts, in_pieces=True)

    def trusted(self) -> "PayloadReader":
        """A reader that compares nothing but its first read."""
        files, manifest, split, rows, _ = self._parts
        return PayloadReader(files, manifest, split, rows, CheckRule(PayloadCheck.SHARE, maxsize))

    def mark_compared(self, indexes: Int64s) -> None:
        """Note that a worker has compared these rows: at its next start it need not again."""
        if self._check is PayloadCheck.FIRST:
            np.bitwise_or.at(self._checked, indexes >> 3, np.left_shift(1, indexes & 7).astype(np.uint8))

    def one(self, index: int) -> bytes:
        """The payload of a row.

        Raises:
            CorruptLakeError: the shard is missing, or the payload is not the one that was captured.
            RetryLaterError: the storage is unavailable.
        """
        return next(self.many(np.array([index], np.int64)))

    def many(self, indexes: Int64s) -> Iterator[bytes]:
        """The payloads of these rows, in their order. Raises as `one`."""
        for payloads in self.chunks(indexes):
            yield from payloads

    def chunks(self, indexes: Int64s) -> Iterator[list[bytes]]:
        """The same, some at a time. Raises as `one`."""
        if self._arrivals is None:
            yield from self._chunks(indexes)
            return
        for part in self._arrivals.parts(indexes):
            yield from self._chunks(part)

    def expect(self, indexes: Int64s) -> None:
        """Have rows brought near that will be read next, if they come from afar."""
        if self._arrivals is not None:
            self._arrivals.expect(indexes)
        elif len(indexes):
            wanted = self._wanted(indexes)
            # What was announced lies in memory by now and says nothing of the next: it is asked for itself.
            if not self._ahead_left and self._is_on_disk(wanted, len(indexes) - 1):
                self._ahead_left = _AHEAD_FOR
            if self._ahead_left:
                self._announce(_ahead_of(wanted, 0, len(indexes)), wanted)

    def _wanted(self, indexes: Int64s, due: list[bool] | None = None) -> "_Wanted":
        offsets, lengths = self._rows.places(indexes)
        return _Wanted(indexes.tolist(), self._files.shards_of(indexes).tolist(), offsets.tolist(), lengths.tolist(), due)

    def _chunks(self, indexes: Int64s) -> Iterator[list[bytes]]:
        wanted, low = self._wanted(indexes, self._due(indexes)), 0
        while low < len(indexes):
            # Few enough that they are still in the processor's cache when they are used.
            high = min(len(indexes), low + max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(1, wanted.lengths[low]))))
            if not self._ahead_left and self._is_on_disk(wanted, high - 1):
                self._ahead_left = _AHEAD_FOR
            yield self._chunk(wanted, low, high)
            low = high

    def _chunk(self, wanted: "_Wanted", low: int, high: int) -> list[bytes]:
        shards, offsets, lengths = wanted.shards[low:high], wanted.offsets[low:high], wanted.lengths[low:high]
        # Held until all are read: none of them closes meanwhile.
        held = {shard: self._files.descriptor(shard) for shard in set(shards)}
        numbers = [held[shard].number for shard in shards]
        if self._ahead_left:
            self._announce_ahead(wanted, low, high)
        if self._check is PayloadCheck.NEVER or wanted.due is not None:
            payloads = [self._read(wanted, at, numbers[at - low]) for at in range(low, high)]
        else:
            payloads = list(map(os.pread, numbers, lengths, offsets))
            if list(map(len, payloads)) != lengths:
                payloads = [self._read(wanted, at, numbers[at - low]) for at in range(low, high)]
        if self._announced:
            self._announced.difference_update(wanted.indexes[low:high])
        return payloads

    def _read(self, wanted: "_Wanted", at: int, descriptor: int) -> bytes:
        index, offset, length = wanted.indexes[at], wanted.offsets[at], wanted.lengths[at]
        is_due = wanted.due is not None and wanted.due[at]
        if self._check is PayloadCheck.NEVER:
            value = pread_exactly(descriptor, offset, length)
            return self._again(index, length) if value is None else value
        payload = os.pread(descriptor, length, offset)
        if not is_due and len(payload) == length:
            return payload
        wanted_digest = self._rows.value(index, PAYLOAD_DIGEST)
        if wanted_digest is None:
            value = pread_exactly(descriptor, offset, length)
            return self._again(index, length) if value is None else value
        return self._compared(index, payload, length, wanted_digest)

    def _compared(self, index: int, payload: bytes, length: int, digest: str) -> bytes:
        """The payload, once it is known to be the one that was captured."""
        if hashlib.sha256(payload).hexdigest() != digest:
            payload = self._otherwise(index, length, digest)
        if self._check is PayloadCheck.FIRST:
            # Two threads may lose each other's bit; then a payload is compared once more.
            self._checked[index >> 3] |= np.uint8(1 << (index & 7))
        return payload

    def _again(self, index: int, length: int) -> bytes:
        """The payload by another way than its place here: fetched again, or as pyarrow finds it."""
        if self._arrivals is None:
            return self._files.slowly(index, length)
        return self._arrivals.again(index)

    def _otherwise(self, index: int, length: int, digest: str) -> bytes:
        """The payload by another way, where its place did not hold the bytes that were captured."""
        name = sample_label(*(self._rows.value(index, column) for column in NAMED_BY))
        rotten = (
            f"{self._folder}: the payload of sample {index} ({name}) is not the one that was captured: its sha256 is another; "
            "run `set verify`, then restore the set or build it again"
        )
        try:
            payload = self._again(index, length)
        except CorruptLakeError as error:
            raise CorruptLakeError(rotten) from error
        if hashlib.sha256(payload).hexdigest() != digest:
            raise CorruptLakeError(rotten)
        return payload

    def _due(self, indexes: Int64s) -> list[bool] | None:
        """Which of these rows are to be compared; None: none of them."""
        if self._check is PayloadCheck.NEVER:
            return None
        if self._check is PayloadCheck.SHARE:
            first, self._reads = self._reads, self._reads + len(indexes)
            due = np.arange(first, self._reads) % self._every_nth == 0
        elif self._check is PayloadCheck.ALWAYS:
            return [True] * len(indexes)
        else:
            due = (self._checked[indexes >> 3] >> (indexes & 7).astype(np.uint8) & 1) == 0
        return due.tolist() if due.any() else None

    def _announce_ahead(self, wanted: "_Wanted", low: int, high: int) -> None:
        """Announce these rows, if they are not yet, and those behind them."""
        self._ahead_left = max(0, self._ahead_left - (high - low))
        if not self._ahead_left and high < len(wanted.indexes):
            last = min(high + AHEAD_ROWS, len(wanted.indexes)) - 1
            self._ahead_left = _AHEAD_FOR if self._is_on_disk(wanted, last) else 0
        self._announce(_ahead_of(wanted, low, high - low + AHEAD_ROWS), wanted)

    def _announce(self, rows: range, wanted: "_Wanted") -> None:
        """Have the kernel fetch some payloads while others are worked on, each once."""
        for row in rows:
            if wanted.indexes[row] in self._announced:
                continue
            self._announced.add(wanted.indexes[row])
            number, length = self._files.descriptor(wanted.shards[row]).number, wanted.lengths[row]
            for start in range(0, length, _ANNOUNCED_BYTES):
                size = min(_ANNOUNCED_BYTES, length - start)
                os.posix_fadvise(number, wanted.offsets[row] + start, size, os.POSIX_FADV_WILLNEED)

    def _is_on_disk(self, wanted: "_Wanted", row: int) -> bool:
        """Whether a payload's end is not in the kernel's memory; False where the file system does not say."""
        if not wanted.lengths[row]:
            return False
        last = wanted.offsets[row] + wanted.lengths[row] - 1
        try:
            os.preadv(self._files.descriptor(wanted.shards[row]).number, [self._probe], last, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def _ahead_of(wanted: _Wanted, low: int, rows: int) -> range:
    """So many rows from `low` on, or fewer where they are large; at least one."""
    high, size = low, 0
    while high < min(low + rows, len(wanted.indexes)) and size < _AHEAD_BYTES:
        size += wanted.lengths[high]
        high += 1
    return range(low, high)
