"""Plain CSV, a row a label: columns sample, sha256 or file_name; value; and if there are any kind, geometry, author, made_at.

Stands alone because each format is one module.
"""

import csv
import io
from collections import Counter
from pathlib import Path

import polars as pl

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import read_body

_COLUMNS = ("sample", "sha256", "file_name", "kind", "value", "geometry", "author", "made_at")
_OTHER_NAMES = {"label": "value", "class": "value", "image": "file_name", "filename": "file_name"}


def read(path: Path) -> ForeignFile:
    """Read one file with a header.

    Raises:
        NotFoundError: there is no such file.
        RefusedError: it is not CSV, lacks a column, or a cell is not what its column holds.
    """
    try:
        rows = pl.read_csv(read_body(path), infer_schema=False).fill_null("")
        rows = rows.rename({name: _OTHER_NAMES.get(name.strip().lower(), name.strip().lower()) for name in rows.columns})
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise RefusedError(f"{path}: not CSV with a header: {error}") from error
    if "value" not in rows.columns or not {"sample", "sha256", "file_name"} & set(rows.columns):
        raise RefusedError(f"{path}: needs a column value (or label, class), and sample, sha256 or file_name")
    found = ForeignFile("csv")
    for extra in sorted(set(rows.columns) - set(_COLUMNS)):
        found.losses[f"column {extra[:60]}"] += len(rows)
    rows = rows.with_columns(pl.lit("").alias(name) for name in _COLUMNS if name not in rows.columns)
    rows = rows.with_columns(_micros(rows["made_at"]).alias("made_us"))
    for at, cells in enumerate(rows.select(*_COLUMNS[:7], "made_us").iter_rows(), 2):
        found.labels.append(_drawn(path, at, cells))
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write one file; what it cannot say is counted. A sample without labels is a row without a value, to be filled in."""
    losses: Counter[str] = Counter()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for task in tasks:
        for label in task.labels or (Drawn(task.name, LabelKind.CLASS),):
            losses.update(["attributes"] if label.attributes else [])
            made_at = pl.Series([label.made_us]).cast(pl.Datetime("us")).dt.to_string("iso:strict")[0] if label.made_us else ""
            numbers = " ".join(f"{number!r}".removesuffix(".0") for number in label.geometry)
            rows.writerow((task.sample, task.sha256, task.name, label.kind, label.value, numbers, label.author, made_at))
    write_atomic(path, text.getvalue().encode(), mode=0o644)
    return losses


def _micros(texts: pl.Series) -> pl.Series:
    if not (texts != "").any():
        return pl.zeros(len(texts), pl.Int64, eager=True)
    return texts.str.to_datetime(time_unit="us", strict=False, time_zone="UTC").cast(pl.Int64).fill_null(0)


def _drawn(path: Path, at: int, cells: tuple[object, ...]) -> Drawn:
    sample, sha256, name, kind, value, numbers, author, made_us = cells
    try:
        geometry = tuple(float(number) for number in str(numbers).split())
        return Drawn(
            str(name), LabelKind(str(kind) or "class"), str(value), geometry, sample=str(sample), sha256=str(sha256).lower(),
            author=str(author), tool_id=str(at), made_us=int(str(made_us)),
        )  # fmt: skip
    except ValueError as error:
        raise RefusedError(f"{path}:{at}: {error}; kinds are {', '.join(LabelKind)}") from error
