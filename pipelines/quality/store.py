"""Keeps what the rows of each run look like: reads the runs of a stream that are new, writes one small file about them.

The table `quality/<stream>` is committed as runs are, with the last run it tells of as its number: told once, whoever else asks.
"""

from collections import Counter, defaultdict
from collections.abc import Collection

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

from pipelines.lake.commit import APP, commit_once
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import QUALITY, QUARANTINE, stream_table
from pipelines.lake.quarantined import kind_of
from pipelines.lake.table import open_table
from pipelines.quality.profile import (
    PROFILE_SCHEMA,
    profile_column,
    profile_rows,
    profile_rules,
    profile_tags,
)
from pipelines.quality.tags import profile_tag_rules
from schemas.contract import Contract

MAX_RUNS = 1_000  # of one file: the rows of so many runs are held, one column at a time


def quality_table(stream: str) -> str:
    """The table, relative to the lake root."""
    return f"{QUALITY}/{stream}"


def keep_quality(lake: Lake, contract: Contract) -> int:
    """Tell of every run of the stream that was not told of yet.

    Returns:
        How many runs were told of.

    Raises:
        ConflictError: others kept writing.
        OSError: the disk refused.
    """
    stream = open_table(lake, stream_table(contract.name))
    if stream is None:
        return 0
    kept = open_table(lake, quality_table(contract.name))
    profiled = (kept.transaction_version(APP) or 0) if kept is not None else 0
    last = stream.transaction_version(APP) or 0
    rows = stream.to_pyarrow_dataset()
    count = 0
    while profiled < last:
        upper = min(profiled + MAX_RUNS, last)
        lines = _lines(lake, rows, _refused(lake, contract.name, profiled, upper), contract, profiled, upper)
        name = f"{profiled + 1:012d}-{upper:012d}.parquet"
        table = lines.to_arrow().cast(PROFILE_SCHEMA)
        file = write_table_file(lake, quality_table(contract.name), name, table, {"bins"})
        commit_once(lake, quality_table(contract.name), [file], PROFILE_SCHEMA, upper, {"bins"})
        count += lines.filter(pl.col("column") == "*").height
        profiled = upper
    return count


def read_quality(lake: Lake, stream: str) -> pl.DataFrame:
    """Everything kept of a stream, by run and column."""
    table = open_table(lake, quality_table(stream))
    kept = PROFILE_SCHEMA.empty_table() if table is None else table.to_pyarrow_table()
    found = pl.from_arrow(kept)
    assert isinstance(found, pl.DataFrame)
    return found.unique(["run", "column"], keep="last").sort("run", "column")


def _lines(
    lake: Lake, rows: ds.Dataset, refused: dict[int, dict[str, int]], contract: Contract, after: int, upper: int
) -> pl.DataFrame:
    present = set(rows.schema.names)
    window = (ds.field("run") > after) & (ds.field("run") <= upper)

    def read(columns: Collection[str]) -> pl.DataFrame:
        found = pl.from_arrow(rows.to_table(columns=["run", *sorted(columns)], filter=window))
        assert isinstance(found, pl.DataFrame)
        return found

    tags = read(["tags"])
    committed = dict(tags.group_by("run").len().iter_rows())
    lines = [profile_rows(committed, refused), profile_tags(tags)]
    lines += [profile_column(read([column.name]), column) for column in contract.columns if column.name in present]
    if contract.quality:
        everything = {column.name for column in contract.columns} | {"event_time"}
        lines += profile_rules(read(everything & present), contract)
    lines += profile_tag_rules(lake, contract.name, rows, sorted(committed))
    found: pl.DataFrame = pl.concat(lines).sort("run", "column")
    return found


def _refused(lake: Lake, stream: str, after: int, upper: int) -> dict[int, dict[str, int]]:
    """Per run, how many samples of the stream went to quarantine, by stage and kind of reason: a reason may quote a value."""
    table = open_table(lake, QUARANTINE)
    found: dict[int, Counter[str]] = defaultdict(Counter)
    if table is None:
        return {}
    window = (ds.field("run") > after) & (ds.field("run") <= upper) & (ds.field("stream") == stream)
    rows: pa.Table = table.to_pyarrow_dataset().to_table(columns=["run", "stage", "reason", "count"], filter=window)
    for row in rows.to_pylist():
        found[row["run"]][f"{row['stage']}: {kind_of(row['reason'])}"[:120]] += row["count"]
    return {run: dict(counts) for run, counts in found.items()}
