"""Read a payload with one pread, wherever it lies: in a payload shard, or whole under `objects/`."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import BadReferenceError, CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.payload_writer import (
    PAYLOAD_COLUMN,
    PayloadShard,
    PayloadWriter,
    group_bounds,
    value_offsets,
    write_payload_shard,
)
from pipelines.lake.reference import checked_name, open_referred
from pipelines.lake.store import Store

__all__ = [
    "PAYLOAD_COLUMN",
    "PREFIX_BYTES",
    "PayloadRefs",
    "PayloadShard",
    "PayloadWriter",
    "group_bounds",
    "pread_exactly",
    "read_payload",
    "read_payloads",
    "value_offsets",
    "write_payload_shard",
]

Int64s = npt.NDArray[np.int64]
PREFIX_BYTES = 4
_READ_THREADS = 4
_PIECE_ROWS = 1_024
_PIECE_BYTES = 8 * 1024 * 1024
_SMALL_BYTES = 16 * 1024
_BLOCK_BYTES = 1024 * 1024


def read_payload(lake: Lake, shard: str, offset: int, length: int, row: int, of: str = "") -> bytes:
    """The payload of one sample.

    The 4-byte length before the value is checked first; where it disagrees, the row is read as ordinary Parquet, and only
    bytes of the expected length are given back.

    Args:
        lake: the lake.
        shard: path of the shard or object, relative to the lake root.
        offset: file offset of the value's first byte; 0 means a whole file under `objects/`.
        length: bytes of the value.
        row: row of the value in its shard, for the slow way.
        of: the sample, for messages.

    Raises:
        BadReferenceError: the reference leads out of the lake or through a link, or its numbers are none of a file.
        CorruptLakeError: the file is missing, cut short, or holds something else there.
    """
    of = of or f"row {row} of a table"
    checked_name(shard, of)
    if 0 < offset < PREFIX_BYTES or min(offset, length, row) < 0:
        raise BadReferenceError(f"{of}: refers to {length} bytes at {offset} of {shard}, row {row}; no file has such; restore it")
    if not lake.store.is_on_disk and not os.path.lexists(lake.root / shard):
        return _read_part(lake.store, shard, offset, length)
    with open_referred(lake, shard, of) as file:
        descriptor, path = file.fileno(), lake.root / shard
        if offset == 0:
            return _whole(descriptor, path, length)
        is_inside = offset + length <= os.fstat(descriptor).st_size  # looked at before memory is taken for it
        value = pread_exactly(descriptor, offset, length) if is_inside else None
        return value if value is not None else read_row(file, row, length)


@dataclass(frozen=True, slots=True)
class PayloadRefs:
    """Where the payloads of some rows lie, as their columns say: (rows,) each.

    `shards`: path of the shard or object, relative to the lake root. `offsets`: file offset of the value's first byte, 0 for a
    whole file. `lengths`: bytes. `rows`: row of the value in its shard. `samples`: names the sample of a row, for messages.
    """

    shards: Sequence[str]
    offsets: Int64s
    lengths: Int64s
    rows: Int64s
    samples: Callable[[int], str]


def read_payloads(lake: Lake, refs: PayloadRefs) -> pa.Array:
    """The payloads of many rows, in their order, as one Arrow array of less than 2 GiB.

    Each shard is opened once and read by ascending offset, several at a time, straight into the array's memory. What is not as
    its row tells is read again by `read_payload`, whose errors these are.
    """
    ends = np.concatenate(([0], np.cumsum(np.maximum(refs.lengths, 0))))
    memory = np.empty(int(ends[-1]), np.uint8)
    names = pa.array(refs.shards, pa.string()).dictionary_encode().indices
    shard_of = np.asarray(names.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    order = np.lexsort((refs.offsets, shard_of))
    cuts = np.flatnonzero(np.diff(shard_of[order])) + 1
    pieces = [part for piece in np.split(order, cuts) for part in _pieces(piece, refs.lengths)]
    view = memory.data
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for _ in pool.map(lambda piece: _read_piece(lake, refs, piece.tolist(), ends, view), pieces):
            pass
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(memory)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(refs.shards), buffers)


def _pieces(rows: Int64s, lengths: Int64s) -> list[Int64s]:
    """Rows of one shard cut into what one thread reads: some megabytes, or a few hundred rows."""
    ends = np.cumsum(np.maximum(lengths[rows], 0) + PREFIX_BYTES)
    number = np.maximum(ends // _PIECE_BYTES, np.arange(len(rows)) // _PIECE_ROWS)
    return list(np.split(rows, np.flatnonzero(np.diff(number)) + 1)) if len(rows) else []


def _read_piece(lake: Lake, refs: PayloadRefs, rows: list[int], ends: Int64s, memory: memoryview) -> None:
    """Read rows of one shard, by ascending offset, to their places."""
    shard = refs.shards[rows[0]]
    is_here = lake.store.is_on_disk or os.path.lexists(lake.root / shard)
    with ExitStack() as stack:
        file = stack.enter_context(open_referred(lake, shard, refs.samples(rows[0]))) if is_here else None
        offsets, lengths = refs.offsets[rows].tolist(), refs.lengths[rows].tolist()
        starts = ends[rows].tolist()
        block = _Block(file.fileno() if file is not None else -1)
        for at, row in enumerate(rows):
            offset, length = offsets[at], lengths[at]
            place = memory[starts[at] : starts[at] + max(length, 0)]
            if file is not None and offset >= PREFIX_BYTES and length >= 0 and block.read(at, offsets, lengths, place):
                continue
            place[:] = read_payload(lake, shard, offset, length, int(refs.rows[row]), refs.samples(row))


class _Block:
    """Reads values of a shard by ascending offset; small ones that lie close together with one read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._body = b""
        self._first = 0

    def read(self, at: int, offsets: list[int], lengths: list[int], place: memoryview) -> bool:
        """Read a value to its place; whether it is there, as its prefix says."""
        offset, length = offsets[at], lengths[at]
        prefix = length.to_bytes(PREFIX_BYTES, "little")
        if length > _SMALL_BYTES:
            found = bytearray(PREFIX_BYTES)
            got = os.preadv(self._descriptor, [found, place], offset - PREFIX_BYTES)
            return got == length + PREFIX_BYTES and found == prefix
        low = offset - PREFIX_BYTES - self._first
        if low < 0 or low + PREFIX_BYTES + length > len(self._body):
            end = _end_of_run(at, offsets, lengths)
            self._body = os.pread(self._descriptor, end - offset + PREFIX_BYTES, offset - PREFIX_BYTES)
            self._first, low = offset - PREFIX_BYTES, 0
        start = low + PREFIX_BYTES
        if self._body[low:start] != prefix or start + length > len(self._body):
            return False
        place[:] = self._body[start : start + length]
        return True


