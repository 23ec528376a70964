"""Reads one JSON value as a value of a column type, strictly: no text for numbers, no numbers for truth."""

import base64
import binascii
import math
from collections.abc import Callable
from typing import Any

from schemas.contract import LIST_TYPES, VECTOR_TYPES, Column, ColumnType
from schemas.envelope import parse_time
from schemas.errors import EnvelopeError


class CellError(ValueError):
    """A value of a row from outside does not fit; the message is the reason to store beside the row."""


class Repeated(dict[str, Any]):
    """An object in which a key was given twice."""


class NotANumber:
    """NaN, Infinity or -Infinity: not JSON, though Python's reader takes it."""


def cell_reader(type_: ColumnType) -> Callable[[Any], Any]:
    """The function that reads a JSON value (never null) of this type; it raises CellError with the reason."""
    return _READERS[type_]


def column_reader(column: Column) -> Callable[[Any], Any]:
    """The function that reads a JSON value (never null) of this column, whatever it is made of."""
    if column.type in LIST_TYPES | VECTOR_TYPES:
        return _list_reader(cell_reader(ColumnType(column.type.partition("<")[2].rstrip(">"))), column.length)
    if column.type is ColumnType.STRUCT:
        return _struct_reader({field.name: column_reader(field) for field in column.fields})
    return cell_reader(column.type)


def _list_reader(read: Callable[[Any], Any], length: int | None) -> Callable[[Any], list[Any]]:
    def items(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise CellError(f"a list is needed, not {_shown(value)}")
        if length is not None and (len(value) != length or None in value):
            raise CellError(f"a vector of {length} numbers is needed")
        return [None if item is None else read(item) for item in value]

    return items


def _struct_reader(readers: dict[str, Callable[[Any], Any]]) -> Callable[[Any], dict[str, Any]]:
    def fields(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise CellError(f"an object is needed, not {_shown(value)}")
        if isinstance(value, Repeated):
            raise CellError("a key is given twice")
        unknown = [name for name in value if name not in readers]
        if unknown:
            raise CellError(f"unknown field {unknown[0][:80]!r}")
        return {name: None if value.get(name) is None else read(value[name]) for name, read in readers.items()}

    return fields


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise CellError(f"text is needed, not {_shown(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise CellError("a lone surrogate is not text")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise CellError(f"true or false is needed, not {_shown(value)}")
    return value


def _whole(bits: int) -> Callable[[Any], int]:
    limit = 2 ** (bits - 1)

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise CellError(f"a whole number is needed, not {_shown(value)}")
        if not -limit <= value < limit:
            raise CellError(f"outside the range of int{bits}")
        return value

    return read


def _double(value: Any) -> float:
    if isinstance(value, NotANumber):
        raise CellError("NaN or infinite")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CellError(f"a number is needed, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError as error:
        raise CellError("too large for a double") from error
    if not math.isfinite(number):
        raise CellError("NaN or infinite")
    return number


def _time(value: Any) -> int:
    if not isinstance(value, str):
        raise CellError(f"RFC 3339 text is needed, not {_shown(value)}")
    try:
        return parse_time(value)
    except EnvelopeError as error:
        raise CellError(str(error)) from error


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str):
        raise CellError(f"base64 text is needed, not {_shown(value)}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CellError("not base64") from error


def _shown(value: Any) -> str:
    if isinstance(value, NotANumber):
        return "NaN or infinite"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "something else")


_READERS: dict[ColumnType, Callable[[Any], Any]] = {
    ColumnType.STRING: _text,
    ColumnType.BOOL: _truth,
    ColumnType.INT32: _whole(32),
    ColumnType.INT64: _whole(64),
    ColumnType.FLOAT32: _double,
    ColumnType.FLOAT64: _double,
    ColumnType.TIMESTAMP: _time,
    ColumnType.BINARY: _bytes,
}
