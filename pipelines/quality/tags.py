"""For how many rows of each run a tagging rule failed: judged by the policies that the run used, read from its pins.

A rule that failed is not true, so its tag is missing and nothing else tells of it. Only rules that can fail have a line.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

from pipelines.ingest.plan import Pins, version_order
from pipelines.ingest.plan_files import read_pins, read_plan
from pipelines.inspect.suspended import SuspensionBook
from pipelines.lake.lake import Lake
from pipelines.policy.engine import Tagger
from pipelines.policy.tag_file import completed
from pipelines.quality.profile import complete_lines
from schemas.policy import Policy

TAG_RULE = "tag rule "


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
        yield from _lines(rows, of_digest, pins, stream, rules)


def _by_pins(lake: Lake, runs: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for run in runs:
        plan = read_plan(lake, run)
        if plan is not None:
            found[plan.pins].append(run)
    return found


def _lines(rows: ds.Dataset, runs: Sequence[int], pins: Pins, stream: str, policies: Sequence[Policy]) -> Iterator[pl.DataFrame]:
    contracts = [contract for contract in pins.contracts if contract.name == stream]
    if not contracts or not policies:
        return
    tagger = Tagger.compile(policies, max(contracts, key=version_order))
    judged: dict[str, tuple[pl.Expr, pl.Expr]] = {}
    for rule in tagger.rules:
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
