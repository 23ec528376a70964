"""Cells: what a file or a program says, made into the types a contract names.

A row is never lost over a cell. A cell that its column's type cannot hold becomes null and is counted with its reason,
so a required column then fails the contract in the core, where the sample is quarantined with all its other columns.
"""

import base64
import binascii
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from edge_agent.capture.batch import Scalar
from edge_agent.capture.rejects import Rejects
from schemas.contract import Column, ColumnType, PiiClass

UNIT_US = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}
_TRUE = frozenset({"t", "true", "1", "yes"})
_FALSE = frozenset({"f", "false", "0", "no"})
_NUMBER = re.compile(r"[+-]?(\d+)(?:\.(\d*))?")
# No number here is longer, and Python itself refuses to read one of thousands of digits.
_MAX_DIGITS = 400
_MAX_DEPTH = 16
_MAX_TIME_US = 253_402_300_800_000_000  # the year 10000: above it no calendar we write to can tell the time
_INT_BITS = {ColumnType.INT32: 31, ColumnType.INT64: 63}


class CellError(ValueError):
    """A cell cannot be held by its column's type."""


def to_int(value: object, bits: int) -> int:
    """A whole number of at most so many bits beside the sign."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise CellError("not an integer")
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        raise CellError("integer out of range" if _NUMBER.fullmatch(value.strip()) else "not an integer")
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


def to_float(value: object) -> float:
    """A double; NaN and infinities pass, the contract refuses them in the core."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise CellError("not a number")
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise CellError("not a number") from error


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


def to_text(value: object, depth: int = 0) -> str:
    """Text; numbers as they are written, Zeek's JSON lists joined by commas."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list) and depth < _MAX_DEPTH:
        return ",".join(to_text(item, depth + 1) for item in value)
    raise CellError("not text")


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


def to_time_us(value: object, unit: str = "auto") -> int:
    """A time as microseconds since 1970 UTC: a number in `unit` (seconds if auto), or RFC 3339 text."""
    scale = UNIT_US.get(unit, 1_000_000.0)
    if isinstance(value, str) and unit in ("auto", "rfc3339") and ("-" in value[1:] or ":" in value):
        return _from_rfc3339(value)
    if isinstance(value, str) and unit != "rfc3339" and scale == 1_000_000.0:
        return _bounded(_decimal_seconds(value))
    number = to_float(value)
    if unit == "rfc3339" or not math.isfinite(number):
        raise CellError("not a time")
    return _bounded(round(number * scale))


def _decimal_seconds(text: str) -> int:
    # A double holds 1655071198.444458 only to 0.24 us; the decimal digits hold it exactly.
    found = _NUMBER.fullmatch(text.strip())
    if found is None or len(text) > _MAX_DIGITS:
        number = to_float(text)
        if not math.isfinite(number):
            raise CellError("not a time")
        return round(number * 1e6)
    digits = (found[2] or "")[:7].ljust(7, "0")
    micros = int(found[1]) * 1_000_000 + (int(digits) + 5) // 10
    return -micros if text.strip().startswith("-") else micros


def _from_rfc3339(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise CellError("not an RFC 3339 time") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _bounded(micros: int) -> int:
    if abs(micros) >= _MAX_TIME_US:
        raise CellError("time out of range")
    return micros


def converter(column: Column) -> Callable[[object], Scalar]:
    """The function that makes one cell into the column's type; it raises CellError."""
    kind = column.type
    if kind in _INT_BITS:
        bits = _INT_BITS[kind]
        return lambda value: to_int(value, bits)
    simple: dict[ColumnType, Callable[[object], Scalar]] = {
        ColumnType.STRING: to_text,
        ColumnType.BOOL: to_bool,
        ColumnType.FLOAT32: to_float,
        ColumnType.FLOAT64: to_float,
        ColumnType.TIMESTAMP: to_time_us,
        ColumnType.BINARY: to_binary,
    }
    return simple.get(kind, _unwritten)


def _unwritten(_: object) -> Scalar:
    raise CellError("the agent writes no lists, vectors and structs")


def convert_column(values: Sequence[object], column: Column, unset: frozenset[str], rejects: Rejects) -> list[Scalar]:
    """Make n cells into the column's type; None, and text in `unset`, become null; so does what the type cannot hold."""
    quick = _quick(values, column)
    if quick is not None:
        return quick
    convert = converter(column)
    out: list[Scalar] = []
    for value in values:
        if value is None or (isinstance(value, str) and value in unset):
            out.append(None)
            continue
        try:
            out.append(convert(value))
        except CellError as error:
            # What could tell about a person is not to be read in a log either.
            is_private = column.pii is not PiiClass.NONE or column.redact is not None
            rejects.count(f"cell {column.name}: {error}", "" if is_private else value)
            out.append(None)
    return out


def _quick(values: Sequence[object], column: Column) -> list[Scalar] | None:
    """The columns where every cell converts at once: no branch per cell. None if one does not."""
    if column.type not in (ColumnType.FLOAT64, ColumnType.FLOAT32):
        return None
    if set(map(type, values)) != {str}:
        return None
    try:
        return list(map(float, values))  # type: ignore[arg-type]  # all are text: checked above
    except ValueError:
        return None
