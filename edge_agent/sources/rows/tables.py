"""Read tables (CSV, JSON lines, Zeek's logs) a chunk of columns at a time.

JSON is read strictly first, then with the NaN and Infinity that Python's own module prints.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import msgspec

from catchment.runtime.zeek_header import ZeekHeader
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.files.lines import Lines
from edge_agent.sources.rows.csv_rows import RowAssembler
from schemas.source_names import read_header, separator_of

_LOOSE = ("NaN", "Infinity")

# Zeek's names of a connection's four corners, and how the built-in network_flow contract calls them.
CONN_RENAME = {
    "id.orig_h": "src_ip", "id.orig_p": "src_port", "id.resp_h": "dst_ip", "id.resp_p": "dst_port",
    "id_orig_h": "src_ip", "id_orig_p": "src_port", "id_resp_h": "dst_ip", "id_resp_p": "dst_port",
    "duration": "duration_s", "detailedlabel": "detailed_label", "detailed-label": "detailed_label",
}  # fmt: skip


def read_json(text: str) -> object:
    """Read a JSON text.

    Raises:
        msgspec.MsgspecError: it is none, or says what cannot be written as UTF-8.
        RecursionError: it is nested too deeply.
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        if not any(word in text for word in _LOOSE):
            raise
        found = _loosely(text)
        if found is None:
            raise
        return found


def _loosely(text: str) -> object:
    import json  # noqa: PLC0415 # loaded only where a program writes such

    try:
        found = json.loads(text)
        msgspec.json.encode(found)  # half of a surrogate pair is no text that could be stored
    except ValueError:
        return None
    return found


@dataclass(frozen=True, slots=True)
class RawChunk:
    """`rows` rows as the file says them: column name -> `rows` cells (text, JSON values, None)."""

    columns: dict[str, Sequence[object]]
    rows: int


@dataclass(frozen=True, slots=True)
class TablePosition:
    """The position in a table: the byte after the last row read, and where the header in force begins."""

    offset: int = 0
    header_offset: int = 0


# The `header_offset` of a file whose header stands in an earlier file.
INHERITED = -1


class TableReader(Protocol):
    """One file's rows, chunk by chunk."""

    @property
    def header(self) -> str:
        """The text of the header in force; empty where there is none."""
        ...

    @property
    def position(self) -> TablePosition:
        """The position after the chunks read so far."""
        ...

    def read(self, max_rows: int) -> RawChunk | None:
        """At most so many rows; None at the end. A chunk may be empty where only refused rows were met."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class CsvReader:
    """Separated values with a header row; quotes and line breaks in quotes as RFC 4180 has them.

    The header tells the separator: comma, semicolon (as spreadsheets of many countries write), tab or bar.
    """

    def __init__(self, path: Path, start: TablePosition, max_line_bytes: int, rejects: Rejects) -> None:
        # Its own limit holds for the whole process, and is far below a line's.
        csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))
        first = Lines(path, 0, max_line_bytes, rejects)
        line = first.next_line() or ""
        separator = separator_of(line)
        try:
            self._names = read_header(chain((line,), first), separator)
        except csv.Error as error:
            raise SourceError(f"{path}: its header is no CSV: {error}") from error
        if len(set(self._names)) != len(self._names):
            raise ConfigError(f"{path}: a column name is used twice in the header; make them different")
        self._rejects = rejects
        self._lines = first
        if start.offset > first.offset:
            first.close()
            self._lines = Lines(path, start.offset, max_line_bytes, rejects)
        self._failure: SourceError | None = None
        # After the last whole row: a row may be several lines, and the file may end within it.
        self._row_end = self._lines.offset
        self._separator = separator
        self._rows = RowAssembler(separator, len(self._names), max_line_bytes, rejects)
        self.header = line

    @property
    def names(self) -> list[str]:
        """The names in the header."""
        return list(self._names)

    @property
    def position(self) -> TablePosition:
        """The position after the chunks read so far."""
        return TablePosition(self._row_end)

    def read(self, max_rows: int) -> RawChunk | None:
        """At most so many rows; None at the end."""
        rows: list[list[str]] = []
        width = len(self._names)
        ended = False
        while len(rows) < max_rows:
            text = self._next_row()
            if text is None:
                ended = True
                break
            row = self._cells(text)
            if row is None:
                continue
            if len(row) == width:
                rows.append(row)
            elif row:
                self._rejects.count(f"row: {len(row)} cells under {width} names", row)
        if self._failure is not None and not rows:
            raise self._failure
        return None if ended and not rows else _chunk(self._names, rows)

    def _cells(self, text: str) -> list[str] | None:
        try:
            return next(csv.reader([text], delimiter=self._separator), [])
        except csv.Error as error:
            self._rejects.count(f"row: no CSV ({error})")
            return None

    def _next_row(self) -> str | None:
        """The next row; None at the end, or where the file breaks: what was read before comes first."""
        while (row := self._rows.take()) is None:
            if self._failure is not None:
                return None
            try:
                line = self._lines.next_line()
            except SourceError as error:
                self._failure = error
                return None
            if line is not None:
                self._rows.add(line, self._lines.offset)
            elif self._rows.held:
                self._rows.end()
            else:
                self._row_end = self._lines.offset
                return None
        self._row_end = row.end
        return row.text

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class LineSource(Protocol):
    """Lines of a file, and how far they were read."""

    offset: int

    @property
    def is_final(self) -> bool:
        """Whether the file does not grow any more."""
        ...

    def next_line(self) -> str | None:
        """The next line; None where there is none (yet)."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


