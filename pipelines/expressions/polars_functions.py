"""The language's functions as Polars expressions: native where Polars means the same, over numpy columns where it does not."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from catchment.rules import geo
from catchment.rules.calendar import EARLIEST_US, LATEST_US, read_zone
from catchment.rules.functions import BLANKS, NUMBER_TEXT
from pipelines.expressions import ir

_Floats: TypeAlias = npt.NDArray[np.float64]
Generate: TypeAlias = Callable[[list[pl.Expr], Sequence[ir.Node]], pl.Expr]
_INF = float("inf")
_TIME = pl.Datetime("us", "UTC")
_COLUMNS = geo.Operations(np.sqrt, np.where)


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
