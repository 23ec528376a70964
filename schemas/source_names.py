"""Match names of a file or message to columns of a contract, and make column names of such names. Pure."""

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from schemas.contract import RESERVED_COLUMNS, Column
from schemas.envelope import EVENT_TIME

# What a column of event times is called, once its name is written as a column's.
TIME_NAMES = (EVENT_TIME, "ts", "timestamp", "time")
MAX_DRAFT_CHARS = 56
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_NAME = re.compile(r"[^a-z0-9]+")
# Letters that Unicode does not take apart into one of a to z and a mark.
_LETTERS = str.maketrans({
    "ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "Oe", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D",
    "ð": "d", "þ": "th", "µ": "u", "μ": "u", "\u0131": "i",
})  # fmt: skip
# Comma first: it wins where a header has as many of another.
_SEPARATORS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')


def column_name_of(source_name: str) -> str:
    """The column name for a name as a logger writes it: lower case, of a-z, 0-9 and "_", and not a standard column's."""
    plain = unicodedata.normalize("NFKD", source_name.translate(_LETTERS)).encode("ascii", "ignore").decode()
    name = _NO_NAME.sub("_", _CAMEL_CASE.sub("_", plain).lower()).strip("_")[:MAX_DRAFT_CHARS].rstrip("_") or "column"
    name = name if name[0].isalpha() else f"c_{name}"
    return f"{name}_value" if name in RESERVED_COLUMNS and name != EVENT_TIME else name


def is_time_name(source_name: str) -> bool:
    """Whether a column of this name holds event times, unless the configuration names another."""
    return column_name_of(source_name) in TIME_NAMES


def match_columns(
    names: Iterable[str], columns: Sequence[Column], rename: Mapping[str, str], usual: Mapping[str, str] | None = None
) -> dict[str, Column]:
    """Map each of these names to the column it fills; names that fill none are left out.

    Args:
        names: as the file or message has them.
        columns: of the contract, or of a struct.
        rename: name in the source -> column, from the configuration: decides alone for the names in it.
        usual: name in the source -> column, where the contract has that column and nothing else fits: a format's own names.
    """
    listed = list(dict.fromkeys(names))
    by_name = {column.name: column for column in columns}
    by_source = {_plain(column.source_name): column for column in columns if column.source_name}
    found: dict[str, Column] = {}
    taken: set[str] = set()

    def assign(name: str, column: Column | None) -> None:
        if column is not None and name not in found and column.name not in taken:
            found[name] = column
            taken.add(column.name)

    free = [name for name in listed if name not in rename or rename[name] not in by_name]
    for name in listed:
        assign(name, by_name.get(rename.get(name, "")))
    for name in free:
        assign(name, by_source.get(_plain(name)))
    for name in free:
        assign(name, by_name.get(name))
    for name in free:
        assign(name, by_name.get((usual or {}).get(name, "")))
    return {name: found[name] for name in listed if name in found}


def separator_of(header: str) -> str:
    """Find the separator of a header: the one of comma, semicolon, tab and bar that it has most of, outside of quotes."""
    bare = _QUOTED.sub("", header)
    return max(_SEPARATORS, key=bare.count)


def header_names(cells: Sequence[str]) -> list[str]:
    """The names in a header row: without blanks around them, and an empty one called by its place (`column_3`)."""
    return [name.strip() or f"column_{place}" for place, name in enumerate(cells, 1)]


def read_header(lines: Iterable[str], separator: str) -> list[str]:
    """The names in the first row of separated values.

    Raises:
        csv.Error: it cannot be read as such.
    """
    return header_names(next(csv.reader(lines, delimiter=separator), []))


def _plain(name: str) -> str:
    """One form of a name that Unicode can write in two."""
    return unicodedata.normalize("NFC", name.strip())