OpenLines = Callable[[Path, int, int, Rejects], LineSource]


class JsonlReader:
    """One JSON object a line."""

    def __init__(
        self, path: Path, start: TablePosition, max_line_bytes: int, rejects: Rejects, open_lines: OpenLines = Lines
    ) -> None:
        self._lines = open_lines(path, start.offset, max_line_bytes, rejects)
        self._rejects = rejects

    @property
    def header(self) -> str:
        """Return None: each row names its columns."""
        return ""

    @property
    def position(self) -> TablePosition:
        """The position after the chunks read so far."""
        return TablePosition(self._lines.offset)

    def read(self, max_rows: int) -> RawChunk | None:
        """At most so many rows; None at the end."""
        objects: list[dict[str, object]] = []
        while len(objects) < max_rows:
            line = _line_or_rest(self._lines, has_rows=bool(objects))
            if line is None:
                return objects_chunk(objects) if objects else None
            found = decode_object(line, self._rejects)
            if found is not None:
                objects.append(found)
        return objects_chunk(objects)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class ZeekReader:
    """Zeek's tab separated logs: `#fields` and `#types` say what follows, and may come again within a file.

    `header`: the text of a header that holds although it stands in an earlier file, as after a log was cut.
    """

    def __init__(
        self,
        path: Path,
        start: TablePosition,
        max_line_bytes: int,
        rejects: Rejects,
        open_lines: OpenLines = Lines,
        header: str = "",
    ) -> None:
        self._path = path
        self._rejects = rejects
        self._open_lines = open_lines
        self._header = ZeekHeader()
        self._header_offset = start.header_offset
        self._in_rows = start.offset > 0 or bool(header)
        is_here = start.offset > 0 and start.header_offset >= 0
        self._lines = open_lines(path, start.header_offset if is_here else start.offset, max_line_bytes, rejects)
        if is_here:
            self._rewind(start, max_line_bytes)
        if not self._header.fields and header:
            self._header_offset = INHERITED
            for line in header.splitlines():
                self._header.take(line)

    def _rewind(self, start: TablePosition, max_line_bytes: int) -> None:
        while self._lines.offset < start.offset:
            line = self._lines.next_line()
            if line is None or not line.startswith("#"):
                break
            self._header.take(line)
        self._lines.close()
        self._lines = self._open_lines(self._path, start.offset, max_line_bytes, self._rejects)

    @property
    def header(self) -> str:
        """The text of the header in force."""
        return self._header.text

    @property
    def position(self) -> TablePosition:
        """The position after the chunks read so far."""
        return TablePosition(self._lines.offset, self._header_offset)

    def read(self, max_rows: int) -> RawChunk | None:
        """At most so many rows under one header; None at the end."""
        rows: list[list[str]] = []
        while len(rows) < max_rows:
            before = self._lines.offset
            line = _line_or_rest(self._lines, has_rows=bool(rows))
            if line is None:
                return self._chunk(rows) if rows else None
            if line.startswith("#"):
                so_far = self._chunk(rows) if rows else None
                if self._starts_header(line, before) and so_far is not None:
                    return so_far
                continue
            self._in_rows = True
            row = self._header.cells(line)
            if not self._header.fields:
                raise SourceError(f"{self._path}: rows come before #fields; this is no Zeek log")
            if len(row) == len(self._header.fields):
                rows.append(row)
            else:
                self._rejects.count(f"row: {len(row)} cells under {len(self._header.fields)} names", row)
        return self._chunk(rows)

    def _chunk(self, rows: list[list[str]]) -> RawChunk:
        return RawChunk(self._header.columns(rows), len(rows))

    def _starts_header(self, line: str, offset: int) -> bool:
        """Take a `#` line; whether it begins a new header, so that the rows before it belong to the old one."""
        fresh = self._in_rows and line.startswith(("#separator", "#fields"))
        if fresh:
            self._in_rows = False
            self._header = ZeekHeader()
            self._header_offset = offset
        self._header.take(line)
        return fresh

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _line_or_rest(lines: LineSource, *, has_rows: bool) -> str | None:
    """The next line; None where there is none, or where the file breaks behind rows: these come first, the next call fails."""
    try:
        return lines.next_line()
    except SourceError:
        if has_rows:
            return None
        raise


def _chunk(names: Sequence[str], rows: list[list[str]]) -> RawChunk:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return RawChunk(dict(zip(names, columns, strict=True)), len(rows))


def objects_chunk(objects: list[dict[str, object]]) -> RawChunk:
    """Rows given as objects, turned into columns; a key that a row lacks is None."""
    names = dict.fromkeys(name for item in objects for name in item)
    return RawChunk({name: [item.get(name) for item in objects] for name in names}, len(objects))


def decode_object(line: str, rejects: Rejects) -> dict[str, object] | None:
    """One line as a JSON object; None, counted, if it is not one. An empty line is nothing at all."""
    if not line.strip():
        return None
    try:
        found = read_json(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        rejects.count("row: no JSON", f"{error}: {line[:80]}")
        return None
    if not isinstance(found, dict):
        rejects.count("row: JSON, but no object", line[:80])
        return None
    return found
