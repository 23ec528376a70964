"""Lines of separated values put together into rows, so that a quote that is never closed costs its own line only. Pure.

A quote opens a cell only where the cell begins, as in RFC 4180 and Python's reader: `12" pipe` is text.
"""

import csv
import re
from collections import deque
from dataclasses import dataclass

from edge_agent.sources.api import Rejects

OPEN_QUOTE = "row: no CSV (a quote is not closed)"
_CLOSE = re.compile(r'[^"]*(?:""[^"]*)*"(?!")')
# So many lines behind an open quote, each of them a row by itself, are no text of a cell.
_ROWS_BEHIND = 64


def leaves_open(line: str, separator: str, *, is_open: bool = False) -> bool:
    """Whether a quoted cell goes on in the next line.

    Args:
        line: one line, or a whole row.
        separator: between cells.
        is_open: whether the line begins within a quoted cell.
    """
    if '"' not in line:
        return is_open
    at = 0
    while True:
        if is_open or line[at : at + 1] == '"':
            close = _CLOSE.match(line, at if is_open else at + 1)
            if close is None:
                return True
            at, is_open = close.end(), False
        at = line.find(separator, at) + 1
        if not at:
            return False


def cells_of(row: str, separator: str, *, strict: bool = False) -> list[str]:
    """The cells of a row; none where it is no CSV."""
    try:
        return next(csv.reader([row], delimiter=separator, strict=strict), [])
    except csv.Error:
        return []


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A row's text, and the byte after it in its file."""

    text: str
    end: int


class RowAssembler:
    """Takes lines, gives rows.

    Where a quote was never closed, the lines behind it are rows if each has as many cells as there are names; else all are
    refused and counted.

    Args:
        separator: between cells.
        width: how many names the header has.
        max_chars: a longer row is refused.
        rejects: where refused lines are counted.
    """

    def __init__(self, separator: str, width: int, max_chars: int, rejects: Rejects) -> None:
        self._separator = separator
        self._width = width
        self._max = max_chars
        self._rejects = rejects
        self._held: list[CsvRow] = []
        self._held_chars = 0
        self._are_rows = True  # the lines behind the first held one are rows by themselves
        self._ready: deque[CsvRow] = deque()

    @property
    def held(self) -> str:
        """The lines of a row whose quotes are not closed yet."""
        return "".join(line.text for line in self._held)

    def take(self) -> CsvRow | None:
        """The next row, if there is one."""
        return self._ready.popleft() if self._ready else None

    def add(self, text: str, end: int) -> None:
        """One more line, and the byte after it in its file."""
        is_open = leaves_open(text, self._separator, is_open=bool(self._held))
        line = CsvRow(text, end)
        if not self._held and not is_open:
            self._ready.append(line)
            return
        if self._held and not is_open:
            self._close(line)
            return
        if self._held:
            self._are_rows = self._are_rows and self._is_row(text)
        self._held.append(line)
        self._held_chars += len(text)
        if self._held_chars > self._max or (self._are_rows and len(self._held) > _ROWS_BEHIND):
            self.end()

    def end(self) -> None:
        """No more lines: a quote that is still open is never closed."""
        held, are_rows = self._release()
        if held:
            self._break_up(held, are_rows=are_rows)

    def _close(self, last: CsvRow) -> None:
        """The quote is closed in this line; perhaps by a quote that opens another cell."""
        held, are_rows = self._release()
        row = "".join(line.text for line in (*held, last))
        width = len(cells_of(row, self._separator, strict=True))
        if width == self._width:
            self._ready.append(CsvRow(row, last.end))
        elif are_rows and self._is_row(last.text):
            self._break_up([*held, last], are_rows=True)
        elif are_rows and leaves_open(last.text, self._separator):
            self._break_up(held, are_rows=True)
            self.add(last.text, last.end)
        elif width:  # a row of another width, which the reader refuses
            self._ready.append(CsvRow(row, last.end))
        else:
            self._break_up([*held, last], are_rows=False)

    def _break_up(self, lines: list[CsvRow], *, are_rows: bool) -> None:
        self._rejects.count(OPEN_QUOTE, lines[0].text[:80], times=1 if are_rows else len(lines))
        if are_rows:
            self._ready += lines[1:]

    def _release(self) -> tuple[list[CsvRow], bool]:
        held, are_rows = self._held, self._are_rows
        self._held, self._held_chars, self._are_rows = [], 0, True
        return held, are_rows

    def _is_row(self, text: str) -> bool:
        is_whole = not leaves_open(text, self._separator)
        return self._width > 1 and is_whole and len(cells_of(text, self._separator, strict=True)) == self._width
