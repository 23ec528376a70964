"""Generates SQL for the sqlite3 of the standard library: the device's engine, with the verdicts of `to_polars`.

Every literal travels as a parameter: SQLite's own reading of decimal text is not correctly rounded in every release.
Numbers are bound and cast as REAL, truth as 0 and 1, times as INTEGER microseconds since 1970.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from catchment.rules.rule import Parameter, SqlExpression
from pipelines.errors import ExpressionError
from pipelines.expressions import ir
from pipelines.expressions.ir import Node, ValueKind, refs
from schemas.errors import EdgeRuleError

# What SQLite itself has with the language's meaning; all others are those of `catchment.rules.functions`.
_OWN = {"abs": "abs", "coalesce": "coalesce", "least": "min", "greatest": "max"}


def to_sqlite(node: Node, *, of_item: bool = False) -> SqlExpression:
    """The rule for a device with this node's meaning; `of_item`: over the fields of an object of a list.

    Raises:
        ExpressionError: it uses has(), which asks for tags that a device does not keep, or is too long for a device.
    """
    writer = _Writer(of_item)
    sql = writer.write(node)
    columns = {ref.field if of_item else ref.name: ref.type for ref in sorted(refs(node), key=lambda ref: ref.name)}
    try:
        return SqlExpression(sql, tuple(writer.parameters), columns)
    except EdgeRuleError as error:
        raise ExpressionError(f"not for a device: {error}") from error


@dataclass(slots=True)
class _Writer:
    of_item: bool
    parameters: list[Parameter] = field(default_factory=list)

    def write(self, node: Node) -> str:
        return _WRITERS[type(node)](self, node)

    def bind(self, value: Parameter) -> str:
        self.parameters.append(value)
        return "?"

    def joined(self, nodes: tuple[Node, ...], between: str) -> str:
        return between.join(self.write(node) for node in nodes)


def _ref(writer: _Writer, node: ir.Ref) -> str:
    if writer.of_item:
        return f'CAST("{node.field}" AS REAL)' if node.kind is ValueKind.NUMBER else f'"{node.field}"'
    if node.name.startswith(ir.LABEL):
        task = node.name.split(":")[1]
        raise ExpressionError(f"label('{task}') asks for what people said later, which a device does not have; use columns")
    if node.field:
        raise ExpressionError(f"{node.name} is a field of a struct, which no device keeps")
    # The name is one of the contract's: of a-z, 0-9 and '_'.
    return f'CAST("{node.name}" AS REAL)' if node.kind is ValueKind.NUMBER else f'"{node.name}"'


def _has(_writer: _Writer, node: ir.Has) -> str:
    raise ExpressionError(f"has('{node.tag}') asks for tags, which a device does not keep; use columns")


def _arithmetic(writer: _Writer, node: ir.Arithmetic) -> str:
    return f"({writer.write(node.left)} {node.op} {writer.write(node.right)})"


def _member(writer: _Writer, node: ir.Member) -> str:
    return f"({writer.write(node.operand)} IN ({writer.joined(node.values, ', ')}))"


def _case(writer: _Writer, node: ir.Case) -> str:
    branches = " ".join(f"WHEN {writer.write(condition)} THEN {writer.write(value)}" for condition, value in node.branches)
    return f"CASE {branches} ELSE {writer.write(node.default)} END"


def _call(writer: _Writer, node: ir.Call) -> str:
    if node.name == "epoch_us":
        return f"CAST({writer.write(node.args[0])} AS REAL)"
    return f"{_OWN.get(node.name, f'ct_{node.name}')}({writer.joined(node.args, ', ')})"


def _count_items(writer: _Writer, node: ir.CountItems) -> str:
    """The condition travels as a rule of its own, which the device checks and runs over the objects of each list."""
    inner = msgspec.json.encode(to_sqlite(node.condition, of_item=True)).decode()
    return f"ct_count_items({writer.write(node.operand)}, {writer.bind(inner)})"


def _matches(_writer: _Writer, _node: ir.Matches) -> str:
    raise ExpressionError("matches() is in the core only: a device's regular expressions can take time without bound; use LIKE")


_WRITERS: dict[type, Callable[[_Writer, Any], str]] = {
    ir.Number: lambda writer, node: writer.bind(node.value),
    ir.Text: lambda writer, node: writer.bind(node.value),
    ir.Truth: lambda writer, node: writer.bind(int(node.value)),
    ir.Moment: lambda writer, node: writer.bind(node.micros),
    ir.Nothing: lambda _writer, _node: "NULL",
    ir.Ref: _ref,
    ir.Has: _has,
    ir.Arithmetic: _arithmetic,
    ir.Negate: lambda writer, node: f"(- {writer.write(node.operand)})",
    ir.Compare: lambda writer, node: f"({writer.write(node.left)} {node.op} {writer.write(node.right)})",
    ir.And: lambda writer, node: f"({writer.joined(node.parts, ' AND ')})",
    ir.Or: lambda writer, node: f"({writer.joined(node.parts, ' OR ')})",
    ir.Not: lambda writer, node: f"(NOT {writer.write(node.operand)})",
    ir.Member: _member,
    ir.Like: lambda writer, node: f"ct_like({writer.write(node.operand)}, {writer.bind(node.pattern)})",
    ir.Matches: _matches,
    ir.IsNull: lambda writer, node: f"({writer.write(node.operand)} IS NULL)",
    ir.Case: _case,
    ir.Call: _call,
    ir.CountItems: _count_items,
}
