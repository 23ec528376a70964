"""Generates Polars expressions that give the verdict the language defines (docs/expressions.md), not Polars' own.

Left to itself Polars gives inf and NaN where the language gives NULL, and divides a column by a scalar through the
reciprocal (0.3 / 0.1 gives 3.0 there, 2.9999999999999996 by IEEE 754). Both are undone here.

Within arithmetic a NaN stays one (it spreads as NULL does) and becomes NULL where a number leaves it. `replace` does
that and not `fill_nan` or when/then: those name their operand twice, so nested expressions would grow exponentially.

The language's functions as Polars expressions: native where Polars means the same, over numpy columns where it does not.
"""

import re
from collections.abc import Callable, Sequence
from functools import reduce
from operator import and_, or_
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from catchment.rules import geo
from catchment.rules.calendar import EARLIEST_US, LATEST_US, read_zone
from catchment.rules.functions import BLANKS, NUMBER_TEXT
from pipelines.expressions import ir
from pipelines.expressions.ir import Node, Ref, ValueKind
from schemas.contract import ColumnType

ColumnReader = Callable[[Ref], pl.Expr]
_MAKES_NAN = frozenset({"sqrt", "list_get", "geo_distance_m", "geo_inside"})
_NAN = float("nan")
_TIME = pl.Datetime("us", "UTC")
_DTYPES: dict[ValueKind, pl.DataType] = {
    ValueKind.NUMBER: pl.Float64(), ValueKind.TEXT: pl.String(), ValueKind.BOOL: pl.Boolean(), ValueKind.TIME: _TIME,
    ValueKind.BYTES: pl.Binary(),
}  # fmt: skip
_COMPARE: dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "=": pl.Expr.eq, "<>": pl.Expr.ne, "<": pl.Expr.lt, "<=": pl.Expr.le, ">": pl.Expr.gt, ">=": pl.Expr.ge,
}  # fmt: skip


_Floats: TypeAlias = npt.NDArray[np.float64]
Generate: TypeAlias = Callable[[list[pl.Expr], Sequence[ir.Node]], pl.Expr]
_INF = float("inf")
_COLUMNS = geo.Operations(np.sqrt, np.where)


def normalised(ref: Ref) -> pl.Expr:
    """The column as the language sees it: numbers are doubles without NaN, times are microseconds in UTC."""
    return _normal(pl.col(ref.column).struct.field(ref.field) if ref.field else pl.col(ref.name), ref)


def _normal(column: pl.Expr, ref: Ref) -> pl.Expr:
    if ref.kind is ValueKind.NUMBERS:
        return column.cast(pl.List(pl.Float64))
    if ref.kind is ValueKind.NUMBER:
        number = column.cast(pl.Float64)
        return number.replace(_NAN, None) if ref.type in (ColumnType.FLOAT32, ColumnType.FLOAT64) else number
    return column.cast(_TIME) if ref.kind is ValueKind.TIME else column


def to_polars(node: Node, read: ColumnReader = normalised) -> pl.Expr:
    """The Polars expression for this node; `read` gives a column as the language sees it."""
    result = _raw(node, read)
    return result.replace(_NAN, None) if _may_be_nan(node) else result


def as_column(verdict: pl.Expr) -> pl.Expr:
    """The verdict as a column as long as the frame.

    Polars gives one row for a when/then of literals whose condition comes out the same for all rows.
    """
    return verdict & pl.repeat(value=True, n=pl.len(), dtype=pl.Boolean)


def as_value_column(value: pl.Expr) -> pl.Expr:
    """A number, text or time as a column as long as the frame, for the same reason."""
    return pl.when(pl.repeat(value=True, n=pl.len(), dtype=pl.Boolean)).then(value)


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
    if node.operand.kind is ValueKind.TEXT and len(node.values) > 4:
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


def _count_items(node: ir.CountItems, read: ColumnReader) -> pl.Expr:
    """Polars runs the condition over all objects of all lists at once; a condition without fields must be as long as they are."""
    met = to_polars(node.condition, _field_of_item).fill_null(value=False)
    whole = pl.when(pl.element().is_null().is_not_null()).then(met)
    return read(node.operand).list.eval(whole.cast(pl.Float64)).list.sum()


def _field_of_item(ref: Ref) -> pl.Expr:
    return _normal(pl.element().struct.field(ref.field), ref)


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
    ir.CountItems: _count_items,
}


def _number(expression: pl.Expr) -> pl.Expr:
    return expression.cast(pl.Float64)


def _value(node: ir.Node) -> int:
    return int(node.value) if isinstance(node, ir.Number) else 0


def _words(node: ir.Node) -> str:
    return node.value if isinstance(node, ir.Text) else ""


def _strict(fold: Callable[[list[pl.Expr]], pl.Expr]) -> Generate:
    """LEAST and GREATEST of the language are NULL if an argument is; Polars' own skip it."""
    return lambda args, _: pl.when(pl.all_horizontal(arg.is_not_null() for arg in args)).then(fold(args))


