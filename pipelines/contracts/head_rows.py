"""The first rows of separated values and of JSON, read as the agent reads them: the same names, the same rows."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import ConfigError
from schemas.source_names import read_header, separator_of

_MAX_FIELD_CHARS = 4 * 1024 * 1024  # as the agent has it, unless configured otherwise


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
