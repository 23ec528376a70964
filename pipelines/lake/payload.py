"""Payloads that are read with one pread: Parquet shards written so that they can be, and the reading, also from `objects/`.

A payload column that is PLAIN, uncompressed, without dictionary and with one page per row group lies in the file as
``[4-byte little-endian length][bytes]...`` and ends where the column chunk ends. So each value's offset follows from the
footer and the lengths. That is a property of the writer, not of the format: it is checked value by value after writing.
"""

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import beside_path, sync_folder
from pipelines.errors import BadReferenceError, CorruptLakeError, RefusedError
from pipelines.lake.arrow_input import arrow_file
from pipelines.lake.lake import Lake
from pipelines.lake.reference import checked_name, open_referred
from pipelines.lake.store import Store

PAYLOAD_COLUMN = "payload"
MAX_GROUP_ROWS = 1_024
MAX_GROUP_BYTES = 32 * 1024 * 1024
MAX_VALUE_BYTES = 2_000_000_000  # a Parquet page's size is an int32
PREFIX_BYTES = 4
_HASH_BLOCK_BYTES = 1024 * 1024

Int64s = npt.NDArray[np.int64]
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

_READ_THREADS = 4
_PIECE_ROWS = 1_024
_PIECE_BYTES = 8 * 1024 * 1024
_SMALL_BYTES = 16 * 1024
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PayloadShard:
    """A finished shard: `offsets[i]` is the file offset of the first byte of row i's payload, `lengths[i]` its bytes."""

    path: Path
    rows: int
    bytes: int
    sha256: str
    offsets: pa.Int64Array
    lengths: pa.Int64Array


def group_bounds(lengths: Int64s, max_rows: int = MAX_GROUP_ROWS, max_bytes: int = MAX_GROUP_BYTES) -> list[tuple[int, int]]:
    """Split rows into runs of at most `max_rows` and `max_bytes`; a larger value stands alone.

    Returns:
        Half-open row spans, in order, that cover all rows.
    """
    ends = np.concatenate(([0], np.cumsum(lengths + PREFIX_BYTES)))
    bounds: list[tuple[int, int]] = []
    low = 0
    while low < len(lengths):
        fits = int(np.searchsorted(ends, ends[low] + max_bytes, side="right")) - 1
        high = min(max(fits, low + 1), low + max_rows, len(lengths))
        bounds.append((low, high))
        low = high
    return bounds