def _end_of_run(at: int, offsets: list[int], lengths: list[int]) -> int:
    """Where the values end that follow one closely enough that reading what lies between is cheaper than another read."""
    first, end = offsets[at], offsets[at] + lengths[at]
    for offset, length in zip(offsets[at + 1 :], lengths[at + 1 :], strict=True):
        if offset - end > _SMALL_BYTES or length > _SMALL_BYTES or length < 0 or offset + length - first > _BLOCK_BYTES:
            break
        end = max(end, offset + length)
    return end


def _read_part(store: Store, shard: str, offset: int, length: int) -> bytes:
    """The payload by one request for its bytes. There is no slow way: what is not as its row tells is for a hand to look at."""
    before = PREFIX_BYTES if offset else 0
    try:
        found = store.read_part(shard, offset - before, length + before)
    except FileNotFoundError as error:
        raise CorruptLakeError(f"{store.table_uri(shard)}: is gone, and a row refers to it; restore it") from error
    if len(found) != length + before or found[:before] != length.to_bytes(PREFIX_BYTES, "little")[:before]:
        raise CorruptLakeError(
            f"{store.table_uri(shard)}: the value is not the {length} bytes that its row names; restore the file"
        )
    return found[before:]


def pread_exactly(descriptor: int, offset: int, length: int) -> bytes | None:
    """The value at `offset` of an open shard, or None where the length prefix says that no such value lies there."""
    if os.pread(descriptor, PREFIX_BYTES, offset - PREFIX_BYTES) != length.to_bytes(PREFIX_BYTES, "little"):
        return None
    value = os.pread(descriptor, length, offset)
    return value if len(value) == length else _rest(descriptor, offset, length, value)


def read_row(shard: BinaryIO, row: int, length: int) -> bytes:
    """One payload by its row, through pyarrow: what holds when an offset does not.

    Args:
        shard: the open shard; nobody else reads through it meanwhile.
        row: number of the row.
        length: bytes of the value.

    Raises:
        CorruptLakeError: not such a Parquet file, no such row, or a value of another length.
    """
    path = shard.name
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True) as file:
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < rows:
                    value = file.read_row_group(group, columns=[PAYLOAD_COLUMN]).column(0)[row].as_py()
                    break
                row -= rows
            else:
                raise CorruptLakeError(f"{path}: has no row {row} more than it holds; restore the file")
    except (OSError, ValueError) as error:
        raise CorruptLakeError(f"{path}: not the payload shard that was written ({error}); restore the file") from error
    if value is None or len(value) != length:
        raise CorruptLakeError(f"{path}: the value is not the {length} bytes that its row names; restore the file")
    return bytes(value)


def _whole(descriptor: int, path: Path, length: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size != length:
        raise CorruptLakeError(f"{path}: {size} bytes where {length} were stored; restore the file")
    value = _rest(descriptor, 0, length, b"")
    if value is None:
        raise CorruptLakeError(f"{path}: became shorter while it was read")
    return value


def _rest(descriptor: int, offset: int, length: int, start: bytes) -> bytes | None:
    """Read on after a short read: Linux gives at most 2 GiB at once. None at an early end of the file."""
    parts, have = [start], len(start)
    while have < length:
        part = os.pread(descriptor, length - have, offset + have)
        if not part:
            return None
        parts.append(part)
        have += len(part)
    return b"".join(parts)
