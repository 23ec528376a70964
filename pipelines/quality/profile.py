"""Profile the committed rows of each run, a column at a time (counts, range, spread), and measure the drift between runs.

Numbers fall into bins that are the same for every run and stream (a quarter of a power of two wide), so that any two runs
can be compared later without their rows. Columns that could tell about a person give counts only. Drift is the population
stability index: below 0.1 nothing has happened, from 0.25 on the population is another one, by the usual reading.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import polars as pl
import pyarrow as pa

from pipelines.contracts.arrow import is_private
from pipelines.expressions.expression import compile_expression, contract_columns
from schemas.contract import NUMERIC_TYPES, Column, ColumnType, Contract
from schemas.envelope import EVENT_TIME

MAX_CATEGORIES = 20
OTHER = "(other)"
RULE = "quality rule "
_BIN_OFFSET = 5_000  # above the exponent of any double, times four
BINS = pa.list_(pa.struct([pa.field("bin", pa.string()), pa.field("count", pa.int64())]))
PROFILE_SCHEMA = pa.schema([
    pa.field("run", pa.int64()),
    pa.field("column", pa.string()),  # a column's name, "*" for the rows, "quality rule <name>", "tag rule <policy>: <tag>"
    pa.field("rows", pa.int64()),
    pa.field("nulls", pa.int64()),
    pa.field("refused", pa.int64()),
    pa.field("errors", pa.int64()),
    pa.field("repeated", pa.int64()),
    pa.field("minimum", pa.float64()),
    pa.field("maximum", pa.float64()),
    pa.field("mean", pa.float64()),
    pa.field("bins", BINS),
])  # fmt: skip

GROUPS = 10
NULLS = "(null)"
SHIFTED, DRIFTED = 0.1, 0.25


def profile_column(rows: pl.DataFrame, column: Column) -> pl.DataFrame:
    """One line for each run.

    Args:
        rows: `run` and the column, of any number of runs.
        column: its contract.
    """
    value, is_public = pl.col(column.name), not is_private(column)
    found: dict[str, pl.Expr] = {"rows": pl.len(), "nulls": value.null_count()}
    if column.unique:
        found["repeated"] = value.count() - value.drop_nulls().n_unique()
    if is_public and column.type in NUMERIC_TYPES:
        number = value.cast(pl.Float64)
        found |= {"minimum": number.min(), "maximum": number.max(), "mean": number.mean()}
    lines = rows.group_by("run").agg(**found).with_columns(column=pl.lit(column.name))
    spread = _bin(column) if is_public else None
    return complete_lines(lines if spread is None else lines.join(_spread(rows, spread), on="run", how="left"))


def profile_tags(rows: pl.DataFrame) -> pl.DataFrame:
    """Count how often each tag was given: `tags` is no column of the contract, but drifts as one."""
    lines = (
        rows.group_by("run").agg(rows=pl.len(), nulls=(pl.col("tags").list.len() == 0).sum()).with_columns(column=pl.lit("tags"))
    )
    given = rows.select("run", "tags").explode("tags").drop_nulls()
    return complete_lines(lines.join(_spread(given, pl.col("tags")), on="run", how="left"))


def profile_rules(rows: pl.DataFrame, contract: Contract) -> Iterator[pl.DataFrame]:
    """For how many committed rows each quality rule could not be decided, and for how many of these by an error."""
    columns = {**contract_columns(contract), EVENT_TIME: ColumnType.TIMESTAMP}
    for rule in contract.quality:
        expression = compile_expression(rule.expression, columns)
        failed = expression.errors()
        failing = pl.lit(value=False) if failed is None else failed.to_polars()
        judged = rows.select("run", verdict=expression.to_polars(), failed=failing)
        lines = judged.group_by("run").agg(
            rows=pl.len(), nulls=pl.col("verdict").null_count(), errors=pl.col("failed").cast(pl.Int64).sum()
        )
        yield complete_lines(lines.with_columns(column=pl.lit(RULE + rule.name)))


def profile_rows(committed: dict[int, int], refused: dict[int, dict[str, int]]) -> pl.DataFrame:
    """The rows of each run: how many were committed, how many refused and why."""
    lines = []
    for run in sorted({*committed, *refused}):
        why = refused.get(run, {})
        bins = [{"bin": reason, "count": count} for reason, count in sorted(why.items(), key=lambda item: -item[1])]
        lines.append({"run": run, "column": "*", "rows": committed.get(run, 0), "refused": sum(why.values()), "bins": bins})
    return complete_lines(pl.DataFrame(lines, schema_overrides={"bins": _polars_bins()})) if lines else _empty()


def _bin(column: Column) -> pl.Expr | None:
    value = pl.col(column.name)
    if column.type in NUMERIC_TYPES:
        size = value.cast(pl.Float64).abs()
        exponent = (size.log(2) * 4).floor().clip(1 - _BIN_OFFSET, _BIN_OFFSET - 1) + _BIN_OFFSET
        signed = pl.when(size == 0).then(0.0).otherwise(exponent * value.cast(pl.Float64).sign())
        return signed.cast(pl.Int64).cast(pl.String)
    if column.type in (ColumnType.STRING, ColumnType.BOOL):
        return value.cast(pl.String)
    return None


def _spread(rows: pl.DataFrame, spread: pl.Expr) -> pl.DataFrame:
    """Per run, how many values fall into each bin; a text's rarer values are one bin."""
    counted = rows.select("run", bin=spread).drop_nulls().group_by("run", "bin").len("count")
    if counted["bin"].n_unique() > MAX_CATEGORIES and not counted["bin"].str.contains(r"^-?\d+$").all():
        often = counted.group_by("bin").agg(pl.col("count").sum()).top_k(MAX_CATEGORIES, by="count")["bin"]
        named = pl.when(pl.col("bin").is_in(often.implode())).then("bin").otherwise(pl.lit(OTHER))
        counted = counted.group_by("run", named.alias("bin")).agg(pl.col("count").sum())
    pairs = pl.struct(pl.col("bin"), pl.col("count").cast(pl.Int64)).sort_by("bin")
    return counted.group_by("run").agg(bins=pairs)


