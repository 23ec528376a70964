"""A device evaluates what the core compiled, and nothing else."""

import math
from typing import Any

import msgspec
import pytest

from catchment.rules.evaluator import EdgeEvaluator, EdgeLimits, evaluate
from catchment.rules.rule import SqlExpression, decode_edge_rule
from schemas.contract import ColumnType
from schemas.errors import EdgeRuleError

SPEED = {"speed": ColumnType.FLOAT64}
FAST = SqlExpression('(CAST("speed" AS REAL) > ?)', (25.0,), SPEED)


def test_each_rule_gives_a_verdict_for_each_row() -> None:
    slow = SqlExpression('(CAST("speed" AS REAL) < ?)', (5,), SPEED)
    assert evaluate({"speed": [30.0, 1, None, math.nan, math.inf]}, [FAST, slow], 5) == [
        [True, False, None, None, True],
        [False, True, None, None, False],
    ]


def test_an_absent_column_is_null_and_an_unread_one_is_not_looked_at() -> None:
    assert evaluate({"other": [1]}, [FAST], 1) == [[None]]


def test_batch_after_batch_sees_its_own_rows_only() -> None:
    evaluator = EdgeEvaluator([FAST])
    assert evaluator.evaluate({"speed": [30.0, 1.0]}, 2) == [[True, False]]
    assert evaluator.evaluate({"speed": [1.0]}, 1) == [[False]]
    assert evaluator.evaluate({"speed": []}, 0) == [[]]


def test_a_float32_is_judged_as_the_wire_carries_it() -> None:
    rule = SqlExpression('(CAST("x" AS REAL) = ?)', (0.1,), {"x": ColumnType.FLOAT32})
    assert evaluate({"x": [0.1, 0.5, None]}, [rule], 3) == [[False, False, None]]


def test_a_rule_goes_over_the_wire_and_back() -> None:
    rule = SqlExpression('(ct_lower("s") IN (?, ?))', ("a", "ß"), {"s": ColumnType.STRING})
    assert decode_edge_rule(msgspec.json.encode(rule)) == rule


@pytest.mark.parametrize(
    "sql",
    [
        "", "SELECT 1", "1", "'x'", "x'41'", '("speed" > ?); DROP TABLE samples', '("speed" > ?)) FROM samples --',
        '("speed" > ?) /* x */', '(SELECT "speed")', 'load_extension("speed")', 'randomblob("speed" > ?)', '("speed" > ?',
        '"speed" > ?)', '"speed" > ?, "speed"', '("speed" COLLATE nocase > ?)', '("main"."speed" > ?)', '("speed" > ?1)',
        '("speed" > :a)', '("speed" > @a)', "(CAST(? AS TEXT))", '("speed" > random())', '("speed" || ?)', '("Speed" > ?)',
        '("speed" GLOB ?)', '("speed" > ?) FROM sqlite_master', "[speed] > ?", "`speed` > ?", '("speed" LIKE ?)', "(a > ?)",
        '("speed" > ?) UNION ALL SELECT', 'count("speed" > ?)', '("speed" > (WITH x))', 'hex("speed" > ?)', "PRAGMA x",
        '("speed" > ?\0)', '("speed" > ?) LIMIT 1', '(EXISTS ("speed" > ?))', '("speed" OVER (? > ?))', '"speed" > ? ;',
    ],
)  # fmt: skip
def test_text_that_the_core_does_not_write_is_no_edge_rule(sql: str) -> None:
    with pytest.raises(EdgeRuleError):
        SqlExpression(sql, (1.0,), SPEED)


def test_parameters_and_columns_must_fit_the_text() -> None:
    for parameters, columns in (((), SPEED), ((1.0, 2.0), SPEED), ((1.0,), {}), ((1.0,), {**SPEED, "x": ColumnType.BOOL})):
        with pytest.raises(EdgeRuleError):
            SqlExpression(FAST.sql, parameters, columns)


def test_a_rule_that_cannot_be_prepared_is_suspended_and_the_others_go_on() -> None:
    wrong = SqlExpression('(("speed", ?) IS NULL)', (1.0,), SPEED)
    evaluator = EdgeEvaluator([wrong, FAST])
    assert evaluator.evaluate({"speed": [30.0]}, 1) == [[None], [True]]
    assert list(evaluator.suspended) == [0]


def test_an_aggregate_does_not_pass_for_a_verdict() -> None:
    evaluator = EdgeEvaluator([SqlExpression('(max("speed") > ?)', (1.0,), SPEED), FAST])
    assert evaluator.evaluate({"speed": [30.0, 1.0]}, 2)[1] == [True, False]
    assert "verdicts for 2 rows" in evaluator.suspended[0]


def test_a_rule_over_its_budget_is_suspended_and_the_others_go_on() -> None:
    heavy = SqlExpression(f'("speed" IN ({", ".join("?" * 1_000)}))', tuple(range(1_000)), SPEED)
    long = SqlExpression("(" + " OR ".join(['(CAST("speed" AS REAL) < ?)'] * 900) + ")", (-1.0,) * 900, SPEED)
    evaluator = EdgeEvaluator([long, FAST, heavy], EdgeLimits(max_steps_per_row=300))
    assert evaluator.evaluate({"speed": [30.0] * 50}, 50)[1] == [True] * 50
    assert evaluator.suspended.keys() >= {0}
    assert 1 not in evaluator.suspended
    assert "budget" in evaluator.suspended[0]
    assert evaluator.evaluate({"speed": [30.0] * 50}, 50)[:2] == [[None] * 50, [True] * 50]


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (ColumnType.FLOAT64, ["30"]), (ColumnType.FLOAT64, [True]), (ColumnType.STRING, [1]), (ColumnType.INT64, [1.5]),
        (ColumnType.BOOL, [1]), (ColumnType.INT64, [2**63]), (ColumnType.STRING, ["\ud800"]), (ColumnType.FLOAT64, [1.0, 2.0]),
        (ColumnType.STRING, ["x" * 2_000_000]),
    ],
)  # fmt: skip
def test_values_that_are_not_of_the_column_are_refused_and_the_next_batch_is_judged(type_: ColumnType, values: list[Any]) -> None:
    evaluator = EdgeEvaluator([SqlExpression('("x" IS NULL)', (), {"x": type_})])
    with pytest.raises(EdgeRuleError):
        evaluator.evaluate({"x": values}, 1)
    assert evaluator.evaluate({"x": [None]}, 1) == [[True]]


def test_rules_that_read_one_column_as_two_types_are_refused() -> None:
    with pytest.raises(EdgeRuleError, match="as float64 and as int64"):
        EdgeEvaluator([FAST, SqlExpression(FAST.sql, (1.0,), {"speed": ColumnType.INT64})])


def test_no_rule_reaches_another_table_even_past_its_text() -> None:
    evaluator = EdgeEvaluator([FAST])
    for sql in ("SELECT * FROM sqlite_master", "ATTACH '/tmp/x.db' AS y", "PRAGMA journal_mode", "DROP TABLE samples",
                "CREATE TABLE x (a)", "SELECT load_extension('x')", "SELECT random()",
                "UPDATE samples SET _row = 1"):  # fmt: skip
        with pytest.raises(Exception, match=r"not authorized|prohibited|denied"):
            evaluator._connection.execute(sql)
