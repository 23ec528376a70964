"""Promise 6: the rule means the same on the device and in the core."""

import importlib.util
import os
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipelines.policy.expression import compile_expression
from pipelines.policy.sqlite_functions import like, register_functions
from pipelines.policy.to_sqlite import to_sqlite

_spec = importlib.util.spec_from_file_location("expression_corpus", Path(__file__).with_name("expression_corpus.py"))
assert _spec is not None
assert _spec.loader is not None
corpus = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(corpus)

# How many random expressions the slow test compares; `make gate` asks for a hundred thousand.
GATE = int(os.environ.get("CATCHMENT_GATE_EXPRESSIONS", "5000"))
DECLARED = {"string": "TEXT", "bool": "INTEGER", "timestamp": "INTEGER", "binary": "BLOB"}


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return int(value) if isinstance(value, bool) else value


@pytest.fixture(scope="module")
def device() -> sqlite3.Connection:
    rows: pa.Table = corpus.hard_rows()
    connection = sqlite3.connect(":memory:")
    register_functions(connection)
    columns = ", ".join(
        f'"{name}" {DECLARED.get(str(type_), "INTEGER" if str(type_).startswith("int") else "REAL")}'
        for name, type_ in corpus.COLUMNS.items()
    )
    connection.execute(f"CREATE TABLE rows (n INTEGER PRIMARY KEY, {columns})")
    values = [[n, *map(plain, row.values())] for n, row in enumerate(rows.to_pylist())]
    connection.executemany(f"INSERT INTO rows VALUES ({', '.join('?' * len(values[0]))})", values)
    return connection


def verdicts(text: str, frame: pl.DataFrame, device: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
    expression = compile_expression(text, corpus.COLUMNS)
    core = frame.with_columns(expression.to_polars().alias("verdict"))["verdict"].to_list()
    generated = to_sqlite(expression.node)
    query = f"SELECT {generated.sql} FROM rows ORDER BY n"
    edge = [None if value is None else bool(value) for (value,) in device.execute(query, generated.parameters)]
    return core, edge


def differing(count: int, seed: int, device: sqlite3.Connection) -> list[str]:
    frame = pl.from_arrow(corpus.hard_rows())
    assert isinstance(frame, pl.DataFrame)
    writer = corpus.Writer(seed)
    found = []
    compiled = 0
    while compiled < count:
        text = writer.truth(writer.pick.randint(1, 4))
        if len(text) > 3_000:
            continue
        core, edge = verdicts(text, frame, device)
        compiled += 1
        if core != edge:
            found.append(f"{text}: {[(n, c, e) for n, (c, e) in enumerate(zip(core, edge, strict=True)) if c != e][:3]}")
    return found


def test_two_thousand_random_expressions_give_the_same_verdict_on_both_engines(device: sqlite3.Connection) -> None:
    assert differing(2_000, 20_260_101, device) == []


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_many_random_expressions_give_the_same_verdict_on_both_engines(device: sqlite3.Connection) -> None:
    assert differing(GATE, 42, device) == []


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        ("abc", "a%", True), ("abc", "A%", False), ("abc", "%c", True), ("ab", "a%b%b", False), ("abb", "a%b%b", True),
        ("", "%", True), ("", "_", False), ("a\0b", "a_b", True), ("a\nb", "a%b", True), ("aXbX", "%X", True),
        ("aa", "a%a%a", False), ("abc", "abc", True), ("abcd", "abc", False), ("a.c", "a.c", True), ("abc", "a.c", False),
        ("aba", "ab%ba", False), ("x" * 50_000, "%x%y%", False),
    ],
)  # fmt: skip
def test_like_matches_the_whole_text_and_nothing_but_its_pattern(text: str, pattern: str, expected: bool) -> None:
    assert like(text, pattern) is expected
    compiled = compile_expression(f"s LIKE '{pattern}'", corpus.COLUMNS).to_polars()
    assert pl.DataFrame({"s": [text]}).select(compiled).item() is expected


@pytest.mark.parametrize("expression", ["a / 0.1 = 2.9999999999999996", "0.3 / 0.1 = 2.9999999999999996", "a / (0.1 + 0) < 3"])
def test_division_by_a_constant_is_the_division_ieee_754_defines(expression: str, device: sqlite3.Connection) -> None:
    frame = pl.DataFrame({"a": [0.3] * 8})
    compiled = compile_expression(expression, corpus.COLUMNS)
    assert frame.with_columns(compiled.to_polars().alias("verdict"))["verdict"].to_list() == [True] * 8
