"""The language: what it means, and what it refuses with which words."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from pipelines.commands.policy import policy_app
from pipelines.errors import ExpressionError
from pipelines.expressions.expression import compile_expression
from schemas.contract import ColumnType

COLUMNS = {
    "speed_mps": ColumnType.FLOAT64, "count": ColumnType.INT64, "label": ColumnType.STRING, "is_up": ColumnType.BOOL,
    "p": ColumnType.BOOL, "q": ColumnType.BOOL, "event_time": ColumnType.TIMESTAMP, "mask": ColumnType.BINARY,
}  # fmt: skip


def verdict(text: str, **row: Any) -> bool | None:
    schema: dict[str, Any] = {
        "speed_mps": pl.Float64, "count": pl.Int64, "label": pl.String, "is_up": pl.Boolean, "p": pl.Boolean,
        "q": pl.Boolean, "event_time": pl.Datetime("us", "UTC"), "mask": pl.Binary,
    }  # fmt: skip
    frame = pl.DataFrame({name: [row.get(name), None] for name in schema}, schema=schema)
    result: bool | None = frame.with_columns(v=compile_expression(text, COLUMNS).to_polars())["v"][0]
    return result


KLEENE = [(p, q) for p in (True, False, None) for q in (True, False, None)]


@pytest.mark.parametrize(("p", "q"), KLEENE)
def test_and_or_and_not_follow_three_valued_logic(p: bool | None, q: bool | None) -> None:
    conjunction = False if False in (p, q) else None if None in (p, q) else True
    disjunction = True if True in (p, q) else None if None in (p, q) else False
    assert verdict("p AND q", p=p, q=q) is conjunction
    assert verdict("p OR q", p=p, q=q) is disjunction
    assert verdict("NOT p", p=p) is (None if p is None else not p)
    assert verdict("p = q", p=p, q=q) is (None if None in (p, q) else p == q)
    assert verdict("p IS TRUE", p=p) is (p is True)
    assert verdict("p IS NOT FALSE", p=p) is (p is not False)


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("speed_mps / 0 = 1", {"speed_mps": 1.0}, None),
        ("speed_mps / count = 1", {"speed_mps": 1.0, "count": 0}, None),
        ("sqrt(speed_mps) > 0", {"speed_mps": -1.0}, None),
        ("sqrt(speed_mps) IS NULL", {"speed_mps": -1.0}, True),
        ("speed_mps > 1", {"speed_mps": float("nan")}, None),
        ("speed_mps IS NULL", {"speed_mps": float("nan")}, True),
        ("speed_mps - speed_mps = 0", {"speed_mps": float("inf")}, None),
        ("count = 9007199254740992", {"count": 9007199254740993}, True),
        ("count / 2 = 1.5", {"count": 3}, True),
        ("label = 'it''s'", {"label": "it's"}, True),
        ("label LIKE 'A%'", {"label": "abc"}, False),
        ("label NOT LIKE 'a%'", {"label": None}, None),
        ("label < 'b'", {"label": "ab"}, True),
        ("label IN ('a', 'b')", {"label": None}, None),
        ("label NOT IN ('a', 'b')", {"label": "c"}, True),
        ("label IN ('a', 'b', 'c', 'd', 'e', 'f')", {"label": "f"}, True),
        ("count NOT BETWEEN 1 AND 3", {"count": 4}, True),
        ("least(count, 2, speed_mps) = 2", {"count": 3, "speed_mps": None}, None),
        ("greatest(count, 2) = 3", {"count": 3}, True),
        ("coalesce(label, 'none') = 'none'", {}, True),
        ("CASE WHEN count > 1 THEN 'many' WHEN count = 1 THEN 'one' END = 'one'", {"count": 1}, True),
        ("CASE label WHEN 'a' THEN 1 ELSE 2 END = 2", {"label": None}, True),
        ("length(label) = 2", {"label": "😀x"}, True),
        ("upper(label) = 'STRASSE'", {"label": "straße"}, True),
        ("starts_with(label, 'ab') AND ends_with(label, 'bc') AND contains(label, 'b')", {"label": "abc"}, True),
        ("mask IS NOT NULL", {"mask": b""}, True),
        ("-count < 0 AND - (-count) = 5", {"count": 5}, True),
        ("1 = 1", {}, True),
        ("is_up", {"is_up": True}, True),
        ("floor(speed_mps) = -2 AND ceil(speed_mps) = -1 AND abs(speed_mps) = 1.5", {"speed_mps": -1.5}, True),
    ],
)  # fmt: skip
def test_an_expression_means_what_the_language_says(text: str, row: dict[str, Any], expected: bool | None) -> None:
    assert verdict(text, **row) is expected


@pytest.mark.parametrize(
    "text",
    [
        "coalesce(FALSE, p)", "CASE WHEN 1 = 1 THEN TRUE ELSE p END", "3 > CASE WHEN p THEN 0.1 END", "FALSE AND p", "TRUE OR p",
        "NOT (1 = 1)", "length('abc') = 3", "CASE WHEN p THEN TRUE ELSE TRUE END", "hour('2026-01-01T05:00:00Z') = 5",
        "1 / 0 IS NULL",
        "CASE WHEN FALSE THEN count END IS NULL", "count + CASE WHEN p THEN 1 ELSE 1 END IS NULL",
    ],
)  # fmt: skip
def test_what_does_not_hang_on_the_row_still_gives_a_verdict_for_every_row(text: str) -> None:
    frame = pl.DataFrame({"p": [False] * 5, "count": [1] * 5})
    try:
        expression = compile_expression(text, COLUMNS).to_polars()
    except ExpressionError:
        assert text.startswith("hour(")  # a time is read from text only next to a time
        return
    assert frame.select(expression).height == 5
    assert len(set(frame.select(expression).to_series().to_list())) == 1


def test_hours_and_days_are_those_of_utc_and_monday_is_one() -> None:
    from datetime import UTC, datetime

    monday = datetime(2026, 1, 5, 23, 59, tzinfo=UTC)
    assert verdict("hour(event_time) = 23 AND day_of_week(event_time) = 1", event_time=monday) is True
    assert verdict("event_time > '2026-01-05T23:58:00Z' AND event_time < '2026-01-06T02:00:00+01:00'", event_time=monday) is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sped_mps > 1", "unknown column 'sped_mps' at line 1, column 1; did you mean 'speed_mps'?"),
        ("count > 1 AND lable = 'x'", "unknown column 'lable' at line 1, column 15; did you mean 'label'?"),
        ("lenght(label) > 1", "unknown function 'lenght' at line 1, column 1; did you mean length()?"),
        ("label > 1", "cannot compare text with number at line 1, column 1"),
        ("label + 1 > 1", "'label' is text, but number is needed at line 1, column 1"),
        ("speed_mps", "gives number, but must be true or false"),
        ("count = NULL", "write IS NULL"),
        ("count + NULL > 1", "compare with IS NULL"),
        ("is_up > FALSE", "bool knows only = and <>"),
        ("mask = mask", "cannot compare bytes with bytes"),
        ("event_time > '2026-01-01'", "write it as '2026-01-31T12:00:00Z'"),
        ("label LIKE label", "LIKE needs a text literal"),
        ("label LIKE '%a%b%c%'", "at most 3 '%'"),
        ("count IN (count)", "IN takes literals only"),
        ("count IN (1, NULL)", "IN takes literals only"),
        ("abs(count, 2) > 1", "abs() takes 1 arguments"),
        ("coalesce(label) = 'a'", "coalesce() takes 2 or more arguments"),
        ("coalesce(label, 1) = 'a'", "must be of one kind"),
        ("has('night')", "only a training set's selection sees"),
        ("1e999 > count", "too large for a double"),
        ("count >", "not an expression"),
        ("count > 1)", "not an expression"),
        ("", "1..4000 characters"),
        ("count > 1 \x00", "control characters"),
        ("count::text = '1'", "CAST is not in the language"),
        ("count; count", "not a statement"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_wrong_where_and_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, COLUMNS)
    assert words in str(caught.value)


def test_has_asks_for_tags_where_tags_are() -> None:
    expression = compile_expression("has('night') AND NOT has('wet')", {}, allow_tags=True)
    frame = pl.DataFrame({"tags": [["night"], ["night", "wet"], [], None]})
    assert frame.select(expression.to_polars()).to_series().to_list() == [True, False, False, None]


@pytest.mark.parametrize(
    "text",
    [
        "(" * 41 + "count > 1" + ")" * 41,
        "NOT " * 41 + "is_up",
        "- " * 41 + "count > 1",
        "abs(" * 60 + "count" + ")" * 60 + " > 1",
        "count" + " + 1" * 60 + " > 1",
        " OR ".join(["count > 1"] * 120),
        "count IN (" + ", ".join(["1"] * 400) + ")",
        "label = '" + "x" * 257 + "'",
        "count > 1 " + " " * 4000,
        "(" * 3000,
        "CASE WHEN is_up THEN " * 100,
        "NOT " * 900 + "is_up",
    ],
)  # fmt: skip
def test_an_expression_above_a_bound_is_refused_before_it_costs_anything(text: str) -> None:
    with pytest.raises(ExpressionError):
        compile_expression(text, COLUMNS)


@pytest.mark.parametrize(
    ("wrap", "times"),
    [("CASE WHEN ({}) BETWEEN 1 AND 2 THEN 1 ELSE 0 END", 12), ("least({}, 1)", 20), ("greatest({}, 1)", 20),
     ("CASE {} WHEN 1 THEN 1 WHEN 2 THEN 1 WHEN 3 THEN 1 END", 12)],
)  # fmt: skip
def test_a_nest_that_would_grow_with_a_power_of_its_depth_is_refused(wrap: str, times: int) -> None:
    text = "count"
    for _ in range(times):
        text = wrap.format(text)
    with pytest.raises(ExpressionError, match=r"too costly|nested deeper"):
        compile_expression(f"{text} = 1", COLUMNS)


def test_a_long_chain_of_or_is_one_level_deep() -> None:
    assert verdict(" OR ".join(f"count = {n}" for n in range(55)), count=54) is True


def test_deeply_nested_arithmetic_stays_linear_in_the_engine() -> None:
    text = "count"
    for _ in range(25):
        text = f"abs(1 / {text})" if len(text) % 2 else f"sqrt({text})"
    assert verdict(f"{text} > 0", count=1) is True


def test_comments_are_read_over_and_never_passed_on() -> None:
    assert verdict("count > 1 -- DROP TABLE x", count=2) is True
    assert verdict("/* hint */ count > 1", count=2) is True


def test_a_rule_that_does_not_compile_is_reported_with_the_line_of_the_file_and_of_the_expression(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "id: p\nstreams: [vehicle_telemetry]\nrules:\n  - {tag: a, when: speed_mps > 1}\n  - tag: b\n    when: |\n"
        "      speed_mps > 1\n      AND sped_mps > 2\n"
    )
    output = CliRunner().invoke(policy_app, ["check", str(path)]).output
    assert f"{path}:6: policy p, rule b, stream vehicle_telemetry: unknown column 'sped_mps' at line 2, column 5" in output
