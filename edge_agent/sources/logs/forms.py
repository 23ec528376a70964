"""The formats of a followed log: Zeek's tabs, JSON lines, CSV, plain lines. Recognition, readers, torn lines."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import msgspec

from catchment.runtime.zeek_header import ZeekHeader
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects
from edge_agent.sources.rows.csv_rows import CsvRow, RowAssembler, leaves_open
from edge_agent.sources.rows.tables import (
    INHERITED,
    JsonlReader,
    OpenLines,
    RawChunk,
    TablePosition,
    TableReader,
    ZeekReader,
    read_json,
)
from schemas.source_names import separator_of

ZEEK, JSONL, CSV, PLAIN = "zeek", "jsonl", "csv", "plain"
# The column that a line of a plain log becomes.
MESSAGE = "message"
# A longer header is not kept over a restart, nor looked for in several lines.
MAX_HEADER_CHARS = 16 * 1024


def recognise(begins: bytes, forms: Sequence[str]) -> str:
    """The form of a file that begins so; empty where its beginning does not tell it."""
    if len(forms) == 1 and forms[0] in (CSV, PLAIN):
        return forms[0]
    if begins.startswith(b"#") and ZEEK in forms:
        return ZEEK
    return JSONL if begins.startswith(b"{") and JSONL in forms else ""


def is_header(form: str, line: bytes, header: str) -> bool:
    """Whether a file's first line is a header, and no row under the header in force.

    A header of CSV is known by its names: at least half of them are those of the header in force.
    """
    if form == ZEEK:
        return line.startswith(b"#")
    if form != CSV:
        return False
    known, names = ({cell.strip() for cell in _cells(text, header)} for text in (header, _text(line)))
    return not header or 2 * len(known & names) >= len(known)


def joins(form: str, header: str, lead: bytes, first: bytes) -> bool:
    """Whether the end of a cut log and the first line of what was written next are one row: together they are whole."""
    if form == PLAIN:
        return True  # nothing tells a whole line from the half of one, and writers that buffer tear them
    if form == CSV and _leaves_open(lead, header):
        return True  # within quotes
    if form == CSV and _leaves_open(lead + first, header):
        # The row goes on behind this line. Two rows would have too many cells.
        return len(_cells(_text(lead + first), header)) <= len(_cells(header, header))
    return is_whole(form, header, lead + first)


def is_whole(form: str, header: str, line: bytes) -> bool:
    """Whether a line is a row."""
    text = _text(line).rstrip("\r\n")
    if form == ZEEK:
        zeek = _zeek(header)
        return not text.startswith("#") and len(zeek.cells(text)) == len(zeek.fields)
    if form == CSV:
        return not leaves_open(text, separator_of(header)) and len(_cells(text, header)) == len(_cells(header, header))
    if form == JSONL:
        try:
            return isinstance(read_json(text), dict)
        except (msgspec.MsgspecError, RecursionError):
            return False
    return bool(text)


def is_only_header(form: str, content: bytes, header: str) -> bool:
    """Whether this beginning of a file is a header and no row."""
    if form == ZEEK:
        return all(line.startswith(b"#") for line in content.splitlines())
    return form == CSV and content.removeprefix(b"\xef\xbb\xbf") == header.encode()


def one_row(form: str, header: str, line: bytes, rejects: Rejects) -> RawChunk | None:
    """A single line as rows."""
    end = b"" if line.endswith(b"\n") else b"\n"
    lines = _OneLine(_text(line + end))
    reader = make_reader(form, Path(form), TablePosition(0, INHERITED), len(line) + 1, rejects, lambda *_: lines, header)
    return reader.read(1)


def make_reader(
    form: str, path: Path, start: TablePosition, max_line_bytes: int, rejects: Rejects, open_lines: OpenLines, header: str
) -> TableReader:
    """A reader of rows of this form."""
    if form == ZEEK:
        return ZeekReader(path, start, max_line_bytes, rejects, open_lines, header)
    if form == JSONL:
        return JsonlReader(path, start, max_line_bytes, rejects, open_lines)
    if form == CSV:
        return CsvLines(path, start, max_line_bytes, rejects, open_lines, header)
    return PlainLines(path, start, max_line_bytes, rejects, open_lines)


class PlainLines:
    """One row a line, in the column `message`."""

    header = ""

    def __init__(self, path: Path, start: TablePosition, max_line_bytes: int, rejects: Rejects, open_lines: OpenLines) -> None:
        self._lines = open_lines(path, start.offset, max_line_bytes, rejects)

    @property
    def position(self) -> TablePosition:
        """The position after the chunks read so far."""
        return TablePosition(self._lines.offset)

    def read(self, max_rows: int) -> RawChunk | None:
        """At most so many rows; None where there are none now. Empty lines are none."""
        rows: list[str] = []
        while len(rows) < max_rows:
            line = self._lines.next_line()
            if line is None:
                break
            if text := line.rstrip("\r\n"):
                rows.append(text)
        return RawChunk({MESSAGE: rows}, len(rows)) if rows else None

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class CsvLines:
    """CSV that still grows: a row counts once its last line is written. The header is the file's first line, or inherited."""

    def __init__(
        self,
        path: Path,
        start: TablePosition,
        max_line_bytes: int,
        rejects: Rejects,
        open_lines: OpenLines,
        header: str = "",
    ) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))
        self._path = path
        self._lines = open_lines(path, start.offset, max_line_bytes, rejects)
        self._rejects = rejects
        self._max = max_line_bytes
        self._row_end = self._lines.offset
        self._is_first = start.offset == 0
        self._begun: list[CsvRow] = []
        self.header = header
        self._rows = self._assembler()

    def _assembler(self) -> RowAssembler:
        names = _cells(self.header, self.header)
        return RowAssembler(separator_of(self.header), len(names), self._max, self._rejects)

    @property
    def position(self) -> TablePosition:
        """The position after the chunks read so far."""
        return TablePosition(self._row_end)

    def read(self, max_rows: int) -> RawChunk | None:
        """At most so many rows; None where there are none now."""
        rows: list[list[str]] = []
        while len(rows) < max_rows:
            row = self._rows.take()
            if row is not None:
                self._take(row.text, rows)
                self._row_end = row.end
            elif not self._add_line():
                break
        names = _cells(self.header, self.header)
        columns = zip(*rows, strict=True) if rows else ()
        return RawChunk(dict(zip(names, columns, strict=True)), len(rows)) if rows else None

    def _add_line(self) -> bool:
        """Take one more line, or give up an open quote where no more come; False where neither is possible."""
        line = self._lines.next_line()
        if line is None:
            is_over = bool(self._rows.held) and self._lines.is_final
            if is_over:
                self._rows.end()
            return is_over
        if self._is_first:
            self._begin(line)
        else:
            self._rows.add(line, self._lines.offset)
        return True

    def _begin(self, line: str) -> None:
        """Take one of the first lines: the header, whose names may be several lines, or rows under the header in force."""
        self._begun.append(CsvRow(line, self._lines.offset))
        text = "".join(begun.text for begun in self._begun)
        if leaves_open(text, separator_of(text)) and len(text) < MAX_HEADER_CHARS:
            return
        begun, self._begun, self._is_first = self._begun, [], False
        if is_header(CSV, text.encode(), self.header):
            self.header = self._checked(text.removeprefix("\ufeff"))
            self._rows = self._assembler()
            self._row_end = self._lines.offset
            return
        for one in begun:
            self._rows.add(one.text, one.end)

    @property
    def torn(self) -> bytes:
        """The lines of a row whose quotes are not closed yet."""
        return ("".join(begun.text for begun in self._begun) + self._rows.held).encode()

    def _checked(self, header: str) -> str:
        names = _cells(header, header)
        if len(set(names)) != len(names):
            raise ConfigError(f"{self._path}: a column name is used twice in the header; make them different")
        return header

    def _take(self, text: str, rows: list[list[str]]) -> None:
        cells, names = _cells(text, self.header), _cells(self.header, self.header)
        if len(cells) == len(names):
            rows.append(cells)
        elif text.strip():
            self._rejects.count(f"row: {len(cells)} cells under {len(names)} names", cells)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class _OneLine:
    """A line in memory, as a file."""

    def __init__(self, line: str) -> None:
        self._line: str | None = line
        self.offset = 0
        self.is_final = True

    def next_line(self) -> str | None:
        line, self._line = self._line, None
        return line

    def close(self) -> None:
        """Nothing is held open."""


def _zeek(header: str) -> ZeekHeader:
    found = ZeekHeader()
    for line in header.splitlines():
        found.take(line)
    return found


def _cells(text: str, header: str) -> list[str]:
    """The cells of a row; none where it is no CSV."""
    try:
        cells = next(csv.reader(StringIO(text, newline=""), delimiter=separator_of(header)), [])
    except csv.Error:
        return []
    return [cell.strip() for cell in cells] if text is header else cells


def _leaves_open(line: bytes, header: str) -> bool:
    return leaves_open(_text(line), separator_of(header))


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")
