"""An operation that fails gives NULL, and the rows in which it did are counted."""

import polars as pl
import pyarrow as pa
import pytest

from catchment.rules.evaluator import evaluate
from pipelines.expressions.expression import compile_expression
from pipelines.policy.engine import Tagger
from schemas.contract import Column, ColumnType, Contract
from schemas.policy import Policy, Rule

COLUMNS = {"a": ColumnType.FLOAT64, "b": ColumnType.FLOAT64, "s": ColumnType.STRING, "f": ColumnType.BOOL}
A, B = [1.0, 1.0, None, float("inf"), -4.0], [2.0, 0.0, 0.0, float("inf"), None]
S, F = ["7", "x", None, "1e999", "-1.5"], [True, False, None, True, False]


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("a / b > 0.2", [0, 1, 0, 1, 0]),
        ("a - b = 0", [0, 0, 0, 1, 0]),
        ("sqrt(a) > 1", [0, 0, 0, 0, 1]),
        ("to_number(s) > 1", [0, 1, 0, 1, 0]),
        ("f AND to_number(s) > 1", [0, 1, 0, 1, 0]),
        ("CASE WHEN b = 0 THEN 0 ELSE a / b END > 0", [0, 0, 0, 1, 0]),
        ("coalesce(a / b, 0) = 0", [0, 1, 0, 1, 0]),
        ("geo_distance_m(a, b, 200, 0) > 1", [1, 1, 0, 1, 0]),
        ("NOT (sqrt(a / b) > 2) IS NULL", [0, 1, 0, 1, 0]),
    ],
)
def test_rows_in_which_a_part_failed_are_reported_on_both_engines(text: str, failed: list[int]) -> None:
    errors = compile_expression(text, COLUMNS).errors()
    assert errors is not None
    frame = pl.DataFrame({"a": A, "b": B, "s": S, "f": F})
    assert [int(bool(each)) for each in frame.select(errors.to_polars()).to_series()] == failed
    (edge,) = evaluate({"a": A, "b": B, "s": S, "f": F}, [errors.to_edge()], 5)
    assert [int(bool(each)) for each in edge] == failed


@pytest.mark.parametrize("text", ["f", "a > 1 AND s LIKE 'x%'", "coalesce(s, '') = ''", "split_part(s, ',', 2) = 'x'"])
def test_an_expression_without_such_a_part_cannot_fail(text: str) -> None:
    assert compile_expression(text, COLUMNS).errors() is None


def test_a_tagger_counts_the_errors_of_each_tag() -> None:
    contract = Contract("probe", "1.0.0", tuple(Column(name, type_) for name, type_ in COLUMNS.items()))
    rules = (Rule("ratio", "a / b > 1"), Rule("ratio", "to_number(s) > 1"), Rule("plain", "a > 1"))
    tagger = Tagger.compile([Policy("p", ("probe",), rules)], contract)
    table = pa.table({"a": A, "b": B, "s": S, "f": F})
    assert tagger.count_errors(table) == {"ratio": 2}
    assert tagger.count_errors(table.slice(0, 0)) == {"ratio": 0}
