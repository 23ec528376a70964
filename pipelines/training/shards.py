"""Write the files of one split: shards, and for sets with a payload the index that a reader maps into memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import beside_path
from pipelines.errors import BadReferenceError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.payload import MAX_GROUP_BYTES, PAYLOAD_COLUMN, PayloadWriter, group_bounds
from pipelines.lake.payload_batch import PayloadRefs
from pipelines.lake.reference import sample_label
from pipelines.training.manifest import FileEntry
from pipelines.training.split import shard_bounds

INDEX_BATCH_ROWS = 65_536
PAYLOAD_DIGEST = "payload_sha256"
REFERENCE_COLUMNS = ("payload_shard", "payload_row", "payload_offset", "payload_length")
_TABULAR_GROUP_ROWS = 131_072
NAMED_BY = ("stream", "device", "epoch", "seq")
_HASH_BLOCK_BYTES = 1024 * 1024


class Progress:
    """Told how a build goes; this one says nothing to anybody."""

    def stage(self, name: str) -> None:
        """A part of the work begins; its rows are counted from 0."""

    def total(self, rows: int) -> None:
        """So many rows will be written."""

    def wrote(self, rows: int) -> None:
        """So many more rows are written."""


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """How large a shard may become, and how large a payload may be to stand in a set at all.

    `block_bytes`: so much payload is read at once, two blocks are held; the shard is the same whatever it is.
    """

    max_rows: int = 1_000_000
    max_bytes: int = 256 * 1024 * 1024
    max_payload_bytes: int = 1024 * 1024 * 1024
    block_bytes: int = 64 * 1024 * 1024


def write_tabular_split(folder: Path, split: str, rows: pa.Table, limits: ShardLimits, progress: Progress) -> list[FileEntry]:
    """Write a split without payload as zstd Parquet."""
    entries: list[FileEntry] = []
    for number, (low, high) in enumerate(shard_bounds(np.ones(len(rows), np.int64), limits.max_rows, limits.max_rows)):
        entries.append(write_tabular_shard(folder / f"{split}-{number:05d}.parquet", split, rows.slice(low, high - low)))
        progress.wrote(high - low)
    return entries


def write_tabular_shard(path: Path, split: str, rows: pa.Table) -> FileEntry:
    """Write a shard without payload; the same rows give the same bytes."""
    beside = beside_path(path)
    pq.write_table(
        rows.combine_chunks(), beside, compression="zstd", row_group_size=_TABULAR_GROUP_ROWS, write_page_checksum=True
    )
    entry = file_entry(beside, split, len(rows), path.name)
    beside.replace(path)
    return entry


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard with payload: its entry in the manifest, and its rows without payload with the places of the payloads."""

    entry: FileEntry
    index: pa.Table


def write_payload_shard_of(lake: Lake, path: Path, split: str, rows: pa.Table, limits: ShardLimits) -> WrittenShard:
    """Write a shard with payload, which one pread reads.

    Args:
        lake: that holds the payloads.
        path: of the shard.
        split: its split.
        rows: of the shard in order, with the places of their payloads in the lake.
        limits: how large a payload may be.

    Raises:
        RefusedError: a payload is above the limit.
        CorruptLakeError: a payload is missing from the lake, or is not what its sha256 says.
    """
    _check_numbers(rows)
    lengths = np.asarray(pc.cast(rows.column("payload_length"), pa.int64()).to_numpy(), np.int64)
    if len(lengths) and int(lengths.max()) > limits.max_payload_bytes:
        raise RefusedError(
            f"a payload of {lengths.max()} bytes is above {limits.max_payload_bytes} for a set; build it from the stream's chips"
        )
    facts = rows.drop_columns([name for name in REFERENCE_COLUMNS if name in rows.schema.names])
    with PayloadWriter(path, facts.schema.append(pa.field(PAYLOAD_COLUMN, pa.binary()))) as writer:
        for block in _blocks(lake, rows, facts, limits.block_bytes):
            writer.append(block)
        shard = writer.finish()
    index = facts.append_column("payload_offset", shard.offsets).append_column("payload_length", shard.lengths)
    return WrittenShard(FileEntry(split, path.name, shard.rows, shard.bytes, shard.sha256), index)


