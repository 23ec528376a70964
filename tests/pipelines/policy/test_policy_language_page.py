"""docs/expressions.md tells every function of the language, and its examples hold on both engines."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from catchment.rules.evaluator import evaluate
from pipelines.errors import ExpressionError
from pipelines.expressions.expression import compile_expression
from pipelines.expressions.functions import FUNCTIONS
from schemas.contract import ColumnType

PAGE = (Path(__file__).parents[3] / "docs" / "expressions.md").read_text()
TABLE = re.findall(r"^\| `(\w+)\(([^`]*)\)` \| (.+) \| `([^`]+)` \|$", PAGE, re.MULTILINE)
CORE_ONLY = {"matches", "has"}
COLUMNS = {
    "event_time": ColumnType.TIMESTAMP, "received_at": ColumnType.TIMESTAMP, "label": ColumnType.STRING,
    "speed_mps": ColumnType.FLOAT64, "labels": ColumnType.LIST_STRING, "scores": ColumnType.LIST_FLOAT64,
    "lat": ColumnType.FLOAT64, "lon": ColumnType.FLOAT64,
}  # fmt: skip
TIME = datetime(2026, 7, 4, 22, 30, 5, tzinfo=UTC)
ROW: dict[str, Any] = {
    "event_time": TIME, "received_at": TIME + timedelta(seconds=2), "label": " Car_7 ", "speed_mps": 31.5,
    "labels": ["car", "person"], "scores": [0.9, 0.25], "lat": 48.14, "lon": 11.57,
}  # fmt: skip


def test_the_page_tells_every_function_and_no_other() -> None:
    assert sorted(name for name, *_ in TABLE) == sorted([*FUNCTIONS, "has"])
    assert len(TABLE) >= 40


@pytest.mark.parametrize(("name", "example"), [(name, example) for name, _, _, example in TABLE], ids=[row[0] for row in TABLE])
def test_the_pages_example_holds_on_both_engines(name: str, example: str) -> None:
    assert f"{name}(" in example
    expression = compile_expression(example, COLUMNS, allow_tags=True)
    assert pl.DataFrame([{**ROW, "tags": ["night"]}]).select(expression.to_polars()).item() is True
    if name in CORE_ONLY:
        with pytest.raises(ExpressionError, match=r"core only|tags"):
            expression.to_edge()
        return
    micros = {key: [(value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)] for key, value in ROW.items()
              if isinstance(value, datetime)}  # fmt: skip
    assert evaluate({**{key: [value] for key, value in ROW.items()}, **micros}, [expression.to_edge()], 1) == [[True]]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_in_a_refusal_is_itself_of_the_function(name: str) -> None:
    assert FUNCTIONS[name].example.startswith(f"{name}(")
