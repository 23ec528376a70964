"""As-of joins: for each sample the row of another stream of the same device that is nearest in event time.

The other stream is read in batches and never held: of each batch only the rows that are the nearest so far stay. The order
of (distance, side, epoch, seq) decides between two rows, so the result does not depend on where batches end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl
import pyarrow as pa

from pipelines.errors import RefusedError

Direction = Literal["nearest", "backward", "forward"]
CHUNK_ROWS = 1 << 20
_US = 1_000_000
_TIME, _DEVICE, _ROW = "__time", "device", "__row"
_FOUND, _DISTANCE, _IS_AFTER, _EPOCH, _SEQ = "__found", "__distance", "__is_after", "__epoch", "__seq"
_KEY = (_DEVICE, "epoch", "seq", "event_time")
# The nearest; at equal distance the one before the sample; of several at one moment the one captured last.
_RANK = [_ROW, _DISTANCE, _IS_AFTER, _EPOCH, _SEQ]
_DESCENDING = [False, False, False, True, True]


@dataclass(frozen=True, slots=True)
class AsOf:
    """What to take from a row and how near it must be.

    `columns`: from each column of the other stream to its name in the result. `age`: name of a column for the seconds from the
    row to the sample, negative where the row is later; none if empty. `where`: name and value that a row must have, for a pivot.
    """

    columns: Mapping[str, str]
    tolerance_us: int
    direction: Direction = "nearest"
    age: str = ""
    where: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """The new columns, one row for each sample, and how many samples found a row."""

    columns: pa.Table
    matched: int


def join_as_of(samples: pa.Table, batches: Iterable[pa.RecordBatch], joins: list[AsOf], schema: pa.Schema) -> list[Joined]:
    """Find for each sample the nearest rows among some batches, once for each join.

    Args:
        samples: rows with `device` and `event_time`; a sample without a time finds nothing.
        batches: the other stream's rows, in any order, with key, event time and the columns of the joins.
        joins: what to find; all see the same batches, which are read once.
        schema: types of the batches.

    Raises:
        RefusedError: the other stream lacks a column.
    """
    wanted = {name for join in joins for name in (*join.columns, *((join.where[0],) if join.where else ()))}
    missing = sorted({*wanted, *_KEY} - set(schema.names))
    if missing:
        raise RefusedError(f"no column {', '.join(missing)} to join; there are {', '.join(schema.names)}")
    left = _timed(pl.DataFrame(pl.from_arrow(samples.select([_DEVICE, "event_time"])))).with_row_index(_ROW)
    left = left.filter(pl.col(_TIME).is_not_null()).sort(_DEVICE, _TIME)
    best: list[pl.DataFrame | None] = [None] * len(joins)
    for chunk in _chunks(batches):
        right = _timed(chunk).filter(pl.col(_TIME).is_not_null())
        best = [_better(found, _candidates(left, right, join)) for found, join in zip(best, joins, strict=True)]
    return [_aligned(len(samples), found, join, schema) for found, join in zip(best, joins, strict=True)]


def seconds_as_us(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * _US)


def _timed(frame: pl.DataFrame) -> pl.DataFrame:
    times = pl.col("event_time").cast(pl.Datetime("us", "UTC")).cast(pl.Int64)
    return frame.with_columns(pl.col(_DEVICE).cast(pl.String), times.alias(_TIME)).drop("event_time")


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterable[pl.DataFrame]:
    """Batches put together to about a million rows, so that the samples are searched seldom."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            rows += batch.num_rows
        if rows >= CHUNK_ROWS:
            yield pl.DataFrame(pl.from_arrow(pa.Table.from_batches(waiting)))
            waiting, rows = [], 0
    if waiting:
        yield pl.DataFrame(pl.from_arrow(pa.Table.from_batches(waiting)))


def _candidates(left: pl.DataFrame, right: pl.DataFrame, join: AsOf) -> pl.DataFrame:
    """For each sample the nearest row of one chunk on each side that the direction allows; samples without one are left out."""
    if join.where is not None:
        name, value = join.where
        held = pl.all_horizontal(pl.col(column).is_not_null() for column in join.columns)
        right = right.filter((pl.col(name) == value) & held)
    right = right.select(
        pl.col(_DEVICE), pl.col(_TIME), pl.col(_TIME).alias(_FOUND), pl.col("epoch").alias(_EPOCH), pl.col("seq").alias(_SEQ),
        *(pl.col(column).alias(new) for column, new in join.columns.items()),
    ).sort(_DEVICE, _TIME, _EPOCH, _SEQ).unique([_DEVICE, _TIME], keep="last", maintain_order=True)  # fmt: skip
    near = _within_reach(left, right, join.tolerance_us)
    sides: tuple[Literal["backward", "forward"], ...] = ("backward", "forward")
    found = [
        near.join_asof(right, on=_TIME, by=_DEVICE, strategy=side, tolerance=join.tolerance_us, check_sortedness=False)
        for side in sides
        if join.direction in ("nearest", side)
    ]
    all_found = pl.concat(found).filter(pl.col(_FOUND).is_not_null())
    return _first_of_each(
        all_found.with_columns(
            (pl.col(_TIME) - pl.col(_FOUND)).abs().alias(_DISTANCE), (pl.col(_FOUND) > pl.col(_TIME)).alias(_IS_AFTER)
        )
    )


def _within_reach(left: pl.DataFrame, right: pl.DataFrame, tolerance_us: int) -> pl.DataFrame:
    """The samples that a chunk can have rows for: most chunks hold a short time only."""
    if not len(right):
        return left.clear()
    low, high = right.select(pl.col(_TIME).min().alias("low"), pl.col(_TIME).max().alias("high")).row(0)
    return left.filter(pl.col(_TIME).is_between(low - tolerance_us, high + tolerance_us))


def _better(best: pl.DataFrame | None, candidates: pl.DataFrame) -> pl.DataFrame:
    """The nearest rows after one more chunk; samples that it has nothing for keep theirs untouched."""
    if best is None or not len(candidates):
        return candidates if best is None else best
    touched = best.join(candidates.select(_ROW), on=_ROW, how="semi")
    rest = best.join(candidates.select(_ROW), on=_ROW, how="anti")
    return pl.concat([rest, _first_of_each(pl.concat([touched, candidates]))])


def _first_of_each(found: pl.DataFrame) -> pl.DataFrame:
    return found.sort(_RANK, descending=_DESCENDING).unique(_ROW, keep="first", maintain_order=True)


def _aligned(rows: int, found: pl.DataFrame | None, join: AsOf, schema: pa.Schema) -> Joined:
    """The found values next to the samples, nulls where there are none, with the types of the other stream."""
    fields = [pa.field(new, schema.field(column).type) for column, new in join.columns.items()]
    if join.age:
        fields.append(pa.field(join.age, pa.float64()))
    if found is None or not len(found):
        return Joined(_nulls(fields, rows), 0)
    age = ((pl.col(_TIME) - pl.col(_FOUND)) / _US).alias(join.age or _FOUND)
    every = pl.select(pl.int_range(rows, dtype=pl.UInt32).alias(_ROW))
    values = found.select(_ROW, *(pl.col(new) for new in join.columns.values()), *([age] if join.age else []))
    beside = every.join(values, on=_ROW, how="left", maintain_order="left").drop(_ROW)
    return Joined(beside.to_arrow().cast(pa.schema(fields)), len(found))


def _nulls(fields: list[pa.Field], rows: int) -> pa.Table:
    return pa.table([pa.nulls(rows, field.type) for field in fields], schema=pa.schema(fields))
