"""Computes the parts of an expression that read no column, before it meets a table.

Polars folds such parts itself, late, and may then give one row where a column was asked for (`coalesce(FALSE, x)`,
`CASE WHEN 1 = 1 …`). After this pass a part without columns is a literal, and a literal decides what it can decide.
"""

from dataclasses import replace
from typing import Any

import polars as pl

from pipelines.expressions import ir
from pipelines.expressions.ir import Kind, Node
from pipelines.expressions.to_polars import to_polars

_LITERALS = (ir.Number, ir.Text, ir.Truth, ir.Moment, ir.Nothing)


def fold(node: Node) -> Node:
    """The same meaning with every columnless part computed."""
    return _fold(node, {})


def _fold(node: Node, known: dict[int, Node]) -> Node:
    """Nodes may be shared, so each is folded once."""
    if id(node) not in known:
        known[id(node)] = _decided(_with_folded_children(node, known))
    return known[id(node)]


def _with_folded_children(node: Node, known: dict[int, Node]) -> Node:
    def below(child: Node) -> Node:
        return _fold(child, known)

    match node:
        case ir.Arithmetic() | ir.Compare():
            return replace(node, left=below(node.left), right=below(node.right))
        case ir.Negate() | ir.Not() | ir.IsNull() | ir.Like() | ir.Matches() | ir.Member():
            return replace(node, operand=below(node.operand))
        case ir.And() | ir.Or():
            return replace(node, parts=tuple(map(below, node.parts)))
        case ir.Case():
            branches = tuple((below(condition), below(value)) for condition, value in node.branches)
            return replace(node, branches=branches, default=below(node.default))
        case ir.Call():
            return replace(node, args=tuple(map(below, node.args)))
        case _:
            return node


def _decided(node: Node) -> Node:
    """The node where its children are folded already."""
    below = ir.children(node)
    if isinstance(node, ir.And | ir.Or):
        return _junction(node)
    if isinstance(node, ir.Case):
        return _case(node)
    if isinstance(node, ir.Call) and node.name == "coalesce":
        return _coalesce(node)
    if not isinstance(node, ir.IsNull) and any(isinstance(child, ir.Nothing) for child in below):
        return ir.Nothing(node.kind)  # every other operation and function gives NULL for a NULL
    return _computed(node) if below and all(isinstance(child, _LITERALS) for child in below) else node


def _computed(node: Node) -> Node:
    expression = to_polars(node)
    value: Any = pl.select(expression.to_physical() if node.kind is Kind.TIME else expression).item()
    return _literal(value, node.kind)


def _literal(value: Any, kind: Kind) -> Node:
    if value is None:
        return ir.Nothing(kind)
    if kind is Kind.NUMBER:
        return ir.Number(float(value))
    if kind is Kind.TEXT:
        return ir.Text(str(value))
    return ir.Moment(int(value)) if kind is Kind.TIME else ir.Truth(bool(value))


def _junction(node: ir.And | ir.Or) -> Node:
    """A FALSE decides an AND, even beside NULL; a TRUE says nothing there. For OR the other way round."""
    decides = isinstance(node, ir.Or)
    truths = [part.value for part in node.parts if isinstance(part, ir.Truth)]
    if decides in truths:
        return ir.Truth(decides)
    open_parts = tuple(part for part in node.parts if not isinstance(part, ir.Truth))
    if not open_parts:
        return ir.Truth(not decides)
    if all(isinstance(part, ir.Nothing) for part in open_parts):
        return ir.Nothing(Kind.BOOL)
    return open_parts[0] if len(open_parts) == 1 else replace(node, parts=open_parts)


def _case(node: ir.Case) -> Node:
    """A branch whose condition is FALSE or NULL is never taken; one whose condition is TRUE ends the search."""
    branches: list[tuple[Node, Node]] = []
    for condition, value in node.branches:
        if isinstance(condition, ir.Truth) and condition.value:
            return replace(node, branches=tuple(branches), default=value) if branches else value
        if not isinstance(condition, ir.Truth | ir.Nothing):
            branches.append((condition, value))
    return replace(node, branches=tuple(branches)) if branches else node.default


def _coalesce(node: ir.Call) -> Node:
    args: list[Node] = []
    for arg in node.args:
        if isinstance(arg, ir.Nothing):
            continue
        args.append(arg)
        if isinstance(arg, _LITERALS):
            break
    if not args:
        return ir.Nothing(node.kind)
    return args[0] if len(args) == 1 else replace(node, args=tuple(args))
