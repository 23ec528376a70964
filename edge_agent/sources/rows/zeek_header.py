"""The header of a Zeek log, and what its marks mean."""

from collections.abc import Sequence

# Zeek's names of a connection's four corners, and how the built-in network_flow contract calls them.
CONN_RENAME = {
    "id.orig_h": "src_ip", "id.orig_p": "src_port", "id.resp_h": "dst_ip", "id.resp_p": "dst_port",
    "id_orig_h": "src_ip", "id_orig_p": "src_port", "id_resp_h": "dst_ip", "id_resp_p": "dst_port",
    "duration": "duration_s", "detailedlabel": "detailed_label", "detailed-label": "detailed_label",
}  # fmt: skip
_ABOUT_ROWS = ("#separator", "#set_separator", "#empty_field", "#unset_field", "#fields", "#types")


class ZeekHeader:
    """The directives in force: separator, field names, and the marks for "not set" and "empty"."""

    def __init__(self) -> None:
        self.separator = "\t"
        self.fields: list[str] = []
        self._set_separator = ","
        self._empty = "(empty)"
        self._unset = "-"
        self._sets: frozenset[str] = frozenset()
        self._lines: dict[str, str] = {}

    @property
    def text(self) -> str:
        """The lines that say something about rows."""
        return "".join(f"{line}\n" for line in self._lines.values())

    def take(self, line: str) -> None:
        """One `#` line. Directives that say nothing about rows (#path, #open, #close) are passed over."""
        line = line.rstrip("\r\n")
        if line.startswith(_ABOUT_ROWS):
            self._lines[next(name for name in _ABOUT_ROWS if line.startswith(name))] = line
        if line.startswith("#separator"):
            self.separator = _unescape(line.split(" ", 1)[-1].strip()) or "\t"
            return
        name, *values = line.split(self.separator)
        match name:
            case "#fields":
                self.fields = values
            case "#types":
                self._sets = frozenset(
                    field for field, kind in zip(self.fields, values, strict=False) if kind.startswith(("set[", "vector["))
                )
            case "#set_separator":
                self._set_separator = values[0] if values else ","
            case "#empty_field":
                self._empty = values[0] if values else "(empty)"
            case "#unset_field":
                self._unset = values[0] if values else "-"

    def columns(self, rows: list[list[str]]) -> dict[str, Sequence[object]]:
        """Rows as columns: not set becomes None, empty becomes "", sets and vectors become lists of text."""
        columns: dict[str, Sequence[object]] = {}
        by_column = zip(*rows, strict=True) if rows else [()] * len(self.fields)
        for name, cells in zip(self.fields, by_column, strict=True):
            columns[name] = [self._cell(cell, name in self._sets) for cell in cells]
        return columns

    def _cell(self, cell: str, is_set: bool) -> object:
        if cell == self._unset:
            return None
        if cell == self._empty:
            return [] if is_set else ""
        if not is_set:
            return _unescape(cell) if "\\x" in cell else cell
        # Apart first: an item may hold the separator, escaped.
        items = cell.split(self._set_separator)
        return [None if item == self._unset else _unescape(item) if "\\x" in item else item for item in items]


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
