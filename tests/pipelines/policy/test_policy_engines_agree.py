"""Promise 6: the rule means the same on the device and in the core."""

import os
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from catchment.rules.evaluator import EdgeEvaluator
from catchment.rules.functions import like
from pipelines.errors import ExpressionError
from pipelines.expressions.expression import Expression, compile_expression
from tests.pipelines.policy import expression_corpus as corpus

# How many random expressions the slow test compares; `make gate` asks for a hundred thousand.
GATE = int(os.environ.get("CATCHMENT_GATE_EXPRESSIONS", "5000"))
PIECES = 20


def device_columns() -> dict[str, list[Any]]:
    rows: pa.Table = corpus.hard_rows()
    micros = rows["at"].cast(pa.int64()).to_pylist()
    return {name: micros if name == "at" else rows[name].to_pylist() for name in corpus.COLUMNS}


def some_expressions(writer: Any, count: int) -> list[tuple[str, Expression]]:
    """The next random expressions; those that are over a bound of the language are passed over."""
    found: list[tuple[str, Expression]] = []
    while len(found) < count:
        text = next(writer.truths())
        try:
            found.append((text, compile_expression(text, corpus.COLUMNS)))
        except ExpressionError as error:
            assert any(bound in str(error) for bound in ("too costly", "characters", "more than", "nested")), (text, error)  # noqa: PT017
    return found


def differing(count: int, seed: int) -> list[str]:
    """Expressions whose verdicts differ, judged a hundred at a time, as a device judges the rules of its policies."""
    frame = pl.from_arrow(corpus.hard_rows())
    assert isinstance(frame, pl.DataFrame)
    columns, writer, found = device_columns(), corpus.Writer(seed), []
    for start in range(0, count, 100):
        texts, compiled = zip(*some_expressions(writer, min(100, count - start)), strict=True)
        core = frame.select(each.to_polars().alias(str(index)) for index, each in enumerate(compiled))
        evaluator = EdgeEvaluator([each.to_edge() for each in compiled])
        edge = evaluator.evaluate(columns, corpus.ROWS)
        assert not evaluator.suspended, evaluator.suspended
        for text, column, device in zip(texts, core.get_columns(), edge, strict=True):
            if (verdicts := column.to_list()) != device:
                rows = enumerate(zip(verdicts, device, strict=True))
                found.append(f"{text}: {[(n, c, e) for n, (c, e) in rows if c != e][:3]}")
    return found


@pytest.mark.slow
def test_two_thousand_random_expressions_give_the_same_verdict_on_both_engines() -> None:
    assert differing(2_000, 20_260_101) == []


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("piece", range(PIECES))
def test_many_random_expressions_give_the_same_verdict_on_both_engines(piece: int) -> None:
    assert differing(GATE // PIECES, 1_000 + piece) == []


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
def test_division_by_a_constant_is_the_division_ieee_754_defines(expression: str) -> None:
    frame = pl.DataFrame({"a": [0.3] * 8})
    compiled = compile_expression(expression, corpus.COLUMNS)
    assert frame.with_columns(compiled.to_polars().alias("verdict"))["verdict"].to_list() == [True] * 8
