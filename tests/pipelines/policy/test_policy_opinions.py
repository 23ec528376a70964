"""Other opinions on what an expression means: DuckDB on all that it defines alike, and the standard library on the rest."""

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from catchment.rules.evaluator import evaluate
from pipelines.errors import ExpressionError
from pipelines.expressions.expression import compile_expression
from schemas.contract import ColumnType
from tests.pipelines.policy import expression_corpus as corpus

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Alike(corpus.Writer):
    """Writes what DuckDB, too, computes in doubles, three-valued and case-sensitive: no division, no NaN, no infinity.

    Numbers are written as 25e-1: DuckDB reads 2.5 as a decimal.
    """

    def truth(self, depth: int) -> str:
        p, n, b = self.pick, self.number, self.truth
        if depth <= 0:
            return str(p.choice(["f", "TRUE", "x > 1e-1", "s = 'abc'", "i IS NULL", "tm > '2026-01-01T00:00:00Z'"]))
        return self.drawn([
            lambda: f"{n(depth - 1)} {p.choice(['=', '<>', '<', '<=', '>', '>='])} {n(depth - 1)}",
            lambda: f"{self.text(depth - 1)} {p.choice(['=', '<>'])} {self.text(depth - 1)}",
            lambda: f"({b(depth - 1)} AND {b(depth - 1)})",
            lambda: f"({b(depth - 1)} OR {b(depth - 1)} OR {b(depth - 2)})",
            lambda: f"NOT ({b(depth - 1)})",
            lambda: f"{n(depth - 1)} {p.choice(['', 'NOT '])}IN (1e0, 1e-1, 7e0, -25e-1)",
            lambda: f"{self.text(depth - 1)} {p.choice(['', 'NOT '])}IN ('a', 'abc', 'ß')",
            lambda: f"{n(depth - 1)} {p.choice(['', 'NOT '])}BETWEEN {n(depth - 1)} AND {n(depth - 1)}",
            lambda: f"{self.text(depth - 1)} {p.choice(['', 'NOT '])}LIKE {p.choice(['a%', '%c', '%b%', 'a_c', '_'])!r}",
            lambda: f"({p.choice([n, self.text, b])(depth - 1)}) IS {p.choice(['', 'NOT '])}NULL",
            lambda: f"({b(depth - 1)}) IS {p.choice(['', 'NOT '])}{p.choice(['TRUE', 'FALSE'])}",
            lambda: f"{p.choice(['starts_with', 'ends_with', 'contains'])}({self.text(depth - 1)}, 'a')",
            lambda: f"CASE WHEN {b(depth - 1)} THEN {b(depth - 1)} ELSE {b(depth - 1)} END",
            lambda: f"coalesce({b(depth - 1)}, {b(depth - 1)})",
        ])  # fmt: skip

    def number(self, depth: int) -> str:
        p, n = self.pick, self.number
        if depth <= 0:
            return str(p.choice(["x", "y", "i", "0e0", "1e0", "-1e0", "1e-1", "7e0", "25e-1"]))
        return self.drawn([
            lambda: f"({n(depth - 1)} {p.choice('+-*')} {n(depth - 1)})",
            lambda: f"(- {n(depth - 1)})",
            lambda: f"{p.choice(['abs', 'floor', 'ceil', 'round', 'trunc'])}({n(depth - 1)})",
            lambda: f"coalesce({n(depth - 1)}, {n(depth - 2)})",
            lambda: f"nullif({n(depth - 1)}, {n(depth - 2)})",
            lambda: f"length({self.text(depth - 1)})",
            lambda: f"{p.choice(['hour', 'minute', 'second', 'day', 'month', 'year', 'quarter', 'week'])}(tm)",
            lambda: f"CASE WHEN {self.truth(depth - 1)} THEN {n(depth - 1)} ELSE {n(depth - 2)} END",
        ])  # fmt: skip

    def text(self, depth: int) -> str:
        p = self.pick
        if depth <= 0:
            return str(p.choice(["s", "'a'", "'abc'", "''", "'ß'"]))
        return self.drawn([
            lambda: f"coalesce({self.text(depth - 1)}, {self.text(depth - 1)})",
            lambda: f"substr({self.text(depth - 1)}, {p.randint(1, 3)}, {p.randint(0, 2)})",
            lambda: f"{p.choice(['left', 'right'])}({self.text(depth - 1)}, {p.randint(0, 3)})",
            lambda: f"replace({self.text(depth - 1)}, 'b', 'x')",
            lambda: f"nullif({self.text(depth - 1)}, 'a')",
            lambda: self.text(0),
        ])  # fmt: skip


COLUMNS = {
    "x": ColumnType.FLOAT64, "y": ColumnType.FLOAT64, "i": ColumnType.FLOAT64, "s": ColumnType.STRING, "f": ColumnType.BOOL,
    "tm": ColumnType.TIMESTAMP,
}  # fmt: skip


