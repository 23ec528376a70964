"""Shards of the version before that the next one holds unchanged: they get a second name instead of being written again.

A shard is shared if every row of it is in the new version, in the same split and with the same values, and if it is at least half
full: small ones are written again with the new rows, so that their number does not grow with the versions.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError
from pipelines.lake.arrow_input import arrow_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SETS
from pipelines.training.building.limits import BUCKET_ROWS, Spill
from pipelines.training.building.part_files import GROUP, SortedPart
from pipelines.training.building.recipe import Recipe
from pipelines.training.building.write_shard import ShardDone, describe_shard
from pipelines.training.manifest import (
    MANIFEST_NAME,
    ColumnEntry,
    FileEntry,
    Manifest,
    load_manifest,
    map_set_file,
    open_set_file,
)

Int64s = npt.NDArray[np.int64]
_OLD, _NEW = 0, 1


@dataclass(frozen=True, slots=True)
class SharedShard:
    """A shard of the version before: its split and file; `mapped`: its rows without payload, where an index has them."""

    split: int
    path: Path
    entry: FileEntry
    mapped: pa.Table | None

    @property
    def rows(self) -> pa.Table:
        """Its rows without payload, with the places of payloads; read from the shard where there is no index.

        Raises:
            CorruptLakeError: the file cannot be read.
        """
        return _read(self.path.parent, self.entry) if self.mapped is None else self.mapped

    def link(self, folder: Path, name: str) -> ShardDone:
        """Give its file a second name in a folder."""
        target = folder / name
        target.unlink(missing_ok=True)
        os.link(self.path, target)
        return describe_shard(msgspec.structs.replace(self.entry, path=name), self.rows)


def shared_shards(
    lake: Lake, recipe: Recipe, columns: tuple[ColumnEntry, ...], parts: Sequence[SortedPart], version: int
) -> list[SharedShard]:
    """Find the shards to share with a version, and leave their rows out of the parts.

    Args:
        lake: a folder; in a bucket nothing is shared.
        recipe: of the new version.
        columns: of the new version.
        parts: its rows, with splits assigned and limits applied.
        version: of the version before.

    Raises:
        CorruptLakeError: a file of the version before cannot be read.
    """
    folder = lake.root / SETS / recipe.spec.id / str(version)
    before = load_manifest(folder / MANIFEST_NAME)
    has_weights = recipe.spec.balance is not None and bool(recipe.spec.balance.weights)
    is_alike = (before.builder, before.columns, before.has_payload) == (recipe.builder, columns, recipe.has_payload)
    if not lake.store.renames_folders or recipe.order != "shuffled" or has_weights or before.arrays or not is_alike:
        return []
    candidates = [shard for shard in _shards(folder, before, recipe) if _is_full(shard.entry, recipe)]
    if not candidates:
        return []
    total = sum(shard.entry.rows for shard in candidates) + sum(part.summary.rows for part in parts)
    with TemporaryDirectory(prefix="shared-", dir=parts[0].folder) as scratch:
        spill = Spill(Path(scratch), max(1, -(-total // BUCKET_ROWS)))
        _spill(spill, candidates, parts, [column.name for column in columns])
        changed = {number for bucket in spill.buckets(again=True) for number in _changed(bucket)}
        shared = [shard for number, shard in enumerate(candidates) if number not in changed]
        if shared:
            _leave_out(spill, parts, changed)
    return shared


def _is_full(entry: FileEntry, recipe: Recipe) -> bool:
    """Whether a shard is within the limits and at least half full."""
    limits = recipe.limits
    is_within = entry.rows <= limits.max_rows and (not recipe.has_payload or entry.bytes <= 2 * limits.max_bytes)
    is_half = 2 * entry.rows >= limits.max_rows or (recipe.has_payload and 2 * entry.bytes >= limits.max_bytes)
    return is_within and is_half and entry.rows > 0


def _shards(folder: Path, before: Manifest, recipe: Recipe) -> Iterator[SharedShard]:
    for number, (split, _) in enumerate(recipe.rule.fractions):
        index = next((entry for entry in before.indexes if entry.split == split), None)
        whole = pa.ipc.open_file(map_set_file(folder, index.path)).read_all() if index is not None and index.rows else None
        low = 0
        for entry in before.shards_of(split):
            mapped = None if whole is None else whole.slice(low, entry.rows)
            yield SharedShard(number, folder / entry.path, entry, mapped)
            low += entry.rows


def _read(folder: Path, entry: FileEntry) -> pa.Table:
    try:
        with open_set_file(folder, entry.path) as file:
            return pq.read_table(arrow_file(file))
    except (OSError, pa.ArrowInvalid) as error:
        raise CorruptLakeError(f"{folder / entry.path}: cannot be read: {error}; build with --reassign") from error


def _spill(spill: Spill, shards: Sequence[SharedShard], parts: Sequence[SortedPart], names: list[str]) -> None:
    """Columns: hash of the row and its split; old or new; shard, or part; row in the part."""
    for number, shard in enumerate(shards):
        hashes = _hashes(shard.rows.select(names), np.full(shard.entry.rows, shard.split, np.int64))
        kind = np.full(len(hashes), _OLD)
        spill.add(_bucket(hashes, spill), np.vstack([hashes, kind, np.full(len(hashes), number), np.arange(len(hashes))]))
    for number, part in enumerate(parts):
        at = np.flatnonzero(part.kept())
        splits = part.splits()[np.array(part.numbers()[GROUP])[at]]
        hashes = _hashes(part.rows().select(names).take(pa.array(at)), splits)
        spill.add(_bucket(hashes, spill), np.vstack([hashes, np.full(len(at), _NEW), np.full(len(at), number), at]))


def _hashes(rows: pa.Table, splits: Int64s) -> Int64s:
    """(rows,) 64 bits of the values of each row and its split. They are compared within one build only, and never kept."""
    frame = pl.DataFrame(pl.from_arrow(rows)).with_columns(pl.Series("__split", splits))
    return frame.hash_rows().to_numpy().view(np.int64)


def _bucket(hashes: Int64s, spill: Spill) -> Int64s:
    return (hashes.view(np.uint64) % np.uint64(spill.count)).astype(np.int64)


def _ranks(hashes: Int64s) -> Int64s:
    """How many rows of the same hash stand before each row: equal rows are matched one by one."""
    order = np.argsort(hashes, kind="stable")
    ranks = np.empty(len(hashes), np.int64)
    ranks[order] = np.arange(len(order)) - np.searchsorted(hashes[order], hashes[order])
    return ranks


def _count(hashes: Int64s, among: Int64s) -> Int64s:
    """How often each hash stands among others."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, hashes, side="right") - np.searchsorted(ordered, hashes, side="left")


def _changed(bucket: Int64s) -> list[int]:
    """The shards of which a row is not in the new version."""
    hashes, kind, owner, _ = bucket
    old = kind == _OLD
    missing = _ranks(hashes[old]) >= _count(hashes[old], hashes[~old])
    return [int(number) for number in np.unique(owner[old][missing])]


def _leave_out(spill: Spill, parts: Sequence[SortedPart], changed: set[int]) -> None:
    """Leave the rows that shared shards hold out of the parts."""
    left: dict[int, list[Int64s]] = {}
    for hashes, kind, owner, at in spill.buckets():
        held = (kind == _OLD) & ~np.isin(owner, list(changed))
        new = kind == _NEW
        gone = _ranks(hashes[new]) < _count(hashes[new], hashes[held])
        for number in np.unique(owner[new][gone]).tolist():
            left.setdefault(number, []).append(at[new][gone & (owner[new] == number)])
    for number, rows in left.items():
        kept = parts[number].kept()
        kept[np.concatenate(rows)] = False
        parts[number].keep(kept)


def index_batches(shard: SharedShard) -> Iterator[pa.RecordBatch]:
    """Its rows, with the places of their payloads, as the index of a split holds them."""
    yield from shard.rows.to_batches()
