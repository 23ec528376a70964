"""Roll-ups made anew for a span of time whose rows were made anew: a roll-up adds up, so it cannot take back.

Whoever changes values of rows that are there leaves word of it before its commit (`runs/stale/`), and takes the word away
once the minutes are rolled up again; if it dies between the two, the next maintenance does it. Doing it twice changes nothing.
"""

import hashlib
from collections.abc import Collection, Mapping

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from pipelines.errors import ConflictError, CorruptLakeError
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import STALE, stale_path, stream_table
from pipelines.lake.private_values import private_of_stream
from pipelines.lake.reference import table_path
from pipelines.lake.rollup import MINUTE_US, ROLLUP_APP, ROLLUP_SCHEMA, merged_table, rolled_rows, rollup_table
from pipelines.lake.swap import live_sizes, swap_files
from pipelines.lake.table import open_table
from pipelines.lake.workplace import workplace

log = structlog.get_logger(__name__)


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
