"""Read rows from JSON bodies of devices without our agent. Each row is accepted or refused on its own, with a reason.

Values are read strictly as the types of their columns: no text for numbers, no numbers for truth. This is the slow path by nature
(text, one row at a time); Arrow bodies never come here.
"""

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.contracts.arrow import row_schema
from pipelines.errors import RefusedError
from schemas.contract import LIST_TYPES, VECTOR_TYPES, Column, ColumnType, Contract, item_of
from schemas.envelope import EVENT_TIME, MAX_SAMPLES_PER_ENVELOPE, PAYLOAD, PAYLOAD_SHA256, parse_time
from schemas.errors import EnvelopeError

MAX_JSON_BYTES = 64 * 1024 * 1024
PAYLOAD_BASE64 = "payload_b64"


class JsonBodyError(RefusedError):
    """A body is not JSON of one row or a list of rows; no row of it can be told from another."""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that was refused: its place in the body, why, and its own bytes."""

    index: int
    reason: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class JsonRows:
    """The rows of a body. Row k of `batch` stood at `indexes[k]` in it, so its seq is first_seq + indexes[k]."""

    batch: pa.RecordBatch
    indexes: tuple[int, ...]
    rejected: tuple[RejectedRow, ...]

    @property
    def count(self) -> int:
        """The number of rows of the body, refused ones with them."""
        return len(self.indexes) + len(self.rejected)


def rows_from_json(
    body: bytes,
    contract: Contract,
    received_us: int,
    max_bytes: int = MAX_JSON_BYTES,
    max_rows: int = MAX_SAMPLES_PER_ENVELOPE,
) -> JsonRows:
    """Read one JSON object or a list of objects as rows of the contract.

    Args:
        body: UTF-8 JSON.
        contract: what each row must look like; values within bounds are checked later (`pipelines.contracts.check.reasons`).
        received_us: when the body landed, microseconds since 1970; the event_time of rows that carry none.
        max_bytes: the largest body to look at.
        max_rows: the most rows to read: even an empty one takes room for each column.

    Raises:
        JsonBodyError: too large, too many rows, not UTF-8, not JSON, or neither an object nor a list.
    """
    reader = _RowReader(contract, received_us)
    rows: list[dict[str, Any]] = []
    indexes: list[int] = []
    rejected: list[RejectedRow] = []
    for index, (value, raw) in enumerate(_split(body, max_bytes)):
        if index >= max_rows:
            raise JsonBodyError(f"more than {max_rows} rows")
        try:
            rows.append(reader.read(value))
            indexes.append(index)
        except JsonCellError as error:
            rejected.append(RejectedRow(index, str(error), raw))
    batch = pa.RecordBatch.from_pylist(rows, schema=row_schema(contract))
    return JsonRows(batch, tuple(indexes), tuple(rejected))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeated(found)


_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=lambda _: NotANumber())


def _split(body: bytes, max_bytes: int) -> Iterator[tuple[Any, bytes]]:
    """Each row as plain values and as its own bytes."""
    if len(body) > max_bytes:
        raise JsonBodyError(f"a JSON body of {len(body)} bytes is above the limit of {max_bytes}")
    try:
        text = body.decode("utf-8")
        yield from _split_text(text)
    except UnicodeDecodeError as error:
        raise JsonBodyError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise JsonBodyError("nested too deep") from error
    except json.JSONDecodeError as error:
        raise JsonBodyError(f"not JSON: {error}") from error
    except ValueError as error:  # Python's own limit, and its advice on how to raise it is not for who sent the body
        raise JsonBodyError("a number of more than 4300 digits") from error


def _split_text(text: str) -> Iterator[tuple[Any, bytes]]:
    position = _skip(text, 0)
    is_list = text.startswith("[", position)
    if not is_list and not text.startswith("{", position):
        found = f"it begins with {text[position : position + 10]!a}" if text[position:] else "it is empty"
        raise JsonBodyError(f"a JSON body is one object or a list of objects; {found}")
    position = _skip(text, position + 1) if is_list else position
    count = 0
    while not (is_list and count == 0 and text.startswith("]", position)):
        value, end = _DECODER.raw_decode(text, position)
        count += 1
        if count > MAX_SAMPLES_PER_ENVELOPE:
            raise JsonBodyError(f"more than {MAX_SAMPLES_PER_ENVELOPE} rows")
        yield value, text[position:end].encode()
        position = _skip(text, end)
        if not is_list or text.startswith("]", position):
            break
        if not text.startswith(",", position):
            raise JsonBodyError(f"not JSON: ',' or ']' is missing at character {position}")
        position = _skip(text, position + 1)
    if _skip(text, position + is_list) != len(text):
        raise JsonBodyError(f"not JSON: more text after the end, at character {position + is_list}")


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


class _RowReader:
    """Turns plain objects into rows of one contract."""

    def __init__(self, contract: Contract, received_us: int) -> None:
        self._received_us = received_us
        self._cells = {column.name: column_reader(column) for column in contract.columns}
        self._spec = contract.payload

    def read(self, value: Any) -> dict[str, Any]:
        """The row.

        Raises:
            CellError: the row is refused; the message says why.
        """
        if not isinstance(value, dict):
            raise JsonCellError("a row is a JSON object")
        if isinstance(value, Repeated):
            raise JsonCellError("a key is given twice")
        row: dict[str, Any] = {EVENT_TIME: self._received_us}
        for name, cell in value.items():
            if name in self._cells:
                row[name] = self._cell(name, cell)
            elif name == EVENT_TIME:
                row[EVENT_TIME] = _event_time(cell)
            elif self._spec is None or name not in (PAYLOAD_BASE64, PAYLOAD_SHA256):
                raise JsonCellError(f"unknown column {name[:80]!r}")
        if self._spec is not None:
            row.update(_payload(value, self._spec.max_bytes))
        return row

    def _cell(self, name: str, cell: Any) -> Any:
        if cell is None:
            return None
        try:
            return self._cells[name](cell)
        except JsonCellError as error:
            raise JsonCellError(f"{name}: {error}") from error


def _event_time(cell: Any) -> int:
    """RFC 3339 text only: a bare number would leave it open whether it counts seconds, milliseconds or microseconds."""
    if not isinstance(cell, str):
        raise JsonCellError(f"{EVENT_TIME}: write RFC 3339 text with a zone, such as '2026-01-31T12:00:00Z'")
    try:
        return parse_time(cell)
    except EnvelopeError as error:
        raise JsonCellError(f"{EVENT_TIME}: {error}") from error


def _payload(value: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    text, digest = value.get(PAYLOAD_BASE64), value.get(PAYLOAD_SHA256)
    if digest is not None and not (isinstance(digest, str) and digest.isascii()):
        raise JsonCellError(f"{PAYLOAD_SHA256}: hexadecimal text is needed")
    if text is None:
        return {PAYLOAD: None, PAYLOAD_SHA256: digest}
    if not isinstance(text, str):
        raise JsonCellError(f"{PAYLOAD_BASE64}: base64 text is needed")
    if len(text) // 4 * 3 - 2 > max_bytes:
        raise JsonCellError(f"{PAYLOAD}: larger than {max_bytes} bytes")
    try:
        payload = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise JsonCellError(f"{PAYLOAD_BASE64}: not base64") from error
    found = hashlib.sha256(payload).hexdigest()
    if digest not in (None, found):
        raise JsonCellError(f"{PAYLOAD_SHA256}: differs from the payload's own hash")
    return {PAYLOAD: payload, PAYLOAD_SHA256: found}


class JsonCellError(ValueError):
    """A value of a row from outside does not fit; the message is the reason to store next to the row."""


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
        return _list_reader(column_reader(item_of(column)), column.length)
    if column.type is ColumnType.STRUCT:
        return _struct_reader({field.name: column_reader(field) for field in column.fields})
    return cell_reader(column.type)


def _list_reader(read: Callable[[Any], Any], length: int | None) -> Callable[[Any], list[Any]]:
    def items(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise JsonCellError(f"a list is needed, not {_shown(value)}")
        if length is not None and (len(value) != length or None in value):
            raise JsonCellError(f"a vector of {length} numbers is needed")
        return [None if item is None else read(item) for item in value]

    return items


def _struct_reader(readers: dict[str, Callable[[Any], Any]]) -> Callable[[Any], dict[str, Any]]:
    def fields(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise JsonCellError(f"an object is needed, not {_shown(value)}")
        if isinstance(value, Repeated):
            raise JsonCellError("a key is given twice")
        unknown = [name for name in value if name not in readers]
        if unknown:
            raise JsonCellError(f"unknown field {unknown[0][:80]!r}")
        return {name: None if value.get(name) is None else read(value[name]) for name, read in readers.items()}

    return fields


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise JsonCellError(f"text is needed, not {_shown(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise JsonCellError("a lone surrogate is not text")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise JsonCellError(f"true or false is needed, not {_shown(value)}")
    return value


def _whole(bits: int) -> Callable[[Any], int]:
    limit = 2 ** (bits - 1)

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise JsonCellError(f"a whole number is needed, not {_shown(value)}")
        if not -limit <= value < limit:
            raise JsonCellError(f"outside the range of int{bits}")
        return value

    return read


def _double(value: Any) -> float:
    if isinstance(value, NotANumber):
        raise JsonCellError("NaN or infinite")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise JsonCellError(f"a number is needed, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError as error:
        raise JsonCellError("too large for a double") from error
    if not math.isfinite(number):
        raise JsonCellError("NaN or infinite")
    return number


def _time(value: Any) -> int:
    if not isinstance(value, str):
        raise JsonCellError(f"RFC 3339 text is needed, not {_shown(value)}")
    try:
        return parse_time(value)
    except EnvelopeError as error:
        raise JsonCellError(str(error)) from error


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str):
        raise JsonCellError(f"base64 text is needed, not {_shown(value)}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise JsonCellError("not base64") from error


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
