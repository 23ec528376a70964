"""The header of a tab-separated Zeek log, and what its marks mean."""

from collections.abc import Sequence

_ABOUT_ROWS = ("#separator", "#set_separator", "#empty_field", "#unset_field", "#fields", "#types")


class ZeekHeader:
    r"""The directives in force: separator, field names and types, and the marks for "not set" and "empty".

    Labelled logs of the Stratosphere laboratory separate their last columns by blanks, in `#fields`, `#types` and each row.

    Attributes:
        separator: what is between two cells; written in the log as `\x09`.
        fields: the names of the columns.
        types: their types, as Zeek calls them; empty where the log does not name any.
    """

    def __init__(self) -> None:
        self.separator = "\t"
        self.fields: list[str] = []
        self.types: list[str] = []
        self._names: list[str] = []
        self._blank_separated = 1
        self._set_separator = ","
        self._empty = "(empty)"
        self._unset = "-"
        self._lines: dict[str, str] = {}

    @property
    def text(self) -> str:
        """The lines that say something about rows."""
        return "".join(f"{line}\n" for line in self._lines.values())

    def take(self, line: str) -> None:
        """Read one `#` line. Directives that say nothing about rows (#path, #open, #close) are skipped."""
        line = line.rstrip("\r\n")
        if line.startswith(_ABOUT_ROWS):
            self._lines[next(name for name in _ABOUT_ROWS if line.startswith(name))] = line
        if line.startswith("#separator"):
            self.separator = _unescape(line.split(" ", 1)[-1].strip()) or "\t"
            return
        name, *values = line.split(self.separator)
        match name:
            case "#fields":
                self._names = values
                self._name_columns()
            case "#types":
                self.types = [kind for value in values for kind in (value.split() if " " in value else (value,))]
                self._name_columns()
            case "#set_separator":
                self._set_separator = values[0] if values else ","
            case "#empty_field":
                self._empty = values[0] if values else "(empty)"
            case "#unset_field":
                self._unset = values[0] if values else "-"

    def _name_columns(self) -> None:
        """A blank belongs to a name where there are as many types as names; else it separates the last of them."""
        names = self._names
        is_apart = bool(names) and " " in names[-1] and len(self.types) != len(names)
        self.fields = [*names[:-1], *names[-1].split()] if is_apart else list(names)
        self._blank_separated = 1 + len(self.fields) - len(names)

    def cells(self, line: str) -> list[str]:
        """The cells of a row, as they are written."""
        cells = line.rstrip("\r\n").split(self.separator)
        if self._blank_separated > 1:
            cells[-1:] = cells[-1].split(None, self._blank_separated - 1)
        return cells

    def columns(self, rows: Sequence[Sequence[str]]) -> dict[str, Sequence[object]]:
        """Rows as columns: not set becomes None, empty becomes "", sets and vectors become lists of text."""
        columns: dict[str, Sequence[object]] = {}
        by_column = zip(*rows, strict=True) if rows else [()] * len(self.fields)
        sets = frozenset(name for name, kind in zip(self.fields, self.types, strict=False) if is_list(kind))
        for name, cells in zip(self.fields, by_column, strict=True):
            columns[name] = [self._value(cell, name in sets) for cell in cells]
        return columns

    def _value(self, cell: str, is_set: bool) -> object:
        if cell == self._unset:
            return None
        if cell == self._empty:
            return [] if is_set else ""
        if not is_set:
            return _unescape(cell) if "\\x" in cell else cell
        # Split first: an item may hold the separator, escaped.
        items = cell.split(self._set_separator)
        return [None if item == self._unset else _unescape(item) if "\\x" in item else item for item in items]


def is_list(kind: str) -> bool:
    """Whether a Zeek type is a set or a vector."""
    return kind.startswith(("set[", "vector["))


def _unescape(text: str) -> str:
    """Undo how Zeek writes bytes outside printable ASCII: backslash, x, two hexadecimal digits."""
    head, *rest = text.split("\\x")
    out = bytearray(head.encode())
    for piece in rest:
        try:
            out += bytes((int(piece[:2], 16),)) + piece[2:].encode()
        except ValueError:
            out += b"\\x" + piece.encode()
    return out.decode("utf-8", errors="replace")
