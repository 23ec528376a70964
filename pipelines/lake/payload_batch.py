"""The payloads of many rows at once: read by shard and ascending offset, on some threads, into one Arrow array.

Where the rows say what the payloads' sha256 is, each is compared by the thread that read it, while it is in the cache.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.payload import PREFIX_BYTES, read_payload
from pipelines.lake.reference import open_referred

Int64s = npt.NDArray[np.int64]
_READ_THREADS = 4
_PIECE_ROWS = 1_024
_PIECE_BYTES = 8 * 1024 * 1024
# Values up to so many bytes, so close together, are read with one read of about so many.
_SMALL_BYTES = 16 * 1024
_GAP_BYTES = 16 * 1024
_RUN_BYTES = 1024 * 1024
_RUN_ROWS = 8


@dataclass(frozen=True, slots=True)
class PayloadRefs:
    """Where the payloads of some rows lie, as their columns say: (rows,) each.

    `shards`: path of the shard or object, relative to the lake root. `offsets`: file offset of the value's first byte, 0 for a
    whole file. `lengths`: bytes. `rows`: row of the value in its shard. `samples`: names the sample of a row, for messages.
    `digests`: the sha256 of each in hex, None for one that is not compared; None: none is.
    """

    shards: Sequence[str]
    offsets: Int64s
    lengths: Int64s
    rows: Int64s
    samples: Callable[[int], str]
    digests: Sequence[str | None] | None = None


def read_payloads(lake: Lake, refs: PayloadRefs) -> pa.Array:
    """The payloads of many rows, in their order, as one Arrow array of less than 2 GiB.

    Each shard is opened once and read by ascending offset, several at a time, straight into the array's memory. What is not as
    its row tells is read again by `read_payload`, whose errors these are.

    Raises:
        CorruptLakeError: also where a payload has another sha256 than its row says.
    """
    ends = np.concatenate(([0], np.cumsum(np.maximum(refs.lengths, 0))))
    memory = np.empty(int(ends[-1]), np.uint8)
    names = pa.array(refs.shards, pa.string()).dictionary_encode().indices
    shard_of = np.asarray(names.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    order = np.lexsort((refs.offsets, shard_of))
    cuts = np.flatnonzero(np.diff(shard_of[order])) + 1
    pieces = [part for piece in np.split(order, cuts) for part in _pieces(piece, refs.lengths)]
    view = memory.data

    def read(rows: Int64s) -> None:
        starts = ends[rows]
        _Piece(lake, refs, rows, starts, view).read()
        if refs.digests is not None:
            _compare(refs, refs.digests, rows.tolist(), starts.tolist(), view)

    # Small payloads keep the interpreter busy: more threads would only wait for each other.
    is_small = int(ends[-1]) <= _SMALL_BYTES * len(refs.shards)
    if is_small:
        for piece in pieces:
            read(piece)
    else:
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for _ in pool.map(read, pieces):
                pass
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(memory)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(refs.shards), buffers)


def _pieces(rows: Int64s, lengths: Int64s) -> list[Int64s]:
    """Rows of one shard cut into what one thread reads: some megabytes, or a few hundred rows."""
    ends = np.cumsum(np.maximum(lengths[rows], 0) + PREFIX_BYTES)
    number = np.maximum(ends // _PIECE_BYTES, np.arange(len(rows)) // _PIECE_ROWS)
    return list(np.split(rows, np.flatnonzero(np.diff(number)) + 1)) if len(rows) else []


def _compare(refs: PayloadRefs, digests: Sequence[str | None], rows: list[int], starts: list[int], view: memoryview) -> None:
    lengths = refs.lengths[rows].tolist()
    for row, start, length in zip(rows, starts, lengths, strict=True):
        wanted = digests[row]
        if wanted is not None and hashlib.sha256(view[start : start + length]).hexdigest() != wanted:
            raise CorruptLakeError(
                f"{refs.samples(row)}: the payload in the lake is not the one that was captured: its sha256 is another; "
                "restore its shard from a backup, or leave the row out (--where)"
            )


class _Piece:
    """Rows of one shard, by ascending offset, to be read to their places in the array's memory."""

    def __init__(self, lake: Lake, refs: PayloadRefs, rows: Int64s, starts: Int64s, memory: memoryview) -> None:
        self._lake = lake
        self._refs = refs
        self._rows = rows
        self._starts = starts
        self._offsets = refs.offsets[rows]
        self._lengths = refs.lengths[rows]
        self._memory = memory

    def read(self) -> None:
        """Read them all. Raises as `read_payload`."""
        lake, row = self._lake, int(self._rows[0])
        shard = self._refs.shards[row]
        if not lake.store.has_local(shard):
            self._one_by_one(np.arange(len(self._rows)))
            return
        first, last, is_dense = self._runs()
        with ExitStack() as stack:
            descriptor = stack.enter_context(open_referred(lake, shard, self._refs.samples(row))).fileno()
            runs = list(zip(first.tolist(), last.tolist(), is_dense.tolist(), strict=True))
            left = [self._run(descriptor, low, high) for low, high, is_run in runs if is_run]
            for low, high, is_run in runs:
                if not is_run and high - low > 1:
                    # The kernel gets it with one read from the disk; from its memory each value is got more cheaply alone.
                    start, end = int(self._offsets[low]), int(self._offsets[high - 1] + self._lengths[high - 1])
                    os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_WILLNEED)
            left.append(self._alone(descriptor, np.flatnonzero(~np.repeat(is_dense, last - first))))
        self._one_by_one(np.concatenate(left))

    def _runs(self) -> tuple[Int64s, Int64s, npt.NDArray[np.bool_]]:
        """Small rows close to each other, first and last + 1 of each run, and whether most of its bytes are wanted."""
        ends = self._offsets + self._lengths
        is_far = self._offsets[1:] - PREFIX_BYTES - ends[:-1] > _GAP_BYTES
        is_large = np.maximum(self._lengths[1:], self._lengths[:-1]) > _SMALL_BYTES
        is_beyond = np.diff((self._offsets - self._offsets[0]) // _RUN_BYTES) > 0
        is_odd = (self._offsets < PREFIX_BYTES) | (self._lengths < 0)
        cuts = np.flatnonzero(is_far | is_large | is_beyond | is_odd[1:] | is_odd[:-1]) + 1
        first, last = np.concatenate(([0], cuts)), np.append(cuts, len(ends))
        wanted = np.add.reduceat(self._lengths + PREFIX_BYTES, first)
        is_dense = (last - first >= _RUN_ROWS) & (2 * wanted >= ends[last - 1] - self._offsets[first])
        return first, last, is_dense

    def _run(self, descriptor: int, low: int, high: int) -> Int64s:
        """Read rows that lie together; which of them were not as they are told."""
        offsets, lengths = self._offsets[low:high], self._lengths[low:high]
        at = offsets - int(offsets[0]) + PREFIX_BYTES
        ends = at + lengths
        size = int(ends.max())
        body = os.pread(descriptor, size, int(offsets[0]) - PREFIX_BYTES)
        if len(body) < size:
            return np.arange(low, high)
        prefixes = np.frombuffer(body, np.uint8)[at[:, None] + np.arange(-PREFIX_BYTES, 0)].view("<u4")[:, 0]
        memory, source = self._memory, memoryview(body)
        starts = self._starts[low:high]
        places = zip(starts.tolist(), (starts + lengths).tolist(), at.tolist(), ends.tolist(), strict=True)
        for start, end, begin, stop in places:
            memory[start:end] = source[begin:stop]
        return low + np.flatnonzero(prefixes != lengths)

    def _alone(self, descriptor: int, places: Int64s) -> Int64s:
        """Read each of some rows straight to its place; which of them were not as they are told."""
        memory, found = self._memory, bytearray(PREFIX_BYTES)
        offsets, lengths = self._offsets[places], self._lengths[places]
        starts = self._starts[places]
        wrong: list[int] = []
        columns = (places.tolist(), starts.tolist(), lengths.tolist(), offsets.tolist())
        for at, start, length, offset in zip(*columns, strict=True):
            if offset < PREFIX_BYTES or length < 0:
                wrong.append(at)
                continue
            got = os.preadv(descriptor, (found, memory[start : start + length]), offset - PREFIX_BYTES)
            if got != length + PREFIX_BYTES or found != length.to_bytes(PREFIX_BYTES, "little"):
                wrong.append(at)
        return np.array(wrong, np.int64)

    def _one_by_one(self, places: Int64s) -> None:
        refs = self._refs
        for at in places.tolist():
            row, start, length = int(self._rows[at]), int(self._starts[at]), int(self._lengths[at])
            place = self._memory[start : start + max(length, 0)]
            place[:] = read_payload(
                self._lake, refs.shards[row], int(self._offsets[at]), length, int(refs.rows[row]), refs.samples(row)
            )