class PayloadWriter:
    """Write a shard row group by row group, in bounded memory: a temporary file, fsync, rename, fsync of the folder.

    The schema's `payload` column is stored readable by pread; the other columns compressed. Leaving the `with` block by an
    exception leaves no file. Call `finish` to publish the shard.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        where = schema.get_field_index(PAYLOAD_COLUMN)
        if where < 0:
            raise RefusedError(f"{path.name}: a payload shard needs a column {PAYLOAD_COLUMN!r}")
        self._schema = schema.set(where, pa.field(PAYLOAD_COLUMN, pa.binary(), nullable=False))
        self._path = path
        self._beside = beside_path(path)
        self._lengths: list[Int64s] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer: Any = pq.ParquetWriter(self._beside, self._schema, **_writer_options(self._schema))

    def append(self, rows: pa.Table) -> None:
        """Add rows, as one or more whole row groups.

        Raises:
            RefusedError: a payload is null, or above 2,000,000,000 bytes.
        """
        payload = rows.column(PAYLOAD_COLUMN)
        if payload.null_count:
            raise RefusedError(f"{self._path.name}: {payload.null_count} rows have no payload; a payload shard takes none such")
        lengths = pc.cast(pc.binary_length(payload), pa.int64()).to_numpy()
        if len(lengths) and int(lengths.max()) > MAX_VALUE_BYTES:
            raise RefusedError(f"{self._path.name}: a payload of {lengths.max()} bytes is above {MAX_VALUE_BYTES}")
        for low, high in group_bounds(lengths):
            group = rows.slice(low, high - low).select(self._schema.names).cast(self._schema).combine_chunks()
            self._writer.write_table(group, row_group_size=MAX_GROUP_ROWS)
        self._lengths.append(lengths)

    def finish(self) -> PayloadShard:
        """Close, check every offset, make it durable and give it its name.

        Raises:
            CorruptLakeError: the writer did not lay the values out as the closed form says.
        """
        self._writer.close()
        lengths = np.concatenate([*self._lengths, np.empty(0, np.int64)])
        offsets = value_offsets(self._beside, lengths)
        size, digest = _sync_and_hash(self._beside)
        self._beside.replace(self._path)
        sync_folder(self._path.parent)
        return PayloadShard(self._path, len(lengths), size, digest, pa.array(offsets), pa.array(lengths))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
        self._beside.unlink(missing_ok=True)


def write_payload_shard(path: Path, rows: pa.Table) -> PayloadShard:
    """Write one shard; the same rows give the same bytes.

    Args:
        path: where it shall lie; an existing file is replaced.
        rows: columns device, epoch, seq, payload_sha256 and payload (binary, no nulls); further columns may follow.

    Raises:
        RefusedError: a payload is missing or too large.
        CorruptLakeError: this version of pyarrow lays values out differently.
    """
    with PayloadWriter(path, rows.schema.remove_metadata()) as writer:
        writer.append(rows)
        return writer.finish()


def value_offsets(path: Path, lengths: Int64s) -> Int64s:
    """The file offset of each payload value's first byte, from the footer and the lengths; every length prefix is checked.

    Raises:
        CorruptLakeError: the values do not lie where the closed form says.
    """
    with pq.ParquetFile(path) as file:
        chunks = list(_payload_chunks(file.metadata))
    if sum(rows for rows, _ in chunks) != len(lengths):
        raise CorruptLakeError(f"{path}: the footer counts other rows than were written")
    offsets = np.empty(len(lengths), np.int64)
    low = 0
    for rows, end in chunks:
        steps = lengths[low : low + rows] + PREFIX_BYTES
        offsets[low : low + rows] = end - np.cumsum(steps[::-1])[::-1] + PREFIX_BYTES
        low += rows
    if not _prefixes_match(path, offsets, lengths):
        raise CorruptLakeError(
            f"{path}: payload values do not lie where footer and lengths say; pin the pyarrow of the lock file"
        )
    return offsets


def _payload_chunks(metadata: Any) -> Iterator[tuple[int, int]]:
    """Rows and end offset of the payload column chunk of each row group."""
    column = next((i for i in range(metadata.num_columns) if metadata.schema.column(i).path == PAYLOAD_COLUMN), None)
    if column is None:
        raise CorruptLakeError("a payload shard without a payload column")
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(column)
        yield chunk.num_values, chunk.data_page_offset + chunk.total_compressed_size


def _prefixes_match(path: Path, offsets: Int64s, lengths: Int64s) -> bool:
    if not len(offsets):
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        body = np.frombuffer(view, np.uint8)
        inside = bool(offsets.min() >= PREFIX_BYTES and (offsets + lengths).max() <= len(body))
        prefix = body[offsets[:, None] + np.arange(-PREFIX_BYTES, 0)] if inside else np.empty((0, PREFIX_BYTES), np.uint8)
        del body  # the map cannot close while an array looks into it
    return inside and bool((prefix.view("<u4")[:, 0] == lengths).all())


def _writer_options(schema: pa.Schema) -> dict[str, Any]:
    others = [_leaf_path(field) for field in schema if field.name != PAYLOAD_COLUMN]
    return {
        "compression": {PAYLOAD_COLUMN: "NONE", **dict.fromkeys(others, "ZSTD")},
        "use_dictionary": [_leaf_path(field) for field in schema if pa.types.is_string(field.type)],
        "write_statistics": others,
        "write_page_checksum": True,
        "data_page_size": MAX_VALUE_BYTES,
        "max_rows_per_page": MAX_GROUP_ROWS,
        "write_batch_size": MAX_GROUP_ROWS,
        "version": "2.6",
        "data_page_version": "1.0",
        "store_schema": True,
    }


def _leaf_path(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def _sync_and_hash(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
        size = file.tell()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


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
    if not lake.store.has_local(shard):
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
    with ExitStack() as stack:
        is_local = lake.store.has_local(shard)
        file = stack.enter_context(open_referred(lake, shard, refs.samples(rows[0]))) if is_local else None
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
        with pq.ParquetFile(arrow_file(shard), page_checksum_verification=True) as file:
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
