"""The expression language's front door: text in, a checked, typed expression out. See docs/expressions.md.

Parts of an expression that read no column are computed before it meets a table. Polars folds such parts itself, late, and may
then give one row for a column (`coalesce(FALSE, x)`, `CASE WHEN 1 = 1 …`). After this pass a part without columns is a
literal, and a literal decides what it can decide.

When does an expression fail? Where values that were there give NULL: a zero divisor, a text that is no number, a NaN.

The answer is itself an expression of the language, so every engine can count it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from catchment.rules.rule import SqlExpression
from pipelines.errors import ExpressionError
from pipelines.expressions import ir
from pipelines.expressions.ir import Node, ValueKind, cost, refs
from pipelines.expressions.parse import Lowering, parse_bounded
from pipelines.expressions.to_polars import as_column, as_value_column, to_polars
from pipelines.expressions.to_sqlite import to_sqlite
from schemas.contract import ColumnType, Contract
from schemas.envelope import EVENT_TIME

_LITERALS = (ir.Number, ir.Text, ir.Truth, ir.Moment, ir.Nothing)
MAX_COST = 2_000
VALUE_KINDS = frozenset({ValueKind.NUMBER, ValueKind.TEXT, ValueKind.BOOL, ValueKind.TIME})

# What a rule may read of every row, next to the contract's columns.
ROW_COLUMNS: Mapping[str, ColumnType] = {
    EVENT_TIME: ColumnType.TIMESTAMP,
    "received_at": ColumnType.TIMESTAMP,
    "device": ColumnType.STRING,
    "epoch": ColumnType.INT64,
    "seq": ColumnType.INT64,
}

# NULL out of values, and each of them only by an error.
_CALLS = frozenset({"sqrt", "to_number", "local", "geo_distance_m", "geo_inside"})
# NULL out of values, and rightly so; or not NULL out of a NULL.
_LENIENT = frozenset({"coalesce", "split_part", "list_get"})


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
    value: Any = pl.select(expression.to_physical() if node.kind is ValueKind.TIME else expression).item()
    return _literal(value, node.kind)


def _literal(value: Any, kind: ValueKind) -> Node:
    if value is None:
        return ir.Nothing(kind)
    if kind is ValueKind.NUMBER:
        return ir.Number(float(value))
    if kind is ValueKind.TEXT:
        return ir.Text(str(value))
    return ir.Moment(int(value)) if kind is ValueKind.TIME else ir.Truth(bool(value))


def _junction(node: ir.And | ir.Or) -> Node:
    """A FALSE decides an AND, even next to NULL; a TRUE says nothing there. For OR the other way round."""
    decides = isinstance(node, ir.Or)
    truths = [part.value for part in node.parts if isinstance(part, ir.Truth)]
    if decides in truths:
        return ir.Truth(decides)
    open_parts = tuple(part for part in node.parts if not isinstance(part, ir.Truth))
    if not open_parts:
        return ir.Truth(not decides)
    if all(isinstance(part, ir.Nothing) for part in open_parts):
        return ir.Nothing(ValueKind.BOOL)
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


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that passed every check.

    `columns` are those it reads; a table it is applied to must have them (and `tags`, where has() was allowed).
    """

    text: str
    node: Node

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns it reads; of a struct's field, the struct's."""
        return frozenset(ref.column for ref in refs(self.node))

    @property
    def folded(self) -> Node:
        """The tree with every part that reads no column computed: what a column engine is given."""
        return fold(self.node)

    def to_polars(self) -> pl.Expr:
        """The Polars expression with this meaning, for a frame with the raw columns."""
        generated = to_polars(self.folded)
        return as_column(generated) if self.node.kind is ValueKind.BOOL else as_value_column(generated)

    def errors(self) -> "Expression | None":
        """The expression that is true for the rows in which a part of this one failed; None if no part of it can.

        A failed part is NULL, so a rule that failed is not true; this is how to learn of it.
        """
        failed = faults(self.node)
        return None if failed is None else Expression(self.text, failed)

    def to_edge(self) -> SqlExpression:
        """The same meaning for a device, which evaluates it with `catchment.rules.evaluator`.

        Raises:
            ExpressionError: it uses what a device does not have; the message says what.
        """
        return to_sqlite(self.node)


def compile_expression(
    text: str, columns: Mapping[str, ColumnType], *, allow_tags: bool = False, allow_labels: bool = False
) -> Expression:
    """Check an expression against the columns it may read.

    Args:
        text: the expression, of kind bool.
        columns: what it may read; `rule_columns` gives those of a contract.
        allow_tags: whether has('tag') may be used, for tables with a `tags` column.
        allow_labels: whether label('task') may be used, for tables to which somebody adds these columns (`ir.LABEL`).

    Raises:
        ExpressionError: not in the language, or not of the right kinds; the message shows where.
    """
    node = Lowering(columns, allow_tags, allow_labels).lower(parse_bounded(text))
    if node.kind is not ValueKind.BOOL:
        raise ExpressionError(f"the expression gives {node.kind}, but must be true or false; compare it with something")
    return _affordable(text, node)


def compile_value(text: str, columns: Mapping[str, ColumnType], *, allow_tags: bool = False) -> Expression:
    """Check an expression that gives a column: a number (a double), a text, a time, or true and false.

    Args:
        text: the expression.
        columns: what it may read.
        allow_tags: whether has('tag') may be used, for tables with a `tags` column.

    Raises:
        ExpressionError: not in the language, or it gives a list, bytes or always NULL; the message shows where.
    """
    node = Lowering(columns, allow_tags).lower(parse_bounded(text))
    if node.kind not in VALUE_KINDS:
        raise ExpressionError(f"the expression gives {node.kind}, but a column needs one of {', '.join(sorted(VALUE_KINDS))}")
    return _affordable(text, node)


def _affordable(text: str, node: Node) -> Expression:
    if cost(node) > MAX_COST:
        raise ExpressionError(f"too costly: nested BETWEEN, CASE or least() repeat their operands {cost(node):,} times in all")
    return Expression(text, node)


def rule_columns(contract: Contract) -> dict[str, ColumnType]:
    """Return the columns that a policy's rule may read of the rows of this contract."""
    return {**contract_columns(contract), **ROW_COLUMNS}


