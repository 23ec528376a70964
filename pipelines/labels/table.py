"""Tables of labels, `labels/<task>`: append-only Delta tables. A later label supersedes an earlier one; nothing is updated.

A file that was imported is known by its SHA-256 and by the place of each label in it, so the same file twice adds nothing.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
from deltalake.exceptions import DeltaError

from pipelines.errors import ConflictError, CorruptLakeError, NotFoundError, RefusedError
from pipelines.lake.commit import commit_once
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import LABELS
from pipelines.lake.table import dataset_of

APP = "labels"
KEY = ("stream", "device", "epoch", "seq")
PRIVATE = ("author",)
_TASK = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_ATTEMPTS = 20
_TEXT, _TIME = pa.string(), pa.timestamp("us", "UTC")
SCHEMA = pa.schema([
    ("label_id", _TEXT), ("stream", _TEXT), ("device", _TEXT), ("epoch", pa.int64()), ("seq", pa.int64()),
    ("payload_sha256", _TEXT), ("task", _TEXT), ("kind", _TEXT), ("value", _TEXT), ("geometry", pa.list_(pa.float64())),
    ("attributes", _TEXT), ("author", _TEXT), ("role", _TEXT), ("tool", _TEXT), ("guideline", _TEXT), ("made_at", _TIME),
    ("imported_at", _TIME), ("seconds", pa.float64()), ("supersedes", pa.list_(_TEXT)), ("state", _TEXT),
    ("source_sha256", _TEXT), ("source_label", _TEXT),
])  # fmt: skip


def task_table(task: str) -> str:
    """The table of a task, relative to the lake root.

    Raises:
        RefusedError: a task may not be called so.
    """
    if not _TASK.fullmatch(task):
        raise RefusedError(f"task {task[:80]!r} must be 1-63 of a-z, 0-9, '_' and '-', starting with a letter")
    return f"{LABELS}/{task}"


def read_labels(lake: Lake, task: str, version: int | None = None) -> tuple[pa.Table, int]:
    """All labels of a task, and the Delta version they are of.

    Raises:
        NotFoundError: nobody has labelled for this task, or there is no such version.
        CorruptLakeError: the table cannot be read.
    """
    name = task_table(task)
    try:
        table = lake.view().checked_table(name, version)
    except DeltaError as error:
        raise NotFoundError(f"{lake.root / name}: cannot be opened at version {version}: {error}") from error
    if table is None:
        raise NotFoundError(f"no labels for task {task} in {lake.root}; `label import --task {task}` brings some")
    try:
        return dataset_of(table).to_table(columns=SCHEMA.names).cast(SCHEMA), table.version()
    except (OSError, pa.ArrowInvalid, DeltaError) as error:
        raise CorruptLakeError(f"{lake.root / name}: cannot be read: {error}; restore the missing files") from error


def append_labels(lake: Lake, task: str, rows: pa.Table) -> int:
    """Append the labels that the table does not have yet, in one commit.

    Args:
        lake: the lake.
        task: whose table.
        rows: labels of the table's schema; `supersedes` is filled here.

    Returns:
        How many were new.

    Raises:
        ConflictError: others kept winning.
        RetryLaterError: the storage is unavailable.
    """
    name = task_table(task)
    for _ in range(_ATTEMPTS):
        before, number = _before(lake, task)
        new = _new_rows(rows, before)
        if not len(new):
            return 0
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        file = write_table_file(lake, name, f"{number + 1:012d}-{stamp}.parquet", new, PRIVATE)
        if commit_once(lake, name, [file], SCHEMA, number + 1, PRIVATE, APP):
            return len(new)
    raise ConflictError(f"{name}: {_ATTEMPTS} times others labelled first; try again")


def _before(lake: Lake, task: str) -> tuple[pa.Table, int]:
    """The labels that are there, and the number of their last commit."""
    table = lake.view().table(task_table(task))
    number = (table.transaction_version(APP) or 0) if table is not None else 0
    with suppress(NotFoundError):
        return read_labels(lake, task)[0], number
    return SCHEMA.empty_table(), number


def _new_rows(rows: pa.Table, before: pa.Table) -> pa.Table:
    """The labels that are not there, each with the earlier ones of its author on the same sample that it supersedes."""
    new = pl.DataFrame(pl.from_arrow(rows)).unique("label_id", keep="first", maintain_order=True)
    there = pl.DataFrame(pl.from_arrow(before.select(["label_id", *KEY, "author", "kind", "supersedes"])))
    new = new.join(there.select("label_id"), on="label_id", how="anti", maintain_order="left")
    gone = there.select(pl.col("supersedes").explode().alias("label_id")).drop_nulls()
    current = there.join(gone, on="label_id", how="anti").with_columns(_is_class())
    by = [*KEY, "author", "is_class"]
    earlier = current.group_by(by).agg(pl.col("label_id").sort().alias("earlier"))
    joined = new.with_columns(_is_class()).join(earlier, on=by, how="left", maintain_order="left", nulls_equal=True)
    filled = joined.with_columns(pl.col("earlier").fill_null([]).alias("supersedes")).drop("earlier", "is_class")
    return filled.select(SCHEMA.names).to_arrow().cast(SCHEMA)


def _is_class() -> pl.Expr:
    """Classes of the whole sample and shapes in it are two statements: one does not supersede the other."""
    return (pl.col("kind") == "class").alias("is_class")
