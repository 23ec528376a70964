"""Drafts a contract from a file: types from its first rows, and what was seen in them told in each description.

A draft is for a person to correct: bounds and lists of values are written as words unless asked for, as the first rows of
a file are a poor judge of what may come. What a device must be configured with to fill it is told next to it.
"""

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from pipelines.contracts.draft_types import (
    SourceHints,
    csv_hints,
    is_zeek,
    json_hints,
    number_form,
    read_csv_rows,
    read_json_rows,
    read_zeek,
    typed_text,
    typed_values,
)
from pipelines.errors import ConfigError
from schemas.contract import Column, ColumnType, Contract, PiiClass
from schemas.envelope import EVENT_TIME
from schemas.errors import SchemaError
from schemas.source_names import column_name_of

MAX_CATEGORIES = 12
_MAX_BYTES = 64 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_TYPES: tuple[tuple[Callable[[pl.DataType], bool], ColumnType], ...] = (
    (lambda type_: type_ == pl.Boolean, ColumnType.BOOL),
    (lambda type_: type_ in (pl.Int8, pl.Int16, pl.Int32, pl.UInt8, pl.UInt16), ColumnType.INT32),
    (lambda type_: type_.is_integer() or type_ == pl.Duration, ColumnType.INT64),
    (lambda type_: type_ == pl.Float32, ColumnType.FLOAT32),
    (lambda type_: type_.is_numeric(), ColumnType.FLOAT64),
    (lambda type_: type_ in (pl.Datetime, pl.Date), ColumnType.TIMESTAMP),
    (lambda type_: type_ == pl.Binary, ColumnType.BINARY),
)
# Words in a column's name that speak of a person or a place.
_PII = (
    (re.compile(r"(^|_)(lat|lon|lng|latitude|longitude|gps|position)(_|$)"), PiiClass.LOCATION),
    (re.compile(r"(^|_)(ip|mac|imei|serial|host|orig_h|resp_h)(_|$)"), PiiClass.DEVICE),
    (re.compile(r"(^|_)(plate|licence|license)(_|$)"), PiiClass.PLATE),
    (re.compile(r"(^|_)(email|user|username|name|phone|address|message|comment|text)(_|$)"), PiiClass.TEXT),
)


