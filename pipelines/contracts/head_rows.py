"""Read the first rows of separated values, JSON and tab-separated Zeek logs as the agent reads them: the same names and rows.

A Zeek log has the types that its header names.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from catchment.runtime.zeek_header import ZeekHeader, is_list
from pipelines.errors import ConfigError
from schemas.source_names import read_header, separator_of

_MAX_FIELD_CHARS = 4 * 1024 * 1024  # as the agent has it, unless configured otherwise


_FLAT: dict[str, pl.DataType] = {
    "time": pl.Float64(), "interval": pl.Float64(), "double": pl.Float64(), "count": pl.Int64(), "int": pl.Int64(),
    "port": pl.Int32(), "bool": pl.Boolean(),
}  # fmt: skip
_MAX_HEAD_LINES = 50


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Name -> cells, as they are written: text of separated values (None where empty), values of JSON.

    `is_whole`: whether the file has no more rows; `is_lines`: whether the agent can replay a file of this form.
    """

    columns: dict[str, list[Any]]
    is_whole: bool
    is_lines: bool = True


def read_csv_rows(path: Path, body: bytes, max_rows: int) -> HeadRows:
    """Rows of separated values under their header; rows of another width are left out, as the agent refuses them.

    Raises:
        ConfigError: there is no header, or it has a name twice.
    """
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path}: UTF-16, which the agent does not read; save it as UTF-8")
    before = csv.field_size_limit(_MAX_FIELD_CHARS)
    lines = io.StringIO(body.decode("utf-8-sig", errors="replace"), newline="\n")
    first = lines.readline()
    separator = separator_of(first)
    try:
        names = read_header(chain((first,), lines), separator)
        if not first.strip():
            raise ConfigError(f"{path}: the file is empty; give one with a header row")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{path}: column name {twice[:80]!r} is used twice in the header; make them different")
        rows = list(islice((row for row in csv.reader(lines, delimiter=separator) if len(row) == len(names)), max_rows + 1))
    except csv.Error as error:
        raise ConfigError(f"{path}: not separated values: {error}") from error
    finally:
        csv.field_size_limit(before)  # it holds for the whole process
    cells = zip(*rows[:max_rows], strict=True) if rows else [()] * len(names)
    columns = {name: [cell or None for cell in column] for name, column in zip(names, cells, strict=True)}
    return HeadRows(columns, is_whole=len(rows) <= max_rows)


def read_json_rows(path: Path, body: bytes, max_rows: int) -> HeadRows:
    """Objects, one a line; or one list of them, or one object over many lines.

    Raises:
        ConfigError: it is no JSON, or holds no objects.
    """
    text = body.decode("utf-8-sig", errors="replace")
    try:
        if text.lstrip()[:1] != "[":
            rows = list(islice(_lines(text), max_rows + 1))
            if rows:
                return HeadRows(_by_column(rows[:max_rows]), is_whole=len(rows) <= max_rows)
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {str(error)[:200]}") from error
    items = found if isinstance(found, list) else [found]
    rows = [item for item in items if isinstance(item, dict)]
    if not rows:
        raise ConfigError(f"{path}: holds no JSON objects; a row is one object")
    return HeadRows(_by_column(rows[:max_rows]), is_whole=len(rows) <= max_rows, is_lines=False)


def _lines(text: str) -> Iterator[dict[str, Any]]:
    """The objects that stand on a line of their own."""
    for line in io.StringIO(text, newline="\n"):
        try:
            found = _value(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def _value(line: str) -> Any:
    """A JSON value as the agent reads it: strictly, but for the NaN and Infinity that Python prints."""
    try:
        return msgspec.json.decode(line)
    except msgspec.MsgspecError:
        found = json.loads(line)
        msgspec.json.encode(found)  # half of a surrogate pair is no text
        return found


def _by_column(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def is_zeek(body: bytes) -> bool:
    """Whether the text begins as Zeek's tab-separated logs do."""
    return body.startswith(b"#separator ")


def read_zeek(path: Path, body: bytes, max_rows: int) -> pl.DataFrame:
    """The first rows, in the types that the log names: times as UTC, sets and vectors as lists.

    Rows with more or fewer cells than names are left out, as an agent leaves them out.

    Args:
        path: where the text is from, for messages.
        body: the first lines of the log.
        max_rows: how many rows to read.

    Raises:
        ConfigError: the head of the log lacks its names or types.
    """
    lines = body.decode("utf-8", errors="replace").split("\n")[: max_rows + _MAX_HEAD_LINES]
    header = ZeekHeader()
    for line in lines:
        if line.startswith("#"):
            header.take(line)
    if not header.fields or len(header.fields) != len(header.types):
        raise ConfigError(f"{path}: the head of this Zeek log lacks #fields or #types, or they do not match")
    split = (header.cells(line) for line in lines if line and not line.startswith("#"))
    rows = list(islice((cells for cells in split if len(cells) == len(header.fields)), max_rows))
    kinds = dict(zip(header.fields, header.types, strict=True))
    texts = {name: pl.List(pl.String()) if is_list(kind) else pl.String() for name, kind in kinds.items()}
    frame = pl.DataFrame({name: pl.Series(name, cells, texts[name]) for name, cells in header.columns(rows).items()})
    return frame.select(_cast(name, kind) for name, kind in kinds.items())


def _type(kind: str) -> pl.DataType:
    if kind == "time":
        return pl.Datetime("us", "UTC")
    if is_list(kind):
        item = _FLAT.get(kind.partition("[")[2].rstrip("]"), pl.String())
        return pl.List(pl.Float64() if item.is_float() else pl.Int64() if item.is_integer() else item)
    return _FLAT.get(kind, pl.String())


def _cast(name: str, kind: str) -> pl.Expr:
    value = pl.col(name)
    found = _type(kind)
    if kind == "time":
        return (value.cast(pl.Float64, strict=False) * 1e6).round().cast(pl.Int64, strict=False).cast(found)
    if kind == "bool":
        return value == "T"
    if isinstance(found, pl.List):
        item = pl.element() == "T" if found.inner == pl.Boolean else pl.element().cast(found.inner, strict=False)
        return value.list.eval(item).cast(found)
    return value.cast(found, strict=False)
