"""The second graph's item: one shard, its rows taken from every part, its payloads from the lake, and its entry in the manifest.

Payloads are read some tens of megabytes at a time in the order of the lake's files and written in the order of the set.
"""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.training.building.part_files import GROUP, SortedPart, save_table
from pipelines.training.building.recipe import Recipe, balance_column
from pipelines.training.building.shard_plan import shard_slices
from pipelines.training.manifest import FileEntry
from pipelines.training.shards import write_payload_shard_of, write_tabular_shard

Int64s = npt.NDArray[np.int64]
_WEIGHTS = "weights.json"


class ShardRef(msgspec.Struct, frozen=True, array_like=True):
    """A shard: the number of its split, its number among those of the split that are written, its rows, and its file's number."""

    split: int
    number: int
    rows: int
    file_number: int


class ShardDone(msgspec.Struct, frozen=True):
    """What was written of a shard, and what the manifest counts over all of them."""

    entry: FileEntry
    tags: dict[str, int]
    policies: tuple[str, ...]


class Weights(msgspec.Struct, frozen=True):
    """The column of weights: for each split by name, how often a row of each class counts."""

    column: str
    by_class: dict[str, dict[str, float]]

    def save(self, work: Path) -> None:
        """Write it where workers read it."""
        (work / _WEIGHTS).write_bytes(msgspec.json.encode(self))


def write_shard(lake: Lake, work: Path, recipe: Recipe, parts: int, shard: ShardRef) -> None:
    """Write a shard, unless it is there.

    Raises:
        RefusedError: a payload is above the limit.
        CorruptLakeError: a payload is missing from the lake, or is not what its sha256 says.
    """
    if _done_path(work, shard).exists():
        return
    split = recipe.rule.fractions[shard.split][0]
    rows = _weighted(work, recipe, split, _ordered(recipe, _pieces(work, parts, shard)))
    kept = [*recipe.kept_columns(rows.schema)]
    if recipe.spec.balance is not None and recipe.spec.balance.weights:
        kept = [name for name in kept if name != recipe.spec.balance.weights] + [recipe.spec.balance.weights]
    rows = rows.select(kept).combine_chunks()
    if len(rows) != shard.rows:
        raise CorruptLakeError(f"{work}: shard {shard.number} of {split} has {len(rows)} rows, not {shard.rows}; build again")
    path = output_folder(work) / shard_name(split, shard.file_number)
    if recipe.has_payload:
        written = write_payload_shard_of(lake, path, split, rows, recipe.limits)
        _save_index(index_path(work, shard), written.index)
        entry = written.entry
    else:
        entry = write_tabular_shard(path, split, rows)
    done = describe_shard(entry, rows)
    beside = _done_path(work, shard).with_suffix(f".{path.stem}.tmp")
    beside.write_bytes(msgspec.json.encode(done))
    beside.replace(_done_path(work, shard))


def describe_shard(entry: FileEntry, rows: pa.Table) -> ShardDone:
    """Count what the manifest says of all shards together."""
    return ShardDone(entry, _tags(rows), _policies(rows))


def shard_name(split: str, number: int) -> str:
    """The name of the file of a shard."""
    return f"{split}-{number:05d}.parquet"


def finished(work: Path, shard: ShardRef) -> ShardDone:
    """What was written of a shard.

    Raises:
        CorruptLakeError: it is not there.
    """
    try:
        return msgspec.json.decode(_done_path(work, shard).read_bytes(), type=ShardDone)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{_done_path(work, shard)}: cannot be read: {error}; build the set again") from error


def is_finished(work: Path, shard: ShardRef) -> bool:
    """Whether a shard has been written whole."""
    return _done_path(work, shard).exists()


def output_folder(work: Path) -> Path:
    """Where the files of the set are written before it has a number."""
    return work / "set"


def index_path(work: Path, shard: ShardRef) -> Path:
    """The columns of a shard's rows and the places of their payloads, for the index of the split."""
    return work / f"shard-{shard.split:03d}-{shard.number:06d}.index.arrow"


def _pieces(work: Path, parts: int, shard: ShardRef) -> pa.Table:
    """The rows of a shard, part after part, with the numbers they are ordered by."""
    low, high = shard_slices(work, shard.split, shard.number)
    pieces: list[pa.Table] = []
    for number in range(parts):
        part = SortedPart(work, number)
        start, end = int(low[number]), int(high[number])
        if start == end and pieces:
            continue
        numbers = np.array(part.numbers()[:, start:end])
        keep = part.splits()[numbers[GROUP]] == shard.split if end > start else np.zeros(0, bool)
        if part.is_limited:
            keep &= part.kept()[start:end]
        piece = part.rows().slice(start, end - start)
        piece = piece.append_column(_NUMBER, pa.array(numbers[0]))
        pieces.append(piece if keep.all() else piece.filter(pa.array(keep)))
    return pa.concat_tables(pieces)


_NUMBER = "__number"


def _ordered(recipe: Recipe, rows: pa.Table) -> pa.Table:
    if recipe.order == "time":
        keys = [name for name in ("device", "event_time", "epoch", "seq") if name in rows.schema.names]
        by = pc.sort_indices(rows, [(name, "ascending") for name in keys])
    else:
        by = pa.array(np.argsort(rows.column(_NUMBER).to_numpy(), kind="stable"))
    return rows.drop_columns([_NUMBER]).take(by)


def _weighted(work: Path, recipe: Recipe, split: str, rows: pa.Table) -> pa.Table:
    balance = recipe.spec.balance
    if balance is None or not balance.weights:
        return rows
    weights = msgspec.json.decode((work / _WEIGHTS).read_bytes(), type=Weights)
    of_split = weights.by_class.get(split, {})
    values = pc.cast(rows.column(balance_column(recipe.spec)), pa.string())
    place = pc.index_in(values, value_set=pa.array(list(of_split), pa.string())).combine_chunks()
    found = pc.fill_null(pa.array(list(of_split.values()), pa.float64()).take(place), 1.0)
    return rows.append_column(weights.column, found)


def _tags(rows: pa.Table) -> dict[str, int]:
    if "tags" not in rows.schema.names:
        return {}
    counted = pc.value_counts(pc.list_flatten(rows.column("tags")))
    return {str(each["values"]): int(each["counts"]) for each in counted.to_pylist()}


def _policies(rows: pa.Table) -> tuple[str, ...]:
    if "tag_rules" not in rows.schema.names:
        return ()
    return tuple(sorted(filter(None, pc.unique(pc.list_flatten(rows.column("tag_rules"))).to_pylist())))


def _save_index(path: Path, rows: pa.Table) -> None:
    beside = path.with_suffix(".tmp")
    save_table(beside, rows)
    beside.replace(path)


def _done_path(work: Path, shard: ShardRef) -> Path:
    return work / f"shard-{shard.split:03d}-{shard.number:06d}.json"