@dataclass(frozen=True, slots=True)
class _Sample:
    """The first rows in the types drafted for them; notes by the column's name in the file.

    `is_whole`: whether there are no more rows. Of the rest of a file nobody knows whether it fills every column.
    """

    frame: pl.DataFrame
    notes: dict[str, str]
    hints: SourceHints
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafted contract, and what a device must be told to fill it from such a file."""

    contract: Contract
    hints: SourceHints


def infer_contract(path: Path, name: str | None = None, *, max_rows: int = 10_000, bounds: bool = False) -> Contract:
    """A contract that the first rows of this file fulfil; arguments and errors are those of `draft_contract`."""
    return draft_contract(path, name, max_rows=max_rows, bounds=bounds).contract


def draft_contract(path: Path, name: str | None = None, *, max_rows: int = 10_000, bounds: bool = False) -> Draft:
    """A contract that the first rows of this file fulfil, with hints for the source that fills it.

    Args:
        path: CSV (by comma, semicolon, tab or bar), JSON lines, a JSON list, Parquet, Arrow IPC or a Zeek log.
        name: the stream's name; from the file's without it.
        max_rows: how many rows to look at.
        bounds: write the range and the values seen as bounds, not only in words.

    Raises:
        ConfigError: the file cannot be read, or no column of it can be in a contract.
    """
    try:
        sample = _read(path, max_rows)
        stream = name or re.sub(r"[^a-z0-9]+", "_", path.name.partition(".")[0].lower()).strip("_") or "stream"
        columns = tuple(_columns(sample.frame, sample.notes, bounds=bounds))
        if not sample.is_whole:
            columns = tuple(map(_optional, columns))
        description = f"Drafted from {sample.frame.height:,} rows of {path.name}"
        return Draft(Contract(stream, "0.1.0", columns, description=description), sample.hints)
    except (PolarsError, OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path}: cannot draft a contract: {' '.join(str(error).split())[:200]}") from error
    except SchemaError as error:
        raise ConfigError(f"{path}: cannot draft a contract: {error}; give a name with --name") from error


def _read(path: Path, max_rows: int) -> _Sample:
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if ".parquet" in suffixes:
        frame = pl.scan_parquet(path).head(max_rows + 1).collect()
        return _Sample(frame.head(max_rows), {}, SourceHints(), frame.height <= max_rows)
    if suffixes & {".arrow", ".feather", ".ipc"}:
        frame = pl.read_ipc(path, n_rows=max_rows + 1)
        return _Sample(frame.head(max_rows), {}, SourceHints(), frame.height <= max_rows)
    body, is_whole = _head(path)
    if is_zeek(body):
        frame = read_zeek(path, body, max_rows + 1)
        return _Sample(frame.head(max_rows), {}, SourceHints(kind="zeek"), is_whole and frame.height <= max_rows)
    if suffixes & {".jsonl", ".ndjson", ".json"} or body.removeprefix(_BOM).lstrip()[:1] in (b"{", b"["):
        sample = _sample_json(path, body, max_rows)
    else:
        sample = _sample_csv(path, body, max_rows)
    return replace(sample, is_whole=sample.is_whole and is_whole)


def _sample_json(path: Path, body: bytes, max_rows: int) -> _Sample:
    rows = read_json_rows(path, body, max_rows)
    typed = [typed_values(name, values) for name, values in rows.columns.items()]
    notes = {column.series.name: column.note for column in typed if column.note}
    return _Sample(pl.DataFrame([column.series for column in typed]), notes, json_hints(rows, typed), rows.is_whole)


def _sample_csv(path: Path, body: bytes, max_rows: int) -> _Sample:
    rows = read_csv_rows(path, body, max_rows)
    form, doubt = number_form(list(rows.columns.values()))
    typed = [typed_text(name, cells, form) for name, cells in rows.columns.items()]
    notes = {column.series.name: column.note for column in typed if column.note}
    return _Sample(pl.DataFrame([column.series for column in typed]), notes, csv_hints(rows, typed, form, doubt), rows.is_whole)


def _head(path: Path) -> tuple[bytes, bool]:
    """The first whole lines, unpacked if the file is gzip, and whether they are all."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
        body = bytes(file.read(_MAX_BYTES))
    is_whole = len(body) < _MAX_BYTES
    return (body if is_whole else body[: body.rfind(b"\n") + 1]), is_whole


def _optional(column: Column) -> Column:
    """The column of a file of which only the first rows were looked at: that it was always filled is words."""
    if not column.required:
        return column
    words = "; ".join(word for word in (column.description, "always filled in the rows looked at") if word)
    return msgspec.structs.replace(column, required=False, description=words)


def _columns(frame: pl.DataFrame, notes: dict[str, str], *, bounds: bool) -> Iterator[Column]:
    taken: set[str] = set()
    for series in frame.get_columns():
        name = _name(series.name, taken)
        if name == EVENT_TIME:
            continue  # every row has one next to the contract's columns
        taken.add(name)
        column = _column(name, series, bounds=bounds)
        words = [column.description, notes.get(series.name, "")]
        if name != series.name:
            words.insert(0, f"{series.name!r} in the file")
            column = msgspec.structs.replace(column, source_name=series.name)
        yield msgspec.structs.replace(column, description="; ".join(word for word in words if word)[:1_000])


def _name(source_name: str, taken: set[str]) -> str:
    name = column_name_of(source_name)
    return next(each for each in (name, *(f"{name}_{n}" for n in range(2, 10_000))) if each not in taken)


