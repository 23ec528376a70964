"""Cells: what a file or a program says, made into the types a contract names.

A row is never lost over a cell. A cell that its column's type cannot hold becomes null and is counted with its reason,
so a required column then fails the contract in the core, where the sample is quarantined with all its other columns.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, tzinfo

import msgspec

from edge_agent.sources.api import Rejects, Scalar
from schemas.contract import LIST_TYPES, VECTOR_TYPES, Column, ColumnType, PiiClass, item_of
from schemas.source_names import match_columns
from schemas.written_values import MAX_DIGITS, NumberForm, TimeForm, WrittenTime, WrittenValueError, quick_micros, read_time

_TRUE = frozenset({"t", "true", "1", "yes"})
_FALSE = frozenset({"f", "false", "0", "no"})
_NUMBER = re.compile(r"[+-]?(\d+)(?:\.(\d*))?")
_COMMA = re.compile(r"^\s*[+-]?[\d.]*\d,\d+\s*$")
_MAX_DEPTH = 16
_INT_BITS = {ColumnType.INT32: 31, ColumnType.INT64: 63}
PLAIN_NUMBERS = NumberForm()
PLAIN_TIMES = TimeForm()


class CellError(ValueError):
    """A cell cannot be held by its column's type. `needs` names the setting that could change it; "" where none could."""

    def __init__(self, reason: str, needs: str = "") -> None:
        super().__init__(reason)
        self.needs = needs


def to_int(value: object, bits: int, numbers: NumberForm = PLAIN_NUMBERS) -> int:
    """A whole number of at most so many bits next to the sign."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise CellError("not an integer")
    if isinstance(value, str):
        if len(value) > MAX_DIGITS:
            raise CellError("integer out of range" if _NUMBER.fullmatch(value.strip()) else "not an integer")
        if "_" in value:
            raise CellError("not an integer")  # Python would read 12_34 as 1234
        value = _plain_number(value, numbers)
    try:
        number = int(value)
    except (ValueError, OverflowError):
        number = _whole(value)
    if isinstance(value, float) and number != value:
        raise CellError("not a whole number")
    if not -(1 << bits) <= number < (1 << bits):
        raise CellError("integer out of range")
    return number


def _whole(value: object) -> int:
    # Spreadsheets and data frames write whole numbers as "5.0".
    found = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or (found[2] or "").strip("0"):
        raise CellError("not an integer")
    return int(value.strip().split(".")[0])  # type: ignore[attr-defined]  # found is None for all but text


def to_float(value: object, numbers: NumberForm = PLAIN_NUMBERS) -> float:
    """A double; NaN and infinities pass, the contract refuses them in the core."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise CellError("not a number")
    if isinstance(value, str) and "_" in value:
        raise CellError("not a number")
    try:
        return float(_plain_number(value, numbers) if isinstance(value, str) else value)
    except (ValueError, OverflowError) as error:
        if isinstance(value, str) and _COMMA.search(value):
            raise CellError("not a number; if its comma is a decimal sign, set decimal", "decimal") from error
        raise CellError("not a number") from error


def _plain_number(text: str, numbers: NumberForm) -> str:
    try:
        return numbers.plain(text)
    except WrittenValueError as error:
        raise CellError(str(error), error.needs) from error


def to_bool(value: object) -> bool:
    """True or false: JSON's, T/F as Zeek writes, true/false, yes/no, 1/0."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise CellError("not a truth value")


def to_text(value: object) -> str:
    """Text; numbers as they are written, lists of them joined by commas as Zeek has them, all else that nests as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return ",".join("" if item is None else to_text(item) for item in value)
    if isinstance(value, (list, dict)) and _is_within_depth(value, _MAX_DEPTH):
        return msgspec.json.encode(value).decode()
    raise CellError("not text")


def _item_text(value: object) -> str:
    """An item of a list of texts; a list within it stays one, as JSON."""
    return to_text({"": value})[4:-1] if isinstance(value, list) else to_text(value)


def _is_within_depth(value: object, depth: int) -> bool:
    if not isinstance(value, (list, dict)):
        return True
    items = value if isinstance(value, list) else value.values()
    return depth > 0 and all(_is_within_depth(item, depth - 1) for item in items)


