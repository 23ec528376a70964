"""Which type a column of text or JSON values has, so that the agent can fill it with every one of them."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from schemas.written_values import NumberForm, TimeForm, WrittenValueError, read_time

PLAIN = NumberForm()
# Tried in this order on a table; the first in which the most columns are numbers is its form.
NUMBER_FORMS = (
    PLAIN,
    *(NumberForm(*pair) for pair in ((",", ""), (",", "."), (",", " "), (",", "'"), (".", " "), (".", "'"), (".", ","))),
)
# Forms in which loggers and spreadsheets write times, beside RFC 3339.
TIME_FORMATS = (
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M:%S.%f", "%d.%m.%Y %H:%M:%S,%f", "%d.%m.%Y %H:%M", "%d.%m.%y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M:%S %p", "%d/%m/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M:%S.%f", "%d/%m/%Y %H:%M:%S.%f", "%d-%m-%Y %H:%M:%S", "%Y%m%d %H:%M:%S", "%Y%m%d %H%M%S", "%Y%m%d_%H%M%S",
    "%Y.%m.%d %H:%M:%S", "%d/%b/%Y:%H:%M:%S %z", "%d-%b-%Y %H:%M:%S", "%d %b %Y %H:%M:%S", "%a %b %d %H:%M:%S %Y",
    "%Y-%m-%d %H.%M.%S", "%Y-%m-%dT%H-%M-%S",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_PADDED = re.compile(r"[+-]?0\d")
_TRUTHS = frozenset({"true", "false"})
_WORDS_OF_NUMBERS = frozenset({"nan", "inf", "-inf", "+inf", "infinity", "-infinity", "+infinity"})
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class TypedColumn:
    """A column in the type drafted for it. `note`: what a reader of the draft must know; `lacks_zone`: of its times."""

    series: pl.Series
    note: str = ""
    lacks_zone: bool = False


def number_form(columns: Sequence[Sequence[str | None]]) -> tuple[NumberForm, str]:
    """The form of numbers in which the most columns of a table are numbers, and what is doubtful about it."""
    filled = [found for cells in columns if (found := [cell for cell in cells if cell is not None])]
    fitting = {form: sum(_are_numbers(cells, form) for cells in filled) for form in NUMBER_FORMS}
    best = max(NUMBER_FORMS, key=fitting.__getitem__)
    if best == NumberForm(",") and fitting[best] == fitting[NumberForm(".", ",")]:
        return PLAIN, "a comma in numbers may separate thousands or decimals: such columns are drafted as text"
    return best, ""


def typed_text(name: str, cells: Sequence[str | None], form: NumberForm) -> TypedColumn:
    """The column of a table of text."""
    filled = [cell for cell in cells if cell is not None]
    if not filled:
        return TypedColumn(pl.Series(name, cells, pl.String))
    if {cell.strip().lower() for cell in filled} <= _TRUTHS:
        return TypedColumn(_made(name, cells, lambda cell: cell.strip().lower() == "true", pl.Boolean))
    if not _are_numbers(filled, form):
        return _typed_words(name, cells, filled)
    plain = [form.plain(cell).strip() for cell in filled]
    if not all(_WHOLE.fullmatch(cell) for cell in plain):
        return TypedColumn(_made(name, cells, lambda cell: float(form.plain(cell)), pl.Float64))
    if any(abs(int(cell)) >= _LARGEST for cell in plain):
        # As a double it would lose digits: a number of so many is a name.
        return TypedColumn(pl.Series(name, cells, pl.String), "digits beyond int64, kept as text")
    return TypedColumn(_made(name, cells, lambda cell: int(form.plain(cell)), pl.Int64))


def typed_values(name: str, values: Sequence[Any], *, is_inner: bool = False) -> TypedColumn:
    """The column of JSON values. `is_inner`: within an object, where no other object may stand."""
    filled = [value for value in values if value is not None]
    kinds = {type(value) for value in filled}
    if kinds == {bool}:
        return TypedColumn(pl.Series(name, values, pl.Boolean))
    if kinds == {int} and all(abs(value) < _LARGEST for value in filled):
        return TypedColumn(pl.Series(name, values, pl.Int64))
    if kinds and kinds <= {int, float}:
        note = "beyond int64" if kinds == {int} else ""
        return TypedColumn(_made(name, values, float, pl.Float64), note)
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    if kind in _NESTED and not (kind is dict and (is_inner or not any(filled))):
        return _NESTED[kind](name, values, filled)
    note = "objects, kept as JSON text" if kind is dict else "values of several types, kept as text" if len(kinds) > 1 else ""
    return TypedColumn(_made(name, values, _as_text, pl.String), note)


def time_formats(cells: Sequence[str]) -> tuple[str, ...]:
    """Those of the common forms in which all of these texts are times."""
    return tuple(form for form in TIME_FORMATS if _are_read(cells, TimeForm(format=form, zone=UTC)))


def _typed_words(name: str, cells: Sequence[Any], filled: Sequence[Any]) -> TypedColumn:
    if not all(":" in cell for cell in filled):
        return TypedColumn(pl.Series(name, cells, pl.String))
    lacks_zone = not _are_read(filled, TimeForm("rfc3339"))
    if lacks_zone and not _are_read(filled, TimeForm("rfc3339", zone=UTC)):
        return TypedColumn(pl.Series(name, cells, pl.String))
    form = TimeForm("rfc3339", zone=UTC)
    # Polars knows years to 9999 in this unit; the agent refuses the rest, too.
    moments = _made(
        name, cells, lambda cell: _EPOCH + timedelta(microseconds=read_time(cell, form).micros), pl.Datetime("us", "UTC")
    )
    note = "the file names no zone: set time_zone in the source" if lacks_zone else ""
    return TypedColumn(moments, note, lacks_zone)


def _typed_list(name: str, values: Sequence[Any], filled: Sequence[Any]) -> TypedColumn:
    items = [item for value in filled for item in value]
    kinds = {type(item) for item in items if item is not None}
    dtype: pl.DataType = pl.String()
    note = ""
    if kinds == {bool}:
        dtype = pl.Boolean()
    elif kinds == {int} and all(item is None or abs(item) < _LARGEST for item in items):
        dtype = pl.Int64()
    elif kinds and kinds <= {int, float}:
        dtype = pl.Float64()
    elif kinds & {dict, list}:
        note = "each item is kept as JSON text"
    convert = _as_text if dtype == pl.String else float if dtype == pl.Float64 else lambda item: item
    made = _made(name, values, lambda value: [None if item is None else convert(item) for item in value], pl.List(dtype))
    return TypedColumn(made, note)


def _typed_struct(name: str, values: Sequence[Any], filled: Sequence[Any]) -> TypedColumn:
    names = dict.fromkeys(field for value in filled for field in value)
    fields = [
        typed_values(field, [None if value is None else value.get(field) for value in values], is_inner=True) for field in names
    ]
    frame = pl.DataFrame([field.series for field in fields])
    made = frame.to_struct(name)
    empty = pl.Series([value is None for value in values])
    series = made.to_frame().select(pl.when(~empty).then(pl.col(name)).otherwise(None).alias(name)).to_series()
    notes = [f"{field.series.name}: {field.note}" for field in fields if field.note]
    return TypedColumn(series, "; ".join(notes), any(field.lacks_zone for field in fields))


_NESTED: dict[type, Callable[[str, Sequence[Any], Sequence[Any]], TypedColumn]] = {
    str: _typed_words,
    list: _typed_list,
    dict: _typed_struct,
}


def _made(name: str, values: Sequence[Any], convert: Callable[[Any], Any], dtype: Any) -> pl.Series:
    return pl.Series(name, [None if value is None else convert(value) for value in values], dtype)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _are_numbers(cells: Sequence[str], form: NumberForm) -> bool:
    """Whether all are numbers in this form, and none is a name made of digits, which as a number would lose its zeros."""
    try:
        plain = [form.plain(cell).strip() for cell in cells]
    except WrittenValueError:
        return False
    if any(_PADDED.match(cell) and _WHOLE.fullmatch(cell) for cell in plain):
        return False
    is_one = any(_DECIMAL.fullmatch(cell) for cell in plain)
    return is_one and all(_DECIMAL.fullmatch(cell) or cell.lower() in _WORDS_OF_NUMBERS for cell in plain)


def _are_read(cells: Sequence[str], form: TimeForm) -> bool:
    try:
        for cell in cells:
            read_time(cell, form)
    except WrittenValueError:
        return False
    return True