def _blocks(lake: Lake, rows: pa.Table, facts: pa.Table, block_bytes: int) -> Iterator[pa.Table]:
    """Rows with their payloads, some at a time. While one block is written the next is read, but for large values."""
    lengths = np.asarray(pc.cast(rows.column("payload_length"), pa.int64()).to_numpy(), np.int64)
    with ThreadPoolExecutor(1, "set-payloads") as reader:
        ready: Future[pa.Table] | None = None
        for low, high in _read_bounds(lengths, block_bytes):
            is_large = int(lengths[low:high].sum()) > block_bytes
            if is_large and ready is not None:
                yield ready.result()
                ready = None
            following = reader.submit(_with_payload, lake, rows, facts, low, high)
            if ready is not None:
                yield ready.result()
            ready = following
        if ready is not None:
            yield ready.result()


def _read_bounds(lengths: npt.NDArray[np.int64], block_bytes: int) -> Iterator[tuple[int, int]]:
    """Whole row groups put together to what is read at once: two blocks are in memory, whatever a shard's size."""
    low, held = 0, 0
    for start, end in group_bounds(lengths, max_bytes=min(MAX_GROUP_BYTES, block_bytes)):
        size = int(lengths[start:end].sum())
        if held and held + size > block_bytes:
            yield low, start
            low, held = start, 0
        held += size
    if low < len(lengths):
        yield low, len(lengths)


def _check_numbers(rows: pa.Table) -> None:
    """Refuse a row whose payload has a place but no size, or one that no file has, before anything is counted by it."""
    for name in ("payload_offset", "payload_length"):
        wrong = pc.fill_null(pc.less(rows.column(name), 0), True)  # the library's own
        if pc.any(wrong).as_py():
            row = rows.slice(pc.index(wrong, True).as_py(), 1).to_pylist()[0]  # likewise
            sample = sample_label(*(row[column] for column in NAMED_BY))
            raise BadReferenceError(f"{sample}: {name} is {row[name]}; no payload has such; restore the row or leave it out")


def file_entry(path: Path, split: str, rows: int, name: str = "") -> FileEntry:
    """Make a file durable and describe it; `name`: the one that it is to take, if another."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
        os.fsync(file.fileno())
        return FileEntry(split, name or path.name, rows, file.tell(), digest.hexdigest())


def _with_payload(lake: Lake, rows: pa.Table, facts: pa.Table, low: int, high: int) -> pa.Table:
    """Rows low..high with their payloads."""
    part = rows.slice(low, high - low)
    offsets, lengths, numbers = (
        np.asarray(pc.cast(part.column(name).fill_null(0), pa.int64()).to_numpy(), np.int64)
        for name in ("payload_offset", "payload_length", "payload_row")
    )

    def named(row: int) -> str:
        return sample_label(*(part.column(name)[row].as_py() for name in NAMED_BY))

    digests = part.column(PAYLOAD_DIGEST).to_pylist() if PAYLOAD_DIGEST in part.schema.names else None
    shards = part.column("payload_shard").to_pylist()
    bodies = lake.view().payloads(PayloadRefs(shards, offsets, lengths, numbers, named, digests))
    return facts.slice(low, high - low).append_column(PAYLOAD_COLUMN, bodies)


def write_index(path: Path, split: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> FileEntry:
    """Write the index of a split: all batches but the last have the same number of rows, so row i is found by division.

    Args:
        path: of the index.
        split: its name.
        schema: of the index.
        batches: its rows in order, in batches of any size; a few are held.
    """
    rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in _even_batches(schema, batches):
            writer.write_batch(batch)
            rows += batch.num_rows
    return file_entry(path, split, rows)


def _even_batches(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        while rows >= INDEX_BATCH_ROWS:
            whole = pa.Table.from_batches(held, schema)
            yield _one_batch(whole.slice(0, INDEX_BATCH_ROWS))
            held, rows = whole.slice(INDEX_BATCH_ROWS).to_batches(), rows - INDEX_BATCH_ROWS
    if rows:
        yield _one_batch(pa.Table.from_batches(held, schema))


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    return rows.combine_chunks().to_batches()[0]
