"""Reads the first rows of a tab-separated Zeek log, in the types that its head names."""

from itertools import islice
from pathlib import Path

import polars as pl

from catchment.runtime.zeek_header import ZeekHeader, is_list
from pipelines.errors import ConfigError

_FLAT: dict[str, pl.DataType] = {
    "time": pl.Float64(), "interval": pl.Float64(), "double": pl.Float64(), "count": pl.Int64(), "int": pl.Int64(),
    "port": pl.Int32(), "bool": pl.Boolean(),
}  # fmt: skip
_MAX_HEAD_LINES = 50


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
