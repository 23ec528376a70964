"""Reads the head of a Zeek log: tab-separated, with the columns' names and types in lines that begin with #."""

import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.errors import ConfigError

_FLAT: dict[str, pl.DataType] = {
    "time": pl.Float64(), "interval": pl.Float64(), "double": pl.Float64(), "count": pl.Int64(), "int": pl.Int64(),
    "port": pl.Int32(), "bool": pl.Boolean(),
}  # fmt: skip
_MAX_HEAD_LINES = 50


@dataclass(frozen=True, slots=True)
class _Head:
    fields: tuple[str, ...]
    types: tuple[str, ...]
    separator: str
    set_separator: str
    nothing: str
    empty: str


def is_zeek(body: bytes) -> bool:
    """Whether the text begins as Zeek's tab-separated logs do."""
    return body.startswith(b"#separator ")


def read_zeek(path: Path, body: bytes, max_rows: int) -> pl.DataFrame:
    """The first rows, in the types that the log names: times as UTC, sets and vectors as lists.

    Args:
        path: where the text is from, for messages.
        body: the first lines of the log.
        max_rows: how many rows to read.

    Raises:
        ConfigError: the head of the log lacks its names or types.
    """
    lines = body.decode("utf-8", errors="replace").split("\n")[: max_rows + _MAX_HEAD_LINES]
    head = _head(path, [line for line in lines if line.startswith("#")])
    rows = "\n".join(line for line in lines if line and not line.startswith("#"))
    if not rows:
        return pl.DataFrame(schema={name: _type(type_) for name, type_ in zip(head.fields, head.types, strict=True)})
    frame = pl.read_csv(
        io.BytesIO(rows.encode()), separator=head.separator, has_header=False, new_columns=list(head.fields), quote_char=None,
        null_values=[head.nothing], infer_schema=False, n_rows=max_rows, truncate_ragged_lines=True,
    )  # fmt: skip
    return frame.select(_cast(name, type_, head) for name, type_ in zip(head.fields, head.types, strict=True))


def _head(path: Path, lines: list[str]) -> _Head:
    separator = _unescaped(lines[0].partition(" ")[2]) or "\t"
    found = {parts[0].lstrip("#"): parts[1:] for parts in (line.split(separator) for line in lines[1:])}
    # Labelled logs of the Stratosphere laboratory put blanks between their last columns.
    fields, types = (" ".join(found.get(key, [])).split() for key in ("fields", "types"))
    if not fields or len(fields) != len(types):
        raise ConfigError(f"{path}: the head of this Zeek log lacks #fields or #types, or they do not match")
    single = {key: (found.get(key) or [other])[0] for key, other in (("set_separator", ","), ("unset_field", "-"))}
    empty = (found.get("empty_field") or ["(empty)"])[0]
    return _Head(tuple(fields), tuple(types), separator, single["set_separator"], single["unset_field"], empty)


def _unescaped(text: str) -> str:
    return chr(int(text.removeprefix("\\x"), 16)) if text.startswith("\\x") else text


def _type(type_: str) -> pl.DataType:
    if type_ == "time":
        return pl.Datetime("us", "UTC")
    if type_.startswith(("set[", "vector[")):
        item = _FLAT.get(type_.partition("[")[2].rstrip("]"), pl.String())
        return pl.List(pl.Float64() if item.is_float() else pl.Int64() if item.is_integer() else item)
    return _FLAT.get(type_, pl.String())


def _cast(name: str, type_: str, head: _Head) -> pl.Expr:
    value = pl.col(name)
    if type_ == "time":
        return (value.cast(pl.Float64, strict=False) * 1e6).round().cast(pl.Int64, strict=False).cast(_type(type_))
    if type_ == "bool":
        return value == "T"
    found = _type(type_)
    if isinstance(found, pl.List):
        items = value.str.split(head.set_separator)
        item = pl.element() == "T" if found.inner == pl.Boolean else pl.element().cast(found.inner, strict=False)
        typed = items.list.eval(pl.when(pl.element() != head.nothing).then(item)).cast(found)
        return pl.when(value == head.empty).then(pl.lit([], dtype=found)).otherwise(typed).alias(name)
    return value.cast(_type(type_), strict=False)