def rows() -> pa.Table:
    pick = random.Random(9)
    numbers = [None, 0.0, 1.0, -1.0, 0.1, 0.3, 2.5, -2.5, 7.0, 150.25, -0.5]
    texts = [None, "", "a", "abc", "aXc", "ß", "abcabc", "😀x", "A"]
    times = [None, EPOCH, datetime(2026, 7, 4, 22, 30, 5, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)]
    some: dict[str, list[Any]] = {
        **{name: [pick.choice(numbers) for _ in range(64)] for name in ("x", "y", "i")},
        "s": [pick.choice(texts) for _ in range(64)],
        "f": [pick.choice([None, True, False]) for _ in range(64)],
        "tm": [pick.choice(times) for _ in range(64)],
    }
    types = {"s": pa.string(), "f": pa.bool_(), "tm": pa.timestamp("us", "UTC")}
    return pa.table({name: pa.array(values, types.get(name, pa.float64())) for name, values in some.items()})


@pytest.mark.slow
def test_duckdb_gives_the_same_verdicts_on_what_it_defines_alike() -> None:
    data, writer, differing, count = rows(), Alike(31), [], 0
    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("data", data)
    for text in (next(writer.truths()) for _ in range(1_200)):
        try:
            ours = frame.select(compile_expression(text, COLUMNS).to_polars()).to_series().to_list()
        except ExpressionError as error:
            assert "too costly" in str(error) or "more than" in str(error)  # noqa: PT017
            continue
        query = f"SELECT ({text}) FROM data"
        theirs = [row[0] for row in connection.execute(query).fetchall()]
        count += 1
        if ours != theirs:
            differing.append((text, [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]][:2]))
    assert count > 800
    assert differing == []


PLACES = [(random.Random(n).uniform(-90, 90), random.Random(n + 1_000).uniform(-180, 180)) for n in range(300)]


def both(text: str, columns: dict[str, ColumnType], values: dict[str, list[Any]]) -> list[Any]:
    """The verdicts, which both engines must give alike."""
    expression = compile_expression(text, columns)
    frame = pl.DataFrame({name: pl.Series(found, dtype=pl.Int64) if columns[name] == "timestamp" else found
                          for name, found in values.items()})  # fmt: skip
    times = [pl.col(name).cast(pl.Datetime("us", "UTC")) for name, type_ in columns.items() if type_ == "timestamp"]
    core = frame.with_columns(times).select(expression.to_polars()).to_series().to_list()
    assert evaluate(values, [expression.to_edge()], len(core)) == [core]
    return core


def haversine_m(one: tuple[float, float], two: tuple[float, float]) -> float:
    (a, b), (c, d) = (tuple(map(math.radians, place)) for place in (one, two))
    square = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(min(1.0, math.sqrt(square)))


def test_a_distance_is_that_of_the_haversine_formula_to_a_tenth_of_a_millimetre() -> None:
    others = PLACES[1:] + PLACES[:1]
    near = [(lat * 0.999999, lon) for lat, lon in PLACES]
    opposite = [(-lat, lon - 180 if lon > 0 else lon + 180) for lat, lon in PLACES]
    types = dict.fromkeys(("a", "b", "c", "d", "m"), ColumnType.FLOAT64)
    for tolerance, partners in ((1e-4, others), (1e-4, near), (1.0, opposite)):
        values = {
            "a": [lat for lat, _ in PLACES], "b": [lon for _, lon in PLACES],
            "c": [lat for lat, _ in partners], "d": [lon for _, lon in partners],
            "m": [haversine_m(*pair) for pair in zip(PLACES, partners, strict=True)],
        }  # fmt: skip
        assert both(f"abs(geo_distance_m(a, b, c, d) - m) < {tolerance}", types, values) == [True] * len(PLACES)


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Cairo"]
)
def test_the_clock_on_the_wall_is_that_of_the_standard_library(zone: str) -> None:
    pick = random.Random(zone)
    times = [datetime(1990, 1, 1, tzinfo=UTC) + timedelta(seconds=pick.randrange(59 * 365 * 86_400)) for _ in range(300)]
    local = [time.astimezone(ZoneInfo(zone)) for time in times]
    values: dict[str, list[Any]] = {
        "t": [(time - EPOCH) // timedelta(microseconds=1) for time in times],
        "d": [f"{time:%Y-%m-%d}" for time in local],
        "m": [float(time.hour * 60 + time.minute) for time in local],
        "w": [float(time.isocalendar().week * 1_000 + time.timetuple().tm_yday * 10 + time.isoweekday()) for time in local],
    }
    types = {"t": ColumnType.TIMESTAMP, "d": ColumnType.STRING, "m": ColumnType.FLOAT64, "w": ColumnType.FLOAT64}
    text = (
        f"date_text(t, '{zone}') = d AND minute_of_day(t, '{zone}') = m "
        f"AND week(t, '{zone}') * 1000 + day_of_year(t, '{zone}') * 10 + day_of_week(t, '{zone}') = w"
    )
    assert both(text, types, values) == [True] * 300


def test_a_number_in_a_text_is_the_nearest_double() -> None:
    pick = random.Random(2)
    texts = [f"{pick.uniform(-1, 1):.{pick.randint(0, 25)}f}e{pick.randint(-310, 308)}" for _ in range(3_000)]
    texts += [repr(pick.uniform(0, 1e6)) for _ in range(1_000)] + ["4.9406564584124654e-324", "2.2250738585072011e-308"]
    values: dict[str, list[Any]] = {"s": texts, "x": [float(text) for text in texts]}
    assert both("to_number(s) = x", {"s": ColumnType.STRING, "x": ColumnType.FLOAT64}, values) == [True] * len(texts)
