"""What two versions of training sets have in common: samples in, out, on another side, of another class. Reads no payload."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.arrow_input import arrow_file
from pipelines.lake.lake import Lake
from pipelines.training.manifest import Manifest, map_set_file, open_set_file
from pipelines.training.select import KEY

SPLIT = "split"
_CHIP = ("spec", "chip_index")
_SHOWN = 20


class Moved(msgspec.Struct, frozen=True):
    """How many samples went from one split, or class, to another; nothing is "" ."""

    before: str
    after: str
    rows: int


class SetDifference(msgspec.Struct, frozen=True):
    """How set B differs from set A. `examples`: some samples of each kind, as `device/epoch/seq`."""

    same: int
    added: int
    removed: int
    moved: tuple[Moved, ...]
    relabelled: tuple[Moved, ...]
    payload_changed: int
    label: str
    examples: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class SetFolder:
    """A version of a set on this machine."""

    folder: Path
    manifest: Manifest

    @property
    def columns(self) -> frozenset[str]:
        """The names of its columns."""
        return frozenset(column.name for column in self.manifest.columns)

    @property
    def label(self) -> str:
        """The column of classes that its spec names; "" without one."""
        label = (self.manifest.spec or {}).get("label")
        return str(label.get("name", "label")) if isinstance(label, dict) else ""


def read_rows(lake: Lake, found: SetFolder, columns: tuple[str, ...]) -> pa.Table:
    """Columns of all rows of a set, and the split of each. Of a set with payload only the index is read.

    Raises:
        CorruptLakeError: a file is missing or cannot be read.
        RetryLaterError: the storage is unavailable.
    """
    parts: list[pa.Table] = []
    for split in found.manifest.split_rows():
        for entry in [each for each in found.manifest.indexes if each.split == split] or found.manifest.shards_of(split):
            lake.local(found.folder / entry.path)
            rows = _read(found.folder, entry.path, list(columns))
            parts.append(rows.append_column(SPLIT, pa.array([split], pa.string()).take(pa.array([0] * len(rows), pa.int8()))))
    return pa.concat_tables(parts)


def difference(lake: Lake, one: SetFolder, other: SetFolder, label: str = "") -> SetDifference:
    """Compare two sets by the keys of their samples.

    Args:
        lake: where they lie.
        one: the set before.
        other: the set after.
        label: column of classes to compare; "": the one that the spec of `other` names, if both have it.

    Raises:
        RefusedError: a set has no such column.
        CorruptLakeError: a file is missing or cannot be read.
    """
    both = one.columns & other.columns
    if label and label not in both:
        raise RefusedError(f"no column {label} in both sets; they share {', '.join(sorted(both))}")
    classes = label or (other.label if other.label in both else "")
    key = [name for name in (*KEY, *_CHIP) if name in both]
    columns = (*key, *(("payload_sha256",) if "payload_sha256" in both else ()), *((classes,) if classes else ()))
    wanted = tuple(dict.fromkeys(columns))
    frames = [pl.DataFrame(pl.from_arrow(read_rows(lake, each, wanted))) for each in (one, other)]
    joined = frames[0].with_columns(pl.lit(value=True).alias("in_a")).join(
        frames[1].with_columns(pl.lit(value=True).alias("in_b")), on=key, how="full", coalesce=True, nulls_equal=True
    ).sort(key)  # fmt: skip
    return _summary(joined, classes, has_payload="payload_sha256" in columns)


def _summary(joined: pl.DataFrame, classes: str, *, has_payload: bool) -> SetDifference:
    there = pl.col("in_a").is_not_null() & pl.col("in_b").is_not_null()
    moved = there & (pl.col(SPLIT) != pl.col(f"{SPLIT}_right"))
    changed = there & pl.col(classes).ne_missing(pl.col(f"{classes}_right")) if classes else pl.lit(value=False)
    payload = there & pl.col("payload_sha256").ne_missing(pl.col("payload_sha256_right")) if has_payload else pl.lit(value=False)
    kinds = {
        "added": joined.filter(pl.col("in_a").is_null()),
        "removed": joined.filter(pl.col("in_b").is_null()),
        "moved": joined.filter(moved),
        "relabelled": joined.filter(changed),
        "payload_changed": joined.filter(payload),
    }
    return SetDifference(
        same=len(joined.filter(there)) - len(joined.filter(moved | changed | payload)),
        added=len(kinds["added"]),
        removed=len(kinds["removed"]),
        moved=_counted(kinds["moved"], SPLIT),
        relabelled=_counted(kinds["relabelled"], classes) if classes else (),
        payload_changed=len(kinds["payload_changed"]),
        label=classes,
        examples={kind: _examples(rows) for kind, rows in kinds.items() if len(rows)},
    )


def _counted(rows: pl.DataFrame, column: str) -> tuple[Moved, ...]:
    pair = [pl.col(name).cast(pl.String).fill_null("") for name in (column, f"{column}_right")]
    counted = (
        rows.group_by([pair[0].alias("before"), pair[1].alias("after")])
        .len()
        .sort("len", "before", "after", descending=[True, False, False])
    )
    return tuple(Moved(*row) for row in counted.iter_rows())


def _examples(rows: pl.DataFrame) -> tuple[str, ...]:
    few = rows.head(_SHOWN).select(pl.concat_str([pl.col(name).cast(pl.String) for name in KEY[1:]], separator="/"))
    return tuple(few.to_series().to_list())


def _read(folder: Path, name: str, columns: list[str]) -> pa.Table:
    try:
        if name.endswith(".arrow"):
            return pa.ipc.open_file(map_set_file(folder, name)).read_all().select(columns)
        with open_set_file(folder, name) as file:
            return pq.read_table(arrow_file(file), columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise CorruptLakeError(f"{folder / name}: cannot be read: {error}; run `set verify`") from error