def to_binary(value: object) -> bytes:
    """Bytes, written as base64."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise CellError("not base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CellError("not base64 text") from error


def to_time_us(value: object, form: TimeForm = PLAIN_TIMES) -> int:
    """A time as microseconds since 1970 UTC: a number, or text that tells its zone or that `form` tells how to read."""
    micros = quick_micros(value) if form.is_quick else None
    return to_time(value, form).micros if micros is None else micros


def to_time(value: object, form: TimeForm, after_us: int | None = None, near_us: int | None = None) -> WrittenTime:
    """A time, and what is doubtful about it; the arguments are those of `read_time`."""
    try:
        return read_time(value, form, after_us, near_us)
    except WrittenValueError as error:
        raise CellError(str(error), error.needs) from error


def tells_no_zone(cell: object) -> bool:
    """Whether this is a time that only a time zone would make an instant."""
    try:
        to_time(cell, PLAIN_TIMES)
    except CellError as error:
        return error.needs == "time_zone"
    return False


def start_time_us(text: str, zone: tzinfo | None = None) -> int:
    """The time in an option such as `time_start`; without a zone it is in `zone`, or in UTC."""
    return to_time_us(text, TimeForm(zone=zone or UTC))


def converter(
    column: Column, numbers: NumberForm = PLAIN_NUMBERS, times: TimeForm = PLAIN_TIMES, rejects: Rejects | None = None
) -> Callable[[object], Scalar]:
    """The function that makes one cell into the column's type; it raises CellError, but for fields that `rejects` counts."""
    kind = column.type
    if kind in LIST_TYPES | VECTOR_TYPES:
        item = item_of(column)
        convert = _item_text if item.type is ColumnType.STRING else converter(item, numbers, times)
        return _list_converter(convert, column.length)
    if kind is ColumnType.STRUCT:
        return _struct_converter(column, {field.name: converter(field, numbers, times) for field in column.fields}, rejects)
    if kind in _INT_BITS:
        bits = _INT_BITS[kind]
        return lambda value: to_int(value, bits, numbers)
    simple: dict[ColumnType, Callable[[object], Scalar]] = {
        ColumnType.STRING: to_text,
        ColumnType.BOOL: to_bool,
        ColumnType.FLOAT32: lambda value: to_float(value, numbers),
        ColumnType.FLOAT64: lambda value: to_float(value, numbers),
        ColumnType.TIMESTAMP: lambda value: to_time_us(value, times),
        ColumnType.BINARY: to_binary,
    }
    return simple[kind]


def _list_converter(convert: Callable[[object], Scalar], length: int | None) -> Callable[[object], Scalar]:
    def items(value: object) -> Scalar:
        value = _unpacked(value, list)
        if not isinstance(value, list):
            raise CellError("not a list")
        if length is not None and (len(value) != length or None in value):
            raise CellError(f"not a vector of {length} numbers")
        return [None if item is None else convert(item) for item in value]

    return items


def _struct_converter(
    column: Column, converters: Mapping[str, Callable[[object], Scalar]], rejects: Rejects | None
) -> Callable[[object], Scalar]:
    def fields(value: object) -> Scalar:
        value = _unpacked(value, dict)
        if not isinstance(value, Mapping):
            raise CellError("not an object")
        found: dict[str, Scalar] = dict.fromkeys(converters)
        for name, field in match_columns(value, column.fields, {}).items():
            cell = value[name]
            try:
                found[field.name] = None if cell is None else converters[field.name](cell)
            except CellError as error:
                if rejects is None:
                    raise
                is_private = _is_private(column) or _is_private(field)
                rejects.count(f"cell {column.name}.{field.name}: {error}", "" if is_private else cell)
        return found

    return fields


def _unpacked(value: object, kind: type) -> object:
    """A list or object that a table holds as JSON text."""
    if not isinstance(value, str) or value.lstrip()[:1] != ("[" if kind is list else "{"):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CellError("not JSON") from error


def convert_column(
    values: Sequence[object],
    column: Column,
    unset: frozenset[str],
    rejects: Rejects,
    numbers: NumberForm = PLAIN_NUMBERS,
    times: TimeForm = PLAIN_TIMES,
) -> list[Scalar]:
    """Make n cells into the column's type; None, and text in `unset`, become null; so does what the type cannot hold."""
    quick = _quick(values, column) if numbers.is_plain else None
    if quick is not None:
        return quick
    convert = converter(column, numbers, times, rejects)
    out: list[Scalar] = []
    for value in values:
        if value is None or (isinstance(value, str) and value in unset):
            out.append(None)
            continue
        try:
            out.append(convert(value))
        except CellError as error:
            # What could tell about a person is not to be read in a log either.
            is_private = any(map(_is_private, (column, *column.fields)))
            rejects.count(f"cell {column.name}: {error}", "" if is_private else value)
            out.append(None)
    return out


def _is_private(column: Column) -> bool:
    return column.pii is not PiiClass.NONE or column.redact is not None


def _quick(values: Sequence[object], column: Column) -> list[Scalar] | None:
    """The columns where every cell converts at once: no branch per cell. None if one does not."""
    if column.type not in (ColumnType.FLOAT64, ColumnType.FLOAT32):
        return None
    if set(map(type, values)) != {str} or any("_" in value for value in values):  # type: ignore[operator]  # all are text
        return None
    try:
        return list(map(float, values))  # type: ignore[arg-type]  # all are text: checked above
    except ValueError:
        return None
