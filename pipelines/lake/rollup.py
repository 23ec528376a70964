"""Per-minute roll-ups of telemetry: count, least, greatest and mean of each numeric column, so that a year plots in a second.

`rollups/<stream>` is a Delta table of one row per device, minute and column. Each maintenance adds what runs have committed
since the one before, exactly once (application transaction `("rollup", run)`). Samples that come late make a second row for
their minute; `read_rollup` puts such rows together, and so does each compaction.

A process that changes values of rows that are there leaves word of it before its commit (`runs/stale/`), and takes the word away
once the minutes are rolled up again; if it dies between the two, the next maintenance does it. Doing it twice changes nothing.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from deltalake import DeltaTable

from pipelines.errors import ConflictError, CorruptLakeError
from pipelines.lake.commit import commit_once, committed_run, live_sizes, swap_files
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, ROLLUPS, STALE, STREAMS, stale_path, stream_table
from pipelines.lake.private_values import private_of_stream
from pipelines.lake.reference import table_path
from pipelines.lake.table import dataset_of, open_table
from pipelines.lake.workplace import workplace

log = structlog.get_logger(__name__)

ROLLUP_APP = "rollup"
MINUTE_US = 60_000_000
BATCH_ROWS = 4_000_000
ROLLUP_SCHEMA = pa.schema(
    [
        pa.field("device", pa.string()),
        pa.field("minute", pa.timestamp("us", "UTC")),
        pa.field("column", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("min", pa.float64()),
        pa.field("max", pa.float64()),
        pa.field("mean", pa.float64()),
    ]
)
_STANDARD = frozenset({"device", "epoch", "seq", "event_time", "received_at", "run"})


def rollup_table(stream: str) -> str:
    """The roll-ups of a stream, relative to the lake root."""
    return f"{ROLLUPS}/{stream}"


def roll_up_all(lake: Lake, private: Mapping[str, Collection[str]] | None = None) -> dict[str, int]:
    """Roll up what runs have committed since the last time; the rows read per stream.

    Args:
        lake: the lake.
        private: per stream the columns that contracts call private; those that its table was told of are left out, too.

    Raises:
        ConflictError: another maintenance is at work.
        CorruptLakeError: a table cannot be read.
    """
    upto = committed_run(lake, COMMITS)
    private_columns = private or {}
    return {stream: roll_up(lake, stream, upto, private_columns.get(stream, ())) for stream in lake.folders(STREAMS)}


def roll_up(lake: Lake, stream: str, upto: int, private: Collection[str] = ()) -> int:
    """Roll up one stream's rows of the runs up to `upto` that are not rolled up yet; how many rows those were."""
    table = open_table(lake, stream_table(stream))
    if table is None or any(field.name == "payload_shard" for field in table.schema().fields):
        return 0  # frames and chips have no curves
    done = open_table(lake, rollup_table(stream))
    after = 0 if done is None else done.transaction_version(ROLLUP_APP) or 0
    if after >= upto:
        return 0
    private = private_of_stream(lake, stream_table(stream), private)
    frame, count = rolled_rows(table, (pc.field("run") > after) & (pc.field("run") <= upto), private)
    if frame is None:
        return 0
    rows = merged(frame).to_arrow().cast(ROLLUP_SCHEMA)
    file = write_table_file(lake, rollup_table(stream), f"{upto:012d}.parquet", rows)
    commit_once(lake, rollup_table(stream), [file], ROLLUP_SCHEMA, upto, app=ROLLUP_APP)
    return count


def rolled_rows(table: DeltaTable, wanted: Any, private: Collection[str]) -> tuple[pl.DataFrame | None, int]:
    """Some rows of a stream's table rolled up, a minute perhaps in several pieces, and how many rows those were.

    A mean of a place where somebody was is such a place: private columns have no roll-up.
    """
    dataset = dataset_of(table)
    left_out = _STANDARD | frozenset(private)
    columns = [field.name for field in dataset.schema if field.name not in left_out and _is_numeric(field.type)]
    parts: list[pl.DataFrame] = []
    count = 0
    named = ["device", "event_time", *columns]
    for batch in dataset.to_batches(columns=named, filter=wanted, batch_size=BATCH_ROWS) if columns else ():
        if batch.num_rows:
            parts.append(_rolled(pa.Table.from_batches([batch]), columns))
            count += batch.num_rows
    return (pl.concat(parts) if parts else None), count


def read_rollup(lake: Lake, stream: str, devices: Sequence[str] = (), columns: Sequence[str] = ()) -> pa.Table:
    """The roll-ups of a stream: one row per device, minute and column, in that order.

    Args:
        lake: the lake.
        stream: the stream.
        devices: only these, all if empty.
        columns: only these, all if empty.
    """
    table = open_table(lake, rollup_table(stream))
    if table is None:
        return ROLLUP_SCHEMA.empty_table()
    wanted: Any = None
    for name, values in (("device", devices), ("column", columns)):
        if values:
            here = pc.field(name).isin(list(values))
            wanted = here if wanted is None else wanted & here
    rows = table.to_pyarrow_dataset().to_table(filter=wanted)
    return merged_table(rows)


