"""Store profiles of the rows of each run: read the new runs of a stream, write one small file about them.

The table `quality/<stream>` is committed as runs are, with the last run it describes as its number: each run is described once,
any other process. For each tagging rule that can fail it counts the rows for which it did, judged by the policies that the
run used: a rule that failed is not true, so its tag is missing and nothing else would show it.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

from pipelines.expressions.ir import LABEL
from pipelines.ingest.plan import Pins, read_pins, read_plan, version_order
from pipelines.inspect.suspended import SuspensionBook
from pipelines.lake.commit import APP, commit_once
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import QUALITY, QUARANTINE, stream_table
from pipelines.lake.quarantined import kind_of
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import completed
from pipelines.quality.profile import (
    PROFILE_SCHEMA,
    complete_lines,
    profile_column,
    profile_rows,
    profile_rules,
    profile_tags,
)
from schemas.contract import Contract
from schemas.policy import Policy

TAG_RULE = "tag rule "

MAX_RUNS = 1_000  # of one file: the rows of so many runs are held, one column at a time


def profile_tag_rules(lake: Lake, stream: str, rows: ds.Dataset, runs: Sequence[int]) -> Iterator[pl.DataFrame]:
    """One line for each run and rule that can fail: rows, for how many it was unknown, and of these by an error.

    A run whose plan or pins are gone, and a suspended policy, have no line.

    Raises:
        CorruptLakeError: a plan or pins are not what was stored.
    """
    book = SuspensionBook(lake)
    for digest, of_digest in _by_pins(lake, runs).items():
        pins = read_pins(lake, digest)
        rules = [policy for policy in pins.policies if stream in policy.streams and book.policy(policy.label) is None]
        yield from _rule_lines(rows, of_digest, pins, stream, rules)


def _by_pins(lake: Lake, runs: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for run in runs:
        plan = read_plan(lake, run)
        if plan is not None:
            found[plan.pins].append(run)
    return found


def _rule_lines(
    rows: ds.Dataset, runs: Sequence[int], pins: Pins, stream: str, policies: Sequence[Policy]
) -> Iterator[pl.DataFrame]:
    contracts = [contract for contract in pins.contracts if contract.name == stream]
    if not contracts or not policies:
        return
    tagger = Tagger.compile(policies, max(contracts, key=version_order))
    judged: dict[str, tuple[pl.Expr, pl.Expr]] = {}
    # A label that nobody gave is NULL and no error; the columns of labels are not in the table.
    for rule in tagger.rules:
        if any(name.startswith(LABEL) for each in rule.expressions for name in each.columns):
            continue
        failing = [failed.to_polars() for each in rule.expressions if (failed := each.errors()) is not None]
        if failing:
            verdict = reduce(or_, (each.to_polars() for each in rule.expressions))
            name = f"{TAG_RULE}{rule.policy.partition('@')[0]}: {rule.tag}"
            judged[name] = (verdict, reduce(or_, (each.fill_null(value=False) for each in failing)))
    if not judged:
        return
    present = sorted((tagger.columns & set(rows.schema.names)) | {"run"})
    table = completed(rows.to_table(columns=present, filter=ds.field("run").isin(list(runs))), tagger.contract)
    yield from _counted(table, judged)


def _counted(table: pa.Table, judged: dict[str, tuple[pl.Expr, pl.Expr]]) -> Iterator[pl.DataFrame]:
    raw: Any = pl.from_arrow(table)
    for name, (verdict, failed) in judged.items():
        lines = raw.select("run", verdict=verdict, failed=failed).group_by("run")
        counted = lines.agg(rows=pl.len(), nulls=pl.col("verdict").null_count(), errors=pl.col("failed").cast(pl.Int64).sum())
        yield complete_lines(counted.with_columns(column=pl.lit(name)))


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
    stream = lake.view().table(stream_table(contract.name))
    if stream is None:
        return 0
    kept = lake.view().table(quality_table(contract.name))
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
    table = lake.view().table(quality_table(stream))
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
    table = lake.view().table(QUARANTINE)
    found: dict[int, Counter[str]] = defaultdict(Counter)
    if table is None:
        return {}
    window = (ds.field("run") > after) & (ds.field("run") <= upper) & (ds.field("stream") == stream)
    rows: pa.Table = table.to_pyarrow_dataset().to_table(columns=["run", "stage", "reason", "count"], filter=window)
    for row in rows.to_pylist():
        found[row["run"]][f"{row['stage']}: {kind_of(row['reason'])}"[:120]] += row["count"]
    return {run: dict(counts) for run, counts in found.items()}
