"""Explain a sample's tags: each rule's result, the value of each part of its expression, and how near it was. No IO."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.expressions import ir
from pipelines.expressions.expression import Expression, fold
from pipelines.expressions.ir import Node, ValueKind
from pipelines.expressions.render import parts, render
from pipelines.expressions.to_polars import to_polars
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import completed

NEAR_SHARE = 0.1  # a number within a tenth of its limit was near


class RuleResult(StrEnum):
    """The result of a rule for the sample."""

    TRUE = "true"
    NEARLY = "nearly"
    FALSE = "false"
    NULL = "null"


@dataclass(frozen=True, slots=True)
class RulePart:
    """A part of an expression and its value for the sample; None is NULL."""

    text: str
    value: Any


@dataclass(frozen=True, slots=True)
class Explained:
    """One rule. `missing` says what kept it from being true, where little did."""

    tag: str
    policy: str
    text: str
    verdict: RuleResult
    parts: tuple[RulePart, ...]
    missing: str = ""


def explain(tagger: Tagger, row: pa.Table) -> tuple[Explained, ...]:
    """Explain every rule for one row; those that are true first, then those that nearly were.

    Args:
        tagger: the rules.
        row: a table of exactly one row.
    """
    assert row.num_rows == 1, "one sample is explained at a time"
    raw: Any = pl.from_arrow(completed(row, tagger.contract))
    frame: pl.DataFrame = raw
    found = [_explained(rule.tag, rule.policy, expression, frame) for rule in tagger.rules for expression in rule.expressions]
    order = list(RuleResult)
    return tuple(sorted(found, key=lambda each: order.index(each.verdict)))


def _explained(tag: str, policy: str, expression: Expression, frame: pl.DataFrame) -> Explained:
    value = value_of(expression.node, frame)
    shown = tuple(RulePart(render(part), value_of(part, frame)) for part in parts(expression.node))
    if value is True:
        return Explained(tag, policy, expression.text, RuleResult.TRUE, shown)
    missing = _missing(expression.node, frame)
    verdict = RuleResult.NEARLY if missing else RuleResult.NULL if value is None else RuleResult.FALSE
    return Explained(tag, policy, expression.text, verdict, shown, missing)


def value_of(node: Node, frame: pl.DataFrame) -> Any:
    """The value of a part for the one row of `frame`."""
    column = frame.select(to_polars(fold(node)).alias("value")).get_column("value")
    value = column.to_list()[0]
    return value if node.kind is not ValueKind.NUMBER or value is None else float(value)


def _missing(node: Node, frame: pl.DataFrame) -> str:
    """Return the false parts of an expression that is nearly true; empty if there are more than a few."""
    if isinstance(node, ir.And):
        false = [part for part in node.parts if value_of(part, frame) is not True]
        return _tell(false[0], frame) if len(false) == 1 else ""
    if isinstance(node, ir.Or):
        return next((missing for part in node.parts if (missing := _missing(part, frame))), "")
    return _tell(node, frame) if _is_near(node, frame) else ""


def _tell(node: Node, frame: pl.DataFrame) -> str:
    if isinstance(node, ir.Compare):
        return f"{render(node)}, where {render(node.left)} is {_shown(value_of(node.left, frame))}"
    return f"{render(node)} is {_shown(value_of(node, frame))}"


def _is_near(node: Node, frame: pl.DataFrame) -> bool:
    if not isinstance(node, ir.Compare) or node.left.kind is not ValueKind.NUMBER or node.op == "<>":
        return False
    left, right = value_of(node.left, frame), value_of(node.right, frame)
    return left is not None and right is not None and abs(left - right) <= NEAR_SHARE * max(abs(left), abs(right))


def _shown(value: Any) -> str:
    return "NULL" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