def _column(name: str, series: pl.Series, *, bounds: bool) -> Column:
    type_, length, fields = _type(series)
    seen = _seen(series, type_) if series.len() > series.null_count() else ("never filled", None, None, ())
    words, low, high, values = seen
    return Column(
        name,
        type_,
        required=not fields and series.len() > 0 and series.null_count() == 0,
        minimum=low if bounds else None,
        maximum=high if bounds else None,
        allowed=values if bounds else (),
        pii=next((pii for words_, pii in _PII if words_.search(name)), PiiClass.NONE),
        description=words,
        length=length,
        fields=fields,
    )


def _type(series: pl.Series) -> tuple[ColumnType, int | None, tuple[Column, ...]]:
    type_ = series.dtype
    if isinstance(type_, pl.Struct):
        inner = series.struct.unnest().get_columns()
        fields = tuple(_columns(pl.DataFrame([field for field in inner if field.dtype != pl.Struct]), {}, bounds=False))
        fields = tuple(msgspec.structs.replace(field, required=False) for field in fields)
        return (ColumnType.STRUCT, None, fields) if fields else (ColumnType.STRING, None, ())
    if isinstance(type_, pl.Array) and type_.inner in (pl.Float32, pl.Float64):
        return (ColumnType.VECTOR_FLOAT32 if type_.inner == pl.Float32 else ColumnType.VECTOR_FLOAT64, type_.size, ())
    if isinstance(type_, pl.List):
        item = _flat(pl.Series([], dtype=type_.inner).dtype)
        found = f"list<{item}>"
        return (ColumnType(found) if found in set(ColumnType) else ColumnType.LIST_STRING, None, ())
    if type_.is_integer() and bool((series.drop_nulls().cast(pl.Int128).abs() >= 2**63).any()):
        return ColumnType.FLOAT64, None, ()
    return _flat(type_), None, ()


def _flat(type_: pl.DataType) -> ColumnType:
    return next((found for fits, found in _TYPES if fits(type_)), ColumnType.STRING)


def _seen(series: pl.Series, type_: ColumnType) -> tuple[str, float | None, float | None, tuple[str, ...]]:
    """Words about the values, and the bounds or the values themselves."""
    if type_ in (ColumnType.INT32, ColumnType.INT64, ColumnType.FLOAT32, ColumnType.FLOAT64) and series.dtype.is_numeric():
        every = series.cast(pl.Float64).drop_nulls()
        numbers = every.filter(every.is_finite())
        if not numbers.len():
            return "only NaN seen, which is refused", None, None, ()
        low, high = (float(value) for value in (numbers.min(), numbers.max()) if isinstance(value, float))
        words = f"seen {low:g} to {high:g}"
        if numbers.len() < every.len():
            words += f"; {every.len() - numbers.len():,} NaN or infinite, which are refused"
        return (f"{words}, beyond int64" if series.dtype.is_integer() and type_ is ColumnType.FLOAT64 else words), low, high, ()
    if type_ is ColumnType.STRING and series.dtype == pl.String:
        values = series.drop_nulls().unique().sort().to_list() if series.n_unique() <= MAX_CATEGORIES else []
        if values and series.len() >= 5 * len(values):
            return f"seen {', '.join(values)}"[:200], None, None, tuple(values)
    if type_ is ColumnType.TIMESTAMP and series.dtype != pl.String and not getattr(series.dtype, "time_zone", None):
        return "the file names no zone: is it UTC?", None, None, ()
    return _left_out(series.dtype), None, None, ()


def _left_out(type_: pl.DataType) -> str:
    """Words about what a contract cannot say of it."""
    if isinstance(type_, pl.Struct):
        deep = [field.name for field in type_.fields if isinstance(field.dtype, pl.Struct)]
        return f"left out, as objects within an object: {', '.join(deep)}"[:200] if deep else ""
    if isinstance(type_, pl.List) and isinstance(type_.inner, pl.Struct | pl.List):
        return "drafted as texts: declare a list of objects by hand (array of object); a list of lists is not in the subset"
    return ""