def contract_columns(contract: Contract) -> dict[str, ColumnType]:
    """The contract's columns, the fields of its structs as `column.field`, and those of a list's structs as `column[].field`."""
    fields = {
        f"{column.name}{'' if column.type is ColumnType.STRUCT else '[]'}.{field.name}": field.type
        for column in contract.columns
        for field in column.fields
    }
    return {column.name: column.type for column in contract.columns} | fields


def faults(node: Node) -> Node | None:
    """True for the rows in which a part of the expression failed; None if no part of it can."""
    found = _faults(node)
    if not found:
        return None
    return found[0] if len(found) == 1 else ir.Or(tuple(found))


def _faults(node: Node) -> list[Node]:
    if isinstance(node, ir.Case):
        return _of_case(node)
    if not _is_strict(node):
        return [fault for child in ir.children(node) for fault in _faults(child)]
    inputs, can_fail = _inputs(node)
    found = [fault for each in inputs for fault in _faults(each)]
    if can_fail:
        given: list[Node] = [ir.Not(ir.IsNull(each)) for each in inputs]
        found.append(ir.And((ir.IsNull(node), *given)))
    return found


def _of_case(node: ir.Case) -> list[Node]:
    """A branch that is not taken does not fail."""
    found = [fault for condition, _ in node.branches for fault in _faults(condition)]
    below = [faults(value) for value in (*(value for _, value in node.branches), node.default)]
    if any(below):
        values = [each or ir.Truth(value=False) for each in below]
        branches = tuple((condition, value) for (condition, _), value in zip(node.branches, values, strict=False))
        found.append(ir.Case(branches, values[-1], ValueKind.BOOL))
    return found


def _is_strict(node: Node) -> bool:
    """Whether a NULL below makes it NULL."""
    if isinstance(node, ir.Call):
        return node.name not in _LENIENT
    return isinstance(node, ir.Arithmetic | ir.Negate | ir.Compare | ir.Not | ir.Member | ir.Like | ir.Matches)


def _inputs(node: Node) -> tuple[list[Node], bool]:
    """Collect the inputs of a strict part of the tree, literals aside, and whether an operation in it can fail."""
    found: dict[int, Node] = {}
    can_fail, waiting = False, [node]
    while waiting:
        current = waiting.pop()
        if not _is_strict(current):
            if not isinstance(current, ir.Number | ir.Text | ir.Truth | ir.Moment):
                found[id(current)] = current
            continue
        can_fail |= isinstance(current, ir.Arithmetic) or (isinstance(current, ir.Call) and current.name in _CALLS)
        waiting.extend(ir.children(current))
    return list(found.values()), can_fail