def merged(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per device, minute and column; means weighed by their counts."""
    total = pl.col("count").sum()
    return (
        rows.group_by("device", "column", "minute")
        .agg(total, pl.col("min").min(), pl.col("max").max(), (pl.col("mean") * pl.col("count")).sum() / total)
        .sort("device", "column", "minute")
        .select(ROLLUP_SCHEMA.names)
    )


def merged_table(rows: pa.Table) -> pa.Table:
    """`merged`, of and as an Arrow table."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return merged(frame).to_arrow().cast(ROLLUP_SCHEMA)


def _rolled(rows: pa.Table, columns: Sequence[str]) -> pl.DataFrame:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    minute = (pl.col("event_time").dt.truncate("1m")).alias("minute")
    parts = [
        frame.lazy()
        .filter(pl.col(name).is_not_null())
        .group_by("device", minute)
        .agg(
            pl.len().cast(pl.Int64).alias("count"),
            pl.col(name).min().cast(pl.Float64).alias("min"),
            pl.col(name).max().cast(pl.Float64).alias("max"),
            pl.col(name).cast(pl.Float64).mean().alias("mean"),
        )
        .with_columns(pl.lit(name).alias("column"))
        for name in columns
    ]
    whole = (
        pl.concat(parts).collect()
        if parts
        else pl.DataFrame(schema=["device", "minute", "count", "min", "max", "mean", "column"])
    )
    return whole.select(ROLLUP_SCHEMA.names)


def _is_numeric(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


class Stale(msgspec.Struct, frozen=True):
    """Minutes of a stream whose roll-ups may be of values that are no more: from `low_us` to `high_us`, both included."""

    stream: str
    low_us: int
    high_us: int

    @classmethod
    def of(cls, stream: str, first_us: int, last_us: int) -> "Stale":
        """The whole minutes in which these times lie."""
        return cls(stream, first_us // MINUTE_US * MINUTE_US, last_us // MINUTE_US * MINUTE_US)


def leave_word(lake: Lake, stale: Stale) -> None:
    """See to it that these minutes will be rolled up again, whatever happens now.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    body = msgspec.json.encode(stale)
    path = stale_path(lake.root, f"{stale.stream}-{hashlib.sha256(body).hexdigest()[:16]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lake.put(path, body)


def roll_up_again(lake: Lake, private: Mapping[str, Collection[str]] | None = None) -> dict[str, int]:
    """Roll up all minutes of which there is word; the rows read per stream. For the holder of the maintenance lease.

    Args:
        lake: the lake.
        private: per stream the columns that contracts call private, as for `roll_up_all`.

    Raises:
        ConflictError: another maintenance is at work.
        CorruptLakeError: a word or a table cannot be read.
        RetryLaterError: the storage is away.
    """
    done: dict[str, int] = {}
    for file in lake.files(STALE):
        path = lake.root / file.name
        if path.suffix != ".json":
            continue
        try:
            stale = msgspec.json.decode(lake.read(path), type=Stale)
        except msgspec.MsgspecError as error:
            raise CorruptLakeError(f"{path}: not what it should be ({error}); delete it and rollups/ of its stream") from error
        hidden = private_of_stream(lake, stream_table(stale.stream), (private or {}).get(stale.stream, ()))
        with workplace(lake, "rollup") as there:
            rows = _again(there, stale, hidden)
        lake.delete(path)
        done[stale.stream] = done.get(stale.stream, 0) + rows
        log.info("rolled_up_again", stream=stale.stream, rows=rows, minutes=(stale.high_us - stale.low_us) // MINUTE_US + 1)
    return done


def _again(lake: Lake, stale: Stale, private: Collection[str]) -> int:
    name = rollup_table(stale.stream)
    table, rolled = open_table(lake, stream_table(stale.stream)), open_table(lake, name)
    if table is None or rolled is None:
        return 0  # the first roll-up will read it all
    upto = rolled.transaction_version(ROLLUP_APP) or 0
    low, high = (pa.scalar(at_us, pa.timestamp("us", "UTC")) for at_us in (stale.low_us, stale.high_us + MINUTE_US))
    time = pc.field("event_time")
    frame, count = rolled_rows(table, (time >= low) & (time < high) & (pc.field("run") <= upto), private)
    old, parts = _without(lake, name, sorted(live_sizes(rolled)), low, high)
    if frame is not None:
        parts.append(frame.to_arrow().cast(ROLLUP_SCHEMA))
    rows = merged_table(pa.concat_tables([*parts, ROLLUP_SCHEMA.empty_table()]))
    digest = hashlib.sha256(f"{stale}\n{table.version()}\n{old}".encode()).hexdigest()[:24]
    new = [write_table_file(lake, name, f"again-{digest}.parquet", rows)] if rows.num_rows else []
    if (old or new) and not swap_files(lake, name, old, new, {"catchment.rollup": "again"}, changes_rows=True):
        raise ConflictError(f"{name}: somebody else has rewritten it meanwhile; the next maintenance tries again")
    lake.evict([lake.root / file.path for file in new])
    return count


def _without(lake: Lake, name: str, paths: list[str], low: pa.Scalar, high: pa.Scalar) -> tuple[list[str], list[pa.Table]]:
    """The files that have minutes of the span, and what else is in them."""
    old: list[str] = []
    parts: list[pa.Table] = []
    for path in paths:
        rows = pq.read_table(table_path(lake, name, path), partitioning=None, page_checksum_verification=True)
        lake.evict([lake.root / name / path])
        minute = rows.column("minute")
        is_within = pc.and_(pc.greater_equal(minute, low), pc.less(minute, high))
        if pc.any(is_within).as_py():
            old.append(path)
            parts.append(rows.filter(pc.invert(is_within)).cast(ROLLUP_SCHEMA))
    return old, parts


def span_of(stream: str, *frames: pl.DataFrame) -> Stale | None:
    """The minutes in which the rows of these frames lie; None if they have no times."""
    times = pl.concat([frame.select(pl.col("event_time").dt.epoch("us")) for frame in frames])["event_time"].drop_nulls()
    if not len(times):
        return None
    first, last = times.min(), times.max()
    assert isinstance(first, int)
    assert isinstance(last, int)
    return Stale.of(stream, first, last)
