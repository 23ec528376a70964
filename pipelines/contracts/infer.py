"""Drafts a contract from a file: types from its first rows, and what was seen in them told in each description.

A draft is for a person to correct: bounds and lists of values are written as words unless asked for, as the first rows of
a file are a poor judge of what may come.
"""

import gzip
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from pipelines.contracts.zeek import is_zeek, read_zeek
from pipelines.errors import ConfigError
from schemas.contract import RESERVED_COLUMNS, Column, ColumnType, Contract, PiiClass
from schemas.envelope import EVENT_TIME
from schemas.errors import SchemaError

MAX_CATEGORIES = 12
_RFC_3339 = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$"
_MAX_BYTES = 64 * 1024 * 1024
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


def infer_contract(path: Path, name: str | None = None, *, max_rows: int = 10_000, bounds: bool = False) -> Contract:
    """A contract that the first rows of this file fulfil.

    Args:
        path: CSV (by comma, semicolon, tab or bar), JSON lines, a JSON list, Parquet, Arrow IPC or a Zeek log.
        name: the stream's name; from the file's without it.
        max_rows: how many rows to look at.
        bounds: write the range and the values seen as bounds, not only in words.

    Raises:
        ConfigError: the file cannot be read, or no column of it can be in a contract.
    """
    try:
        frame = _read(path, max_rows)
        stream = name or re.sub(r"[^a-z0-9]+", "_", path.name.partition(".")[0].lower()).strip("_") or "stream"
        columns = tuple(_columns(frame, bounds=bounds))
        return Contract(stream, "0.1.0", columns, description=f"Drafted from {frame.height:,} rows of {path.name}")
    except (PolarsError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot draft a contract: {' '.join(str(error).split())[:200]}") from error
    except SchemaError as error:
        raise ConfigError(f"{path}: cannot draft a contract: {error}; give a name with --name") from error


def _read(path: Path, max_rows: int) -> pl.DataFrame:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    body = _head(path)
    if ".parquet" in suffixes:
        return pl.scan_parquet(path).head(max_rows).collect()
    if set(suffixes) & {".arrow", ".feather", ".ipc"}:
        return pl.read_ipc(path, n_rows=max_rows)
    if is_zeek(body):
        return read_zeek(path, body, max_rows)
    if set(suffixes) & {".jsonl", ".ndjson", ".json"} or body.lstrip()[:1] in (b"{", b"["):
        return _read_json(body, max_rows)
    return _read_csv(body, max_rows, "\t" if ".tsv" in suffixes else "")


def _read_json(body: bytes, max_rows: int) -> pl.DataFrame:
    """Objects, one a line; or one list of them, or one object over many lines."""
    if body.lstrip()[:1] != b"[":
        try:
            return pl.read_ndjson(io.BytesIO(body), n_rows=max_rows, infer_schema_length=max_rows)
        except PolarsError:
            if body.count(b"\n{"):
                raise
    return pl.read_json(io.BytesIO(body), infer_schema_length=max_rows).head(max_rows)


def _read_csv(body: bytes, max_rows: int, separator: str) -> pl.DataFrame:
    """By the separator that the head of the file has most of; numbers with a comma where that does not separate."""
    head, _, rest = body.partition(b"\n")
    by = separator or max(",;\t|", key=lambda each: head.count(each.encode()))
    has_commas = by == ";" and re.search(rb"(^|;)\"?-?\d+,\d+\"?(;|\r?$)", rest.partition(b"\n")[0]) is not None
    read = partial(pl.read_csv, body, n_rows=max_rows, separator=by)
    frame = read(try_parse_dates=True, infer_schema_length=max_rows, decimal_comma=has_commas)
    numbers = [name for name, type_ in frame.schema.items() if type_.is_integer()]
    if not numbers:
        return frame
    # 00123 is a name made of digits: as a number it would lose its zeros.
    words = read(columns=numbers, infer_schema=False)
    padded = [name for name in numbers if words.get_column(name).str.contains(r"^-?0\d").any()]
    return frame.with_columns(words.get_column(name) for name in padded)


def _head(path: Path) -> bytes:
    """The first whole lines, unpacked if the file is gzip."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
        body = bytes(file.read(_MAX_BYTES))
    return body if len(body) < _MAX_BYTES else body[: body.rfind(b"\n") + 1]


def _columns(frame: pl.DataFrame, *, bounds: bool) -> Iterator[Column]:
    taken: set[str] = set()
    for series in frame.get_columns():
        name = _name(series.name, taken)
        if name == EVENT_TIME:
            continue  # every row has one beside the contract's columns
        taken.add(name)
        column = _column(name, series, bounds=bounds)
        if name != series.name:
            told = f"{series.name!r} in the file; {column.description}".removesuffix("; ")
            column = msgspec.structs.replace(column, description=told[:1_000])
        yield column


def _name(given: str, taken: set[str]) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", given)  # camelCase
    name = re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")[:56] or "column"
    name = name if name[0].isalpha() else f"c_{name}"
    if name in RESERVED_COLUMNS and name != EVENT_TIME:
        name = f"{name}_value"
    return next(each for each in (name, *(f"{name}_{n}" for n in range(2, 10_000))) if each not in taken)


def _column(name: str, series: pl.Series, *, bounds: bool) -> Column:
    type_, length, fields = _type(series)
    if type_ is ColumnType.STRING and _are_times(series):
        type_ = ColumnType.TIMESTAMP
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
        fields = tuple(_columns(pl.DataFrame([field for field in inner if field.dtype != pl.Struct]), bounds=False))
        return (ColumnType.STRUCT, None, fields) if fields else (ColumnType.STRING, None, ())
    if isinstance(type_, pl.Array) and type_.inner in (pl.Float32, pl.Float64):
        return (ColumnType.VECTOR_FLOAT32 if type_.inner == pl.Float32 else ColumnType.VECTOR_FLOAT64, type_.size, ())
    if isinstance(type_, pl.List):
        item = _flat(pl.Series([], dtype=type_.inner).dtype)
        found = f"list<{item}>"
        return (ColumnType(found) if found in set(ColumnType) else ColumnType.LIST_STRING, None, ())
    if type_.is_integer() and series.drop_nulls().cast(pl.Int128).abs().max() not in range(-1, 2**63):
        return ColumnType.FLOAT64, None, ()
    return _flat(type_), None, ()


def _are_times(series: pl.Series) -> bool:
    """Whether text is RFC 3339 with a zone throughout: JSON has no other way to say a time."""
    return series.dtype == pl.String and series.null_count() < series.len() and bool(series.str.contains(_RFC_3339).all())


def _flat(type_: pl.DataType) -> ColumnType:
    return next((found for fits, found in _TYPES if fits(type_)), ColumnType.STRING)


def _seen(series: pl.Series, type_: ColumnType) -> tuple[str, float | None, float | None, tuple[str, ...]]:
    """Words about the values, and the bounds or the values themselves."""
    if type_ in (ColumnType.INT32, ColumnType.INT64, ColumnType.FLOAT32, ColumnType.FLOAT64) and series.dtype.is_numeric():
        numbers = series.cast(pl.Float64).drop_nulls().drop_nans()
        if not numbers.len():
            return "only NaN seen", None, None, ()
        low, high = (float(value) for value in (numbers.min(), numbers.max()) if isinstance(value, float))
        words = f"seen {low:g} to {high:g}"
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
        return "lists of objects or of lists are not in the subset: send each item as text"
    return ""