def _polars_bins() -> pl.DataType:
    return pl.List(pl.Struct({"bin": pl.String, "count": pl.Int64}))


def _empty() -> pl.DataFrame:
    found = pl.from_arrow(PROFILE_SCHEMA.empty_table())
    assert isinstance(found, pl.DataFrame)
    return found


def complete_lines(lines: pl.DataFrame) -> pl.DataFrame:
    """Lines in the kept schema; what a line does not have is null."""
    schema = _empty().schema
    return lines.select(
        pl.col(name).cast(type_) if name in lines.columns else pl.lit(None, dtype=type_).alias(name)
        for name, type_ in schema.items()
    )  # fmt: skip


class Reading(StrEnum):
    """The reading of an index."""

    STABLE = "stable"
    SHIFTED = "shifted"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Drift:
    """The index, and the group of values that adds most to it."""

    psi: float
    most: str

    @property
    def reading(self) -> Reading:
        """In words."""
        if self.psi >= DRIFTED:
            return Reading.DRIFTED
        return Reading.SHIFTED if self.psi >= SHIFTED else Reading.STABLE


def drift(reference: Mapping[str, int], current: Mapping[str, int], *, is_numeric: bool) -> Drift | None:
    """Compare two spreads; None if one of them is empty.

    Args:
        reference: counts per bin, nulls under `NULLS`.
        current: likewise.
        is_numeric: the bins are whole numbers with an order: they are put together to about ten groups, each with its share of
            the reference, so that empty bins do not make noise.
    """
    if not sum(reference.values()) or not sum(current.values()):
        return None
    cuts = _cuts(reference) if is_numeric else None
    before, after = _grouped(reference, cuts), _grouped(current, cuts)
    names = sorted({*before, *after})
    # Half a value in each group: an empty group would be infinitely far away.
    weight_before, weight_after = (sum(counts.values()) + 0.5 * len(names) for counts in (before, after))
    parts = {}
    for name in names:
        p, q = (before[name] + 0.5) / weight_before, (after[name] + 0.5) / weight_after
        parts[name] = (q - p) * math.log(q / p)
    return Drift(sum(parts.values()), max(names, key=lambda name: parts[name]))


def bounds_of(bin_: str) -> str:
    """A numeric bin as numbers: quarters of powers of two."""
    number = int(bin_)
    if number == 0:
        return "0"
    exponent = (abs(number) - 5_000) / 4
    low, high = 2**exponent, 2 ** (exponent + 0.25)
    return f"{low:.3g} to {high:.3g}" if number > 0 else f"{-high:.3g} to {-low:.3g}"


def _cuts(reference: Mapping[str, int]) -> list[int]:
    """The upper bins of groups that hold about equal shares of the reference."""
    ordered = sorted(int(name) for name in reference if name != NULLS)
    whole = sum(reference[str(number)] for number in ordered)
    cuts: list[int] = []
    filled = 0
    for number in ordered:
        filled += reference[str(number)]
        if filled >= whole * (len(cuts) + 1) / GROUPS:
            cuts.append(number)
    return cuts


def _grouped(counts: Mapping[str, int], cuts: Sequence[int] | None) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, count in counts.items():
        if cuts is None or name == NULLS:
            found[name] += count
            continue
        place = bisect_left(cuts, int(name))
        found[str(cuts[place]) if place < len(cuts) else "above"] += count
    return found
