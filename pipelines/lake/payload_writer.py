"""Write Parquet whose payload values can be read with one pread, while every other tool still sees plain Parquet.

A payload column that is PLAIN, uncompressed, without dictionary and with one page per row group lies in the file as
``[4-byte little-endian length][bytes]...`` and ends where the column chunk ends. So each value's offset follows from the
footer and the lengths. That is a property of the writer, not of the format: it is checked value by value after writing.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import beside_path, sync_folder
from pipelines.errors import CorruptLakeError, RefusedError

PAYLOAD_COLUMN = "payload"
MAX_GROUP_ROWS = 1_024
MAX_GROUP_BYTES = 32 * 1024 * 1024
MAX_VALUE_BYTES = 2_000_000_000  # a Parquet page's size is an int32
_PREFIX_BYTES = 4
_HASH_BLOCK_BYTES = 1024 * 1024

Int64s = npt.NDArray[np.int64]


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
    ends = np.concatenate(([0], np.cumsum(lengths + _PREFIX_BYTES)))
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
        steps = lengths[low : low + rows] + _PREFIX_BYTES
        offsets[low : low + rows] = end - np.cumsum(steps[::-1])[::-1] + _PREFIX_BYTES
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
        inside = bool(offsets.min() >= _PREFIX_BYTES and (offsets + lengths).max() <= len(body))
        prefix = body[offsets[:, None] + np.arange(-_PREFIX_BYTES, 0)] if inside else np.empty((0, _PREFIX_BYTES), np.uint8)
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
