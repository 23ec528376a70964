"""Write the files of one split: shards, and for sets with a payload the index that a reader maps into memory."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import BadReferenceError, CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.payload import PAYLOAD_COLUMN, PayloadRefs, PayloadShard, PayloadWriter, group_bounds
from pipelines.lake.reference import sample_label
from pipelines.training.manifest import FileEntry
from pipelines.training.split import shard_bounds

INDEX_BATCH_ROWS = 65_536
PAYLOAD_DIGEST = "payload_sha256"
REFERENCE_COLUMNS = ("payload_shard", "payload_row", "payload_offset", "payload_length")
_TABULAR_GROUP_ROWS = 131_072
_HASH_THREADS = 4
_HASH_ROWS = 64
NAMED_BY = ("stream", "device", "epoch", "seq")
_HASH_BLOCK_BYTES = 1024 * 1024


class Progress:
    """Told how a build goes; this one says nothing to anybody."""

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
        path = folder / f"{split}-{number:05d}.parquet"
        part = rows.slice(low, high - low)
        pq.write_table(part, path, compression="zstd", row_group_size=_TABULAR_GROUP_ROWS, write_page_checksum=True)
        entries.append(file_entry(path, split, len(part)))
        progress.wrote(len(part))
    return entries


def write_payload_split(
    lake: Lake, folder: Path, split: str, rows: pa.Table, limits: ShardLimits, progress: Progress
) -> tuple[list[FileEntry], FileEntry]:
    """Write a split with payload: shards that one pread reads, and the index of all their rows.

    Raises:
        RefusedError: a payload is above the limit.
        CorruptLakeError: a payload is missing from the lake, or is not what its sha256 says.
    """
    _check_numbers(rows)
    lengths = pc.cast(rows.column("payload_length"), pa.int64()).to_numpy()
    if len(lengths) and int(lengths.max()) > limits.max_payload_bytes:
        raise RefusedError(
            f"a payload of {lengths.max()} bytes is above {limits.max_payload_bytes} for a set; build it from the stream's chips"
        )
    facts = rows.drop_columns([name for name in REFERENCE_COLUMNS if name in rows.schema.names])
    entries: list[FileEntry] = []
    shards: list[PayloadShard] = []
    for number, (low, high) in enumerate(shard_bounds(lengths, limits.max_rows, limits.max_bytes)):
        path = folder / f"{split}-{number:05d}.parquet"
        with PayloadWriter(path, facts.schema.append(pa.field(PAYLOAD_COLUMN, pa.binary()))) as writer:
            for start, end in group_bounds(lengths[low:high]):
                writer.append(_with_payload(lake, rows, facts, low + start, low + end))
                progress.wrote(end - start)
            shard = writer.finish()
        shards.append(shard)
        entries.append(FileEntry(split, path.name, shard.rows, shard.bytes, shard.sha256))
    return entries, _write_index(folder / f"{split}.index.arrow", split, facts, shards)


def _check_numbers(rows: pa.Table) -> None:
    """Refuse a row whose payload has a place but no size, or one that no file has, before anything is counted by it."""
    for name in ("payload_offset", "payload_length"):
        wrong = pc.fill_null(pc.less(rows.column(name), 0), True)  # the library's own
        if pc.any(wrong).as_py():
            row = rows.slice(pc.index(wrong, True).as_py(), 1).to_pylist()[0]  # likewise
            sample = sample_label(*(row[column] for column in NAMED_BY))
            raise BadReferenceError(f"{sample}: {name} is {row[name]}; no payload has such; restore the row or leave it out")


def file_entry(path: Path, split: str, rows: int) -> FileEntry:
    """Make a file durable and describe it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
        os.fsync(file.fileno())
        return FileEntry(split, path.name, rows, file.tell(), digest.hexdigest())


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
        for row in range(low, min(low + _HASH_ROWS, len(wanted))):
            if wanted[row] is not None and hashlib.sha256(memory[ends[row] : ends[row + 1]]).hexdigest() != wanted[row]:
                return row
        return None

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        wrong = [row for row in pool.map(wrong_of, range(0, len(wanted), _HASH_ROWS)) if row is not None]
    if wrong:
        raise CorruptLakeError(
            f"{named(wrong[0])}: the payload in the lake is not the one that was captured: its sha256 is another; "
            "restore its shard from a backup, or leave the row out (--where)"
        )


def _write_index(path: Path, split: str, facts: pa.Table, shards: list[PayloadShard]) -> FileEntry:
    """All batches but the last have the same number of rows, so a reader finds row i by division."""
    offsets = pa.chunked_array([shard.offsets for shard in shards], pa.int64())
    lengths = pa.chunked_array([shard.lengths for shard in shards], pa.int64())
    whole = facts.append_column("payload_offset", offsets).append_column("payload_length", lengths)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        for batch in _even_batches(whole):
            writer.write_batch(batch)
    return file_entry(path, split, len(whole))


def _even_batches(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    for low in range(0, len(rows), INDEX_BATCH_ROWS):
        yield rows.slice(low, INDEX_BATCH_ROWS).combine_chunks().to_batches()[0]
