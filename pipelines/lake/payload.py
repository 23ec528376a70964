"""Payloads that are read with one pread: Parquet shards written so that they can be, and the reading, also from `objects/`.

A payload column that is PLAIN, uncompressed, without dictionary and with one page per row group lies in the file as
``[4-byte little-endian length][bytes]...`` and ends where the column chunk ends. So each value's offset follows from the
footer and the lengths. That is a property of the writer, not of the format: it is checked value by value after writing.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
_HASHED_BYTES = 1024 * 1024
_FOLLOWED_BYTES = 8 * 1024 * 1024
_CHECKED_BYTES = 32 * 1024 * 1024

Int64s = npt.NDArray[np.int64]
__all__ = [
    "PAYLOAD_COLUMN",
    "PREFIX_BYTES",
    "PayloadShard",
    "PayloadWriter",
    "TrailingHash",
    "group_bounds",
    "pread_exactly",
    "read_payload",
    "value_offsets",
    "write_payload_shard",
]


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
        self._hash = TrailingHash(self._beside)

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
            self._hash.follow()
        self._lengths.append(lengths)

    def finish(self) -> PayloadShard:
        """Close, check every offset, make it durable and give it its name.

        Raises:
            CorruptLakeError: the writer did not lay the values out as the closed form says.
        """
        self._writer.close()
        lengths = np.concatenate([*self._lengths, np.empty(0, np.int64)])
        offsets = value_offsets(self._beside, lengths)
        size, digest = self._hash.finish()
        self._beside.replace(self._path)
        sync_folder(self._path.parent)
        return PayloadShard(self._path, len(lengths), size, digest, pa.array(offsets), pa.array(lengths))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
        self._hash.close()
        self._beside.unlink(missing_ok=True)


class TrailingHash:
    """Follows a file of which what is written never changes again. Use `close` where `finish` was not reached.

    A thread hashes what is there whenever some megabytes have come; a small file has none.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._digest = hashlib.sha256()
        self._block = bytearray(_HASHED_BYTES)
        self._followed_to = 0
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def follow(self) -> None:
        """Some more was written.

        Raises:
            OSError: what was written before could not be read.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size - self._followed_to < _FOLLOWED_BYTES:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "payload-hash")
        if self._last is not None and self._last.done():
            self._last.result()
        self._followed_to = size
        self._last = self._thread.submit(self._take, size)

    def finish(self) -> tuple[int, str]:
        """Take the rest, and make the file durable. Gives its bytes and the digest.

        Raises:
            OSError: the disk refused.
        """
        if self._last is not None:
            self._last.result()
        size = os.fstat(self._file.fileno()).st_size
        self._take(size)
        os.fsync(self._file.fileno())
        self.close()
        return size, self._digest.hexdigest()

    def close(self) -> None:
        """Stop following."""
        if self._thread is not None:
            self._thread.shutdown()
        self._file.close()

    def _take(self, size: int) -> None:
        view = memoryview(self._block)
        while self._file.tell() < size:
            got = self._file.readinto(view[: min(_HASHED_BYTES, size - self._file.tell())])
            self._digest.update(view[:got])


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
    """Whether each value has its length before it. Some of the file at a time is mapped: what is mapped counts as memory."""
    if not len(offsets):
        return True
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if offsets.min() < PREFIX_BYTES or (offsets + lengths).max() > size or (np.diff(offsets) < 0).any():
            return False
        first = offsets - PREFIX_BYTES
        cuts = np.flatnonzero(np.diff(first // _CHECKED_BYTES)) + 1
        for low, high in zip((0, *cuts.tolist()), (*cuts.tolist(), len(first)), strict=True):
            start = int(first[low]) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            end = int(first[high - 1]) + PREFIX_BYTES
            with mmap.mmap(file.fileno(), end - start, access=mmap.ACCESS_READ, offset=start) as view:
                body = np.frombuffer(view, np.uint8)
                prefix = body[first[low:high, None] - start + np.arange(PREFIX_BYTES)]
                del body  # the map cannot close while an array looks into it
            if (prefix.view("<u4")[:, 0] != lengths[low:high]).any():
                return False
    return True


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