def _local(args: list[pl.Expr], nodes: Sequence[ir.Node]) -> pl.Expr:
    zone = read_zone(_words(nodes[1]))
    starts, offsets = np.array(zone.starts, np.int64), np.array(zone.offsets, np.int64)

    def shift(times: pl.Series) -> pl.Series:
        micros = times.to_physical().fill_null(LATEST_US).to_numpy()
        shifted = micros + (offsets[np.searchsorted(starts, micros, side="right")] if len(starts) else offsets[0])
        is_out = (micros < EARLIEST_US) | (micros >= LATEST_US)
        return pl.Series(pa.array(shifted, mask=is_out)).cast(_TIME)

    return args[0].map_batches(shift, return_dtype=_TIME, is_elementwise=True)


def _over_columns(function: Callable[..., _Floats], *more: str) -> Callable[[list[pl.Expr]], pl.Expr]:
    """A function of floats over whole columns; NULL goes in as NaN, and comes out as NaN."""

    def run(columns: Sequence[pl.Series]) -> pl.Series:
        # A null bitmap becomes NaN in to_numpy; a column without one is passed as it is.
        with np.errstate(all="ignore"):
            given = [column.cast(pl.Float64).to_numpy() for column in columns]
            return pl.Series(np.atleast_1d(function(*given, *more)))

    return lambda args: pl.map_batches(args, run, return_dtype=pl.Float64, is_elementwise=True)


def _distance(args: list[pl.Expr], _nodes: Sequence[ir.Node]) -> pl.Expr:
    return _over_columns(lambda *given: geo.distance_m(_COLUMNS, *given))(args)


def _inside(args: list[pl.Expr], nodes: Sequence[ir.Node]) -> pl.Expr:
    polygon = _words(nodes[2])
    return _over_columns(lambda lat, lon: geo.inside(_COLUMNS, lat, lon, polygon))(args[:2])


def _to_number(args: list[pl.Expr], _nodes: Sequence[ir.Node]) -> pl.Expr:
    text = args[0].str.extract(f"^({NUMBER_TEXT})$", 1)
    return text.cast(pl.Float64, strict=False).replace([_INF, -_INF], [None, None])


CALLS: dict[str, Generate] = {
    "abs": lambda args, _: args[0].abs(),
    "floor": lambda args, _: args[0].floor(),
    "ceil": lambda args, _: args[0].ceil(),
    "round": lambda args, _: args[0].round(0, mode="half_away_from_zero"),
    "sign": lambda args, _: args[0].sign(),
    "sqrt": lambda args, _: args[0].sqrt(),
    "least": _strict(pl.min_horizontal),
    "greatest": _strict(pl.max_horizontal),
    "to_number": _to_number,
    "lower": lambda args, _: args[0].str.to_lowercase(),
    "upper": lambda args, _: args[0].str.to_uppercase(),
    "length": lambda args, _: _number(args[0].str.len_chars()),
    "trim": lambda args, _: args[0].str.strip_chars(BLANKS),
    "ltrim": lambda args, _: args[0].str.strip_chars_start(BLANKS),
    "rtrim": lambda args, _: args[0].str.strip_chars_end(BLANKS),
    "substr": lambda args, nodes: args[0].str.slice(_value(nodes[1]) - 1, _value(nodes[2])),
    "right": lambda args, nodes: args[0].str.tail(_value(nodes[1])),
    "replace": lambda args, nodes: args[0].str.replace_all(_words(nodes[1]), _words(nodes[2]), literal=True),
    "split_part": lambda args, nodes: args[0].str.split(_words(nodes[1])).list.get(_value(nodes[2]) - 1, null_on_oob=True),
    "concat": lambda args, _: pl.concat_str(args),
    "starts_with": lambda args, _: args[0].str.starts_with(args[1]),
    "ends_with": lambda args, _: args[0].str.ends_with(args[1]),
    "contains": lambda args, _: args[0].str.contains(args[1], literal=True),
    "occurrences": lambda args, nodes: _number(args[0].str.count_matches(_words(nodes[1]), literal=True)),
    "coalesce": lambda args, _: pl.coalesce(args),
    "local": _local,
    "year": lambda args, _: _number(args[0].dt.year()),
    "month": lambda args, _: _number(args[0].dt.month()),
    "day": lambda args, _: _number(args[0].dt.day()),
    "hour": lambda args, _: _number(args[0].dt.hour()),
    "minute": lambda args, _: _number(args[0].dt.minute()),
    "second": lambda args, _: _number(args[0].dt.second()),
    "day_of_week": lambda args, _: _number(args[0].dt.weekday()),
    "day_of_year": lambda args, _: _number(args[0].dt.ordinal_day()),
    "week": lambda args, _: _number(args[0].dt.week()),
    "date_text": lambda args, _: args[0].dt.strftime("%Y-%m-%d"),
    "epoch_us": lambda args, _: _number(args[0].to_physical()),
    "geo_distance_m": _distance,
    "geo_inside": _inside,
    "list_contains": lambda args, _: args[0].list.contains(args[1]),
    "list_length": lambda args, _: _number(args[0].list.len()),
    "list_get": lambda args, nodes: args[0].list.get(_value(nodes[1]) - 1, null_on_oob=True),
}
