"""A checked expression as text again, part by part: what explanations and coverage name the parts by."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.expressions import ir
from pipelines.expressions.ir import Node, children

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_CHARS = 160


def render(node: Node) -> str:
    """The part as SQL text, shortened if it is long."""
    text = _text(node)
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"


def parts(node: Node) -> tuple[Node, ...]:
    """Every part of an expression that is neither a literal nor seen before, outermost first."""
    found: dict[str, Node] = {}
    waiting = [node]
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, ir.Number | ir.Text | ir.Truth | ir.Moment | ir.Nothing):
            found.setdefault(_text(current), current)
        waiting.extend(children(current))
    return tuple(found.values())


def branches(node: Node) -> tuple[Node, ...]:
    """The alternatives of an expression: the sides of each OR, the conditions of each CASE."""
    found: list[Node] = []
    for part in parts(node):
        if isinstance(part, ir.Or):
            found.extend(part.parts)
        elif isinstance(part, ir.Case):
            found.extend(condition for condition, _ in part.branches)
    return tuple(found)


def _text(node: Node) -> str:
    writer = _WRITERS.get(type(node))
    return writer(node) if writer else f"{type(node).__name__.lower()}({', '.join(map(_text, children(node)))})"


def _inner(node: Node) -> str:
    text = _text(node)
    return f"({text})" if isinstance(node, ir.And | ir.Or | ir.Not | ir.Compare | ir.Arithmetic) else text


def _number(node: ir.Number) -> str:
    return f"{node.value:g}" if abs(node.value) < 1e15 and node.value == float(f"{node.value:g}") else repr(node.value)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _ref(node: ir.Ref) -> str:
    if not node.name.startswith(ir.LABEL):
        return node.name
    _, task, rule = node.name.split(":")
    return f"label({_quoted(task)}, {_quoted(rule)})"


def _moment(node: ir.Moment) -> str:
    try:
        return _quoted((_EPOCH + timedelta(microseconds=node.micros)).isoformat())
    except OverflowError:
        return f"{node.micros} microseconds since 1970"


def _member(node: ir.Member) -> str:
    return f"{_inner(node.operand)} IN ({', '.join(map(_text, node.values))})"


def _case(node: ir.Case) -> str:
    whens = " ".join(f"WHEN {_text(condition)} THEN {_text(value)}" for condition, value in node.branches)
    return f"CASE {whens} ELSE {_text(node.default)} END"


def _negated(node: ir.Not) -> str:
    return f"{_inner(node.operand.operand)} IS NOT NULL" if isinstance(node.operand, ir.IsNull) else f"NOT {_inner(node.operand)}"


_WRITERS: dict[type, Callable[[Any], str]] = {
    ir.Number: _number,
    ir.Text: lambda node: _quoted(node.value),
    ir.Truth: lambda node: str(node.value).upper(),
    ir.Moment: _moment,
    ir.Nothing: lambda _node: "NULL",
    ir.Ref: _ref,
    ir.Has: lambda node: f"has({_quoted(node.tag)})",
    ir.Arithmetic: lambda node: f"{_inner(node.left)} {node.op} {_inner(node.right)}",
    ir.Negate: lambda node: f"-{_inner(node.operand)}",
    ir.Compare: lambda node: f"{_inner(node.left)} {node.op} {_inner(node.right)}",
    ir.And: lambda node: " AND ".join(map(_inner, node.parts)),
    ir.Or: lambda node: " OR ".join(map(_inner, node.parts)),
    ir.Not: _negated,
    ir.Member: _member,
    ir.Like: lambda node: f"{_inner(node.operand)} LIKE {_quoted(node.pattern)}",
    ir.IsNull: lambda node: f"{_inner(node.operand)} IS NULL",
    ir.Case: _case,
    ir.CountItems: lambda node: f"count_items({node.operand.name}, {_text(node.condition)})",
    ir.Call: lambda node: f"{node.name}({', '.join(map(_text, node.args))})",
}
