"""Generates Polars expressions that give the verdict the language defines (docs/expressions.md), not Polars' own.

Left to itself Polars gives inf and NaN where the language gives NULL, and divides a column by a scalar through the
reciprocal (0.3 / 0.1 gives 3.0 there, 2.9999999999999996 by IEEE 754). Both are undone here.

Within arithmetic a NaN stays one (it spreads as NULL does) and becomes NULL where a number leaves it. `replace` does
that and not `fill_nan` or when/then: those name their operand twice, so nested expressions would grow exponentially.
"""

import re
from collections.abc import Callable
from functools import reduce
from operator import and_, or_

import polars as pl

from pipelines.expressions import ir
from pipelines.expressions.ir import Kind, Node, Ref
from pipelines.expressions.polars_functions import CALLS
from schemas.contract import ColumnType

ColumnReader = Callable[[Ref], pl.Expr]
_MAKES_NAN = frozenset({"sqrt", "list_get", "geo_distance_m", "geo_inside"})
_NAN = float("nan")
_TIME = pl.Datetime("us", "UTC")
_DTYPES: dict[Kind, pl.DataType] = {
    Kind.NUMBER: pl.Float64(), Kind.TEXT: pl.String(), Kind.BOOL: pl.Boolean(), Kind.TIME: _TIME, Kind.BYTES: pl.Binary(),
}  # fmt: skip
_COMPARE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "=": pl.Expr.eq, "<>": pl.Expr.ne, "<": pl.Expr.lt, "<=": pl.Expr.le, ">": pl.Expr.gt, ">=": pl.Expr.ge,
}  # fmt: skip


def normalised(ref: Ref) -> pl.Expr:
    """The column as the language sees it: numbers are doubles without NaN, times are microseconds in UTC."""
    column = pl.col(ref.column).struct.field(ref.field) if ref.field else pl.col(ref.name)
    if ref.kind is Kind.NUMBERS:
        return column.cast(pl.List(pl.Float64))
    if ref.kind is Kind.NUMBER:
        number = column.cast(pl.Float64)
        return number.replace(_NAN, None) if ref.type in (ColumnType.FLOAT32, ColumnType.FLOAT64) else number
    return column.cast(_TIME) if ref.kind is Kind.TIME else column


def to_polars(node: Node, read: ColumnReader = normalised) -> pl.Expr:
    """The Polars expression for this node; `read` gives a column as the language sees it."""
    result = _raw(node, read)
    return result.replace(_NAN, None) if _may_be_nan(node) else result


def as_column(verdict: pl.Expr) -> pl.Expr:
    """The verdict as a column as long as the frame.

    Polars gives one row for a when/then of literals whose condition comes out the same for all rows.
    """
    return verdict & pl.repeat(value=True, n=pl.len(), dtype=pl.Boolean)


def _raw(node: Node, read: ColumnReader) -> pl.Expr:
    """The same, but NaN may stand for NULL."""
    return _GENERATORS[type(node)](node, read)


def _may_be_nan(node: Node) -> bool:
    while isinstance(node, ir.Negate) or (isinstance(node, ir.Call) and node.name in ("abs", "floor", "ceil", "round", "sign")):
        node = node.operand if isinstance(node, ir.Negate) else node.args[0]
    return isinstance(node, ir.Arithmetic) or (isinstance(node, ir.Call) and node.name in _MAKES_NAN)


def _literal(node: ir.Number | ir.Text | ir.Truth, _read: ColumnReader) -> pl.Expr:
    return pl.lit(node.value, dtype=_DTYPES[node.kind])


def _moment(node: ir.Moment, _read: ColumnReader) -> pl.Expr:
    return pl.lit(node.micros, dtype=pl.Int64).cast(_TIME)


def _nothing(node: ir.Nothing, _read: ColumnReader) -> pl.Expr:
    return pl.lit(None, dtype=_DTYPES[node.kind])


def _arithmetic(node: ir.Arithmetic, read: ColumnReader) -> pl.Expr:
    left, right = _raw(node.left, read), _raw(node.right, read)
    if node.op == "+":
        return left + right
    if node.op == "-":
        return left - right
    if node.op == "*":
        return left * right
    columns = ir.refs(node.left)
    if columns and not ir.refs(node.right):
        # Make the divisor a column of zeros plus itself; pl.repeat would still count as a scalar.
        some = read(min(columns, key=lambda ref: ref.name))
        right = some.is_null().cast(pl.Float64) * 0.0 + right
    return left / right.replace(0.0, None)


def _compare(node: ir.Compare, read: ColumnReader) -> pl.Expr:
    return _COMPARE[node.op](to_polars(node.left, read), to_polars(node.right, read))


def _member(node: ir.Member, read: ColumnReader) -> pl.Expr:
    operand = to_polars(node.operand, read)
    if node.operand.kind is Kind.TEXT and len(node.values) > 4:
        return operand.is_in([value.value for value in node.values if isinstance(value, ir.Text)])
    return reduce(or_, (operand == to_polars(value, read) for value in node.values))


def _like(node: ir.Like, read: ColumnReader) -> pl.Expr:
    operand, pattern = to_polars(node.operand, read), node.pattern
    core = pattern.strip("%")
    if "%" in core or "_" in core:
        translated = "".join({"%": ".*", "_": "."}.get(character, re.escape(character)) for character in pattern)
        return operand.str.contains(f"(?s)^{translated}$")
    if core == pattern:
        return operand == core
    if pattern.startswith("%") and pattern.endswith("%"):
        return operand.str.contains(core, literal=True)
    return operand.str.ends_with(core) if pattern.startswith("%") else operand.str.starts_with(core)


def _case(node: ir.Case, read: ColumnReader) -> pl.Expr:
    result = to_polars(node.default, read)
    for condition, value in reversed(node.branches):
        result = pl.when(to_polars(condition, read)).then(to_polars(value, read)).otherwise(result)
    return result


def _matches(node: ir.Matches, read: ColumnReader) -> pl.Expr:
    return to_polars(node.operand, read).str.contains(node.pattern)


_KEEPS_NAN = frozenset({"abs", "floor", "ceil", "round", "sign", "sqrt", "geo_distance_m", "geo_inside"})


def _call(node: ir.Call, read: ColumnReader) -> pl.Expr:
    generate = _raw if node.name in _KEEPS_NAN else to_polars
    return CALLS[node.name]([generate(arg, read) for arg in node.args], node.args)


_GENERATORS: dict[type, Callable[..., pl.Expr]] = {
    ir.Number: _literal,
    ir.Text: _literal,
    ir.Truth: _literal,
    ir.Moment: _moment,
    ir.Nothing: _nothing,
    ir.Ref: lambda node, read: read(node),
    ir.Has: lambda node, _read: pl.col("tags").list.contains(pl.lit(node.tag, dtype=pl.String)),
    ir.Arithmetic: _arithmetic,
    ir.Negate: lambda node, read: -_raw(node.operand, read),
    ir.Compare: _compare,
    ir.And: lambda node, read: reduce(and_, (to_polars(part, read) for part in node.parts)),
    ir.Or: lambda node, read: reduce(or_, (to_polars(part, read) for part in node.parts)),
    ir.Not: lambda node, read: ~to_polars(node.operand, read),
    ir.Member: _member,
    ir.Like: _like,
    ir.Matches: _matches,
    ir.IsNull: lambda node, read: to_polars(node.operand, read).is_null(),
    ir.Case: _case,
    ir.Call: _call,
}
