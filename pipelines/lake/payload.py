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
_PIECE_ROWS = 64


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
    names = {name: number for number, name in enumerate(dict.fromkeys(refs.shards))}
    shard_of = np.fromiter((names[name] for name in refs.shards), np.int64, len(refs.shards))
    order = np.lexsort((refs.offsets, shard_of))
    cuts = np.flatnonzero(np.diff(shard_of[order])) + 1
    pieces = [piece[low : low + _PIECE_ROWS] for piece in np.split(order, cuts) for low in range(0, len(piece), _PIECE_ROWS)]
    view = memory.data
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for _ in pool.map(lambda piece: _read_piece(lake, refs, piece.tolist(), ends, view), pieces):
            pass
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(memory)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(refs.shards), buffers)


def _read_piece(lake: Lake, refs: PayloadRefs, rows: list[int], ends: Int64s, memory: memoryview) -> None:
    """Read rows of one shard to their places."""
    shard = refs.shards[rows[0]]
    is_here = lake.store.is_on_disk or os.path.lexists(lake.root / shard)
    with ExitStack() as stack:
        file = stack.enter_context(open_referred(lake, shard, refs.samples(rows[0]))) if is_here else None
        prefix = bytearray(PREFIX_BYTES)
        for row in rows:
            offset, length = int(refs.offsets[row]), int(refs.lengths[row])
            place = memory[int(ends[row]) : int(ends[row + 1])]
            if file is not None and offset >= PREFIX_BYTES and length >= 0:
                got = os.preadv(file.fileno(), [prefix, place], offset - PREFIX_BYTES)
                if got == length + PREFIX_BYTES and prefix == length.to_bytes(PREFIX_BYTES, "little"):
                    continue
            place[:] = read_payload(lake, shard, offset, length, int(refs.rows[row]), refs.samples(row))


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
