"""Read a file's first rows as the agent reads them, and draft a type for each column that the agent can fill with all of them.

A Zeek log has the types that its header names.

The settings of the source that fills a drafted contract are drafted, too: its column of times, and the form of its values.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from catchment.runtime.zeek_header import ZeekHeader, is_list
from pipelines.errors import ConfigError
from schemas.source_names import TIME_NAMES, column_name_of, is_time_name, read_header, separator_of
from schemas.written_values import NumberForm, TimeForm, WrittenValueError, read_time

_MAX_FIELD_CHARS = 4 * 1024 * 1024  # as the agent has it, unless configured otherwise

_FLAT: dict[str, pl.DataType] = {
    "time": pl.Float64(), "interval": pl.Float64(), "double": pl.Float64(), "count": pl.Int64(), "int": pl.Int64(),
    "port": pl.Int32(), "bool": pl.Boolean(),
}  # fmt: skip
_MAX_HEAD_LINES = 50
PLAIN = NumberForm()
# Tried in this order on a table; the first in which the most columns are numbers is its form.
NUMBER_FORMS = (
    PLAIN,
    *(NumberForm(*pair) for pair in ((",", ""), (",", "."), (",", " "), (",", "'"), (".", " "), (".", "'"), (".", ","))),
)
# Forms in which loggers and spreadsheets write times, next to RFC 3339.
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

_TIME_WORDS = ("time", "date", "timestamp", "zeit", "datum", "utc", "epoch")
# 1990 and 2100, the years between which the core accepts event times, in seconds.
_EARLIEST_S, _LATEST_S = 631_152_000, 4_102_444_800


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


@dataclass(frozen=True, slots=True)
class SourceHints:
    """Options of a source that fills the draft, as TOML text by name, and remarks.

    Attributes:
        kind: of file: csv, jsonl, zeek; "": one that no source of the agent reads.
        options: name -> value as TOML.
        remarks: what a person must decide or know.
    """

    kind: str = ""
    options: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def lines(self, stream: str, path: str) -> list[str]:
        """A source for agent.toml, and the remarks."""
        if not self.kind:
            return ["No source of the agent reads this kind of file: the draft is for bodies that another program sends."]
        shown = path.replace("\\", "\\\\").replace('"', '\\"')
        return [
            "A source that fills it (agent.toml); try it with: edge-agent try -c agent.toml",
            "",
            "  [[source]]",
            '  kind = "replay"',
            f'  stream = "{stream}"',
            f'  contract = "{stream}.json"   # catchment contract show {stream}.odcs.yaml --as agent > {stream}.json',
            "  [source.options]",
            f'  path = "{shown}"',
            *(f"  {name} = {value}" for name, value in self.options.items()),
            *(("", *self.remarks) if self.remarks else ()),
        ]


def json_hints(rows: HeadRows, typed: Sequence[TypedColumn]) -> SourceHints:
    """Hints for a file of JSON."""
    if not rows.is_lines:
        return SourceHints("jsonl", {}, ("The agent reads JSON lines: write one object a line (jq -c '.[]' does it).",))
    return _hints("jsonl", rows, typed, {}, [])


def csv_hints(rows: HeadRows, typed: Sequence[TypedColumn], form: NumberForm, doubt: str) -> SourceHints:
    """Hints for a file of separated values."""
    options: dict[str, str] = {}
    if form != PLAIN:
        options["decimal"] = f'"{form.decimal}"'
        if form.thousands:
            options["thousands"] = f'"{form.thousands}"'
    return _hints("csv", rows, typed, options, [doubt] if doubt else [])


def _hints(kind: str, rows: HeadRows, typed: Sequence[TypedColumn], options: dict[str, str], remarks: list[str]) -> SourceHints:
    by_name = {column.series.name: column for column in typed}
    name = _time_column(by_name)
    if name is None:
        remarks.append("No column of times was found: the time of reading will be the event time; else set time_column.")
        return SourceHints(kind, options, (*remarks, *_zone_remark(typed, options)))
    if not _is_found_alone(name, by_name):
        options["time_column"] = _quoted(name)
    column = by_name[name]
    texts = [cell for cell in rows.columns[name] if isinstance(cell, str)]
    if column.series.dtype == pl.String and texts:
        _add_format(texts, options, remarks)
    elif column.series.dtype.is_numeric() and not _is_since_1970(column.series):
        remarks.append(f"{name!r} does not count from 1970: set time_start, or another time_column.")
    return SourceHints(kind, options, (*remarks, *_zone_remark(typed, options)))


def _add_format(texts: Sequence[str], options: dict[str, str], remarks: list[str]) -> None:
    formats = time_formats(texts)
    if formats:
        options["time_format"] = f"'{formats[0]}'"
        if "%z" not in formats[0]:
            options["time_zone"] = '"UTC"   # or the zone they are in, such as "Europe/Berlin"'
    if len(formats) > 1:
        remarks.append(f"The times fit more than one form: {', '.join(formats)}; take the right one.")
    if not formats:
        remarks.append("The form of the times was not recognised: set time_format, as strptime has it.")


def _zone_remark(typed: Sequence[TypedColumn], options: dict[str, str]) -> tuple[str, ...]:
    lacking = [column.series.name for column in typed if column.lacks_zone]
    if not lacking or "time_zone" in options:
        return ()
    options["time_zone"] = '"UTC"   # or the zone they are in, such as "Europe/Berlin"'
    return (f"Times without a zone: {', '.join(lacking)}. Set time_zone to the zone they are in.",)


def _time_column(columns: dict[str, TypedColumn]) -> str | None:
    named = [name for wanted in TIME_NAMES for name in columns if column_name_of(name) == wanted]
    times = [name for name, column in columns.items() if column.series.dtype == pl.Datetime]
    alike = [name for name, column in columns.items() if _looks_like_time(name, column.series)]
    return next(iter((*named, *times, *alike)), None)


def _looks_like_time(name: str, series: pl.Series) -> bool:
    is_named_so = series.dtype == pl.String and any(word in name.lower() for word in _TIME_WORDS)
    return is_named_so and bool(series.drop_nulls().str.contains(r"\d").any())


def _is_found_alone(name: str, columns: dict[str, TypedColumn]) -> bool:
    """Whether the agent takes this column for the times without being told."""
    return is_time_name(name) and name in columns


def _is_since_1970(series: pl.Series) -> bool:
    first = series.drop_nulls().head(1).cast(pl.Float64).to_list()
    if not first:
        return True
    size = abs(first[0])
    scale = 1.0 if size < 1e11 else 1e3 if size < 1e14 else 1e6 if size < 1e17 else 1e9
    return bool(_EARLIEST_S <= size / scale < _LATEST_S)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
