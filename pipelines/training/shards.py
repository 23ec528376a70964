"""Write the files of one split: shards, and for sets with a payload the index that a reader maps into memory."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import beside_path
from pipelines.errors import BadReferenceError, CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.payload import PAYLOAD_COLUMN, PayloadRefs, PayloadWriter, group_bounds
from pipelines.lake.reference import sample_label
from pipelines.training.manifest import FileEntry
from pipelines.training.split import shard_bounds

INDEX_BATCH_ROWS = 65_536
PAYLOAD_DIGEST = "payload_sha256"
REFERENCE_COLUMNS = ("payload_shard", "payload_row", "payload_offset", "payload_length")
_TABULAR_GROUP_ROWS = 131_072
_HASH_THREADS = 4
_HASH_ROWS = 64
_SMALL_BYTES = 16 * 1024
NAMED_BY = ("stream", "device", "epoch", "seq")
_HASH_BLOCK_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024 * 1024


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
    """How large a shard may become, and how large a payload may be to stand in a set at all."""

    max_rows: int = 1_000_000
    max_bytes: int = 256 * 1024 * 1024
    max_payload_bytes: int = 1024 * 1024 * 1024


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
        for low, high in _read_bounds(lengths):
            writer.append(_with_payload(lake, rows, facts, low, high))
        shard = writer.finish()
    index = facts.append_column("payload_offset", shard.offsets).append_column("payload_length", shard.lengths)
    return WrittenShard(FileEntry(split, path.name, shard.rows, shard.bytes, shard.sha256), index)


def _read_bounds(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Whole row groups put together to what is read at once: the more, the longer the runs in the lake's files."""
    low, held = 0, 0
    for start, end in group_bounds(lengths):
        size = int(lengths[start:end].sum())
        if held and held + size > _READ_BYTES:
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
    """Rows low..high with their payloads; at most one row group of bytes is held."""
    part = rows.slice(low, high - low)
    offsets, lengths, numbers = (
        np.asarray(pc.cast(part.column(name).fill_null(0), pa.int64()).to_numpy(), np.int64)
        for name in ("payload_offset", "payload_length", "payload_row")
    )

    def named(row: int) -> str:
        return sample_label(*(part.column(name)[row].as_py() for name in NAMED_BY))

    bodies = lake.view().payloads(PayloadRefs(part.column("payload_shard").to_pylist(), offsets, lengths, numbers, named))
    if PAYLOAD_DIGEST in part.schema.names:
        _check_digests(bodies, part.column(PAYLOAD_DIGEST).to_pylist(), named)
    return facts.slice(low, high - low).append_column(PAYLOAD_COLUMN, bodies)


def _check_digests(bodies: pa.Array, wanted: list[str | None], named: Callable[[int], str]) -> None:
    """Compare payloads with their sha256, without a copy, on several threads."""
    ends = np.frombuffer(bodies.buffers()[1], np.int32, len(bodies) + 1).tolist()
    memory = memoryview(bodies.buffers()[2])

    def wrong_of(low: int) -> int | None:
        for row in range(low, min(low + step, len(wanted))):
            if wanted[row] is not None and hashlib.sha256(memory[ends[row] : ends[row + 1]]).hexdigest() != wanted[row]:
                return row
        return None

    # Small payloads are not worth a thread: the interpreter is held for most of their work.
    step = max(_HASH_ROWS, _SMALL_BYTES * _HASH_ROWS // max(1, len(memory) // max(1, len(wanted))))
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        wrong = [row for row in pool.map(wrong_of, range(0, len(wanted), step)) if row is not None]
    if wrong:
        raise CorruptLakeError(
            f"{named(wrong[0])}: the payload in the lake is not the one that was captured: its sha256 is another; "
            "restore its shard from a backup, or leave the row out (--where)"
        )


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
