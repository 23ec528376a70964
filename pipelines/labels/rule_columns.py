"""What people say, as columns that rules read: `label('defect')` is the column `label:defect:latest` of a pinned version.

A row that nobody has labelled has NULL there. New rows seldom have a label; a retag brings labels to the rows that got one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import msgspec
import polars as pl
import pyarrow as pa

from pipelines.expressions.ir import LABEL
from pipelines.labels.resolve import ResolveRule, resolved_classes
from pipelines.labels.table import KEY, read_labels, task_table
from pipelines.lake.lake import Lake
from pipelines.lake.slide_rows import RowFiller, SlideFiller
from schemas.chip_contract import is_chip_contract, slide_stream
from schemas.contract import Contract


class LabelPin(msgspec.Struct, frozen=True):
    """The Delta version of a task's labels that rules read; None while nobody has labelled."""

    task: str
    version: int | None

    @property
    def words(self) -> str:
        """As it goes into names and notes: `defect@12`."""
        return f"{self.task}@{'none' if self.version is None else self.version}"


def pin_labels(lake: Lake, columns: Iterable[str]) -> tuple[LabelPin, ...]:
    """The newest versions of the labels that rules over these columns read; nothing is read where none does.

    Raises:
        RefusedError: a task may not be called so.
        RetryLaterError: the storage is unavailable.
    """
    found = []
    for task in sorted({task for task, _ in _wanted(columns)}):
        table = lake.view().table(task_table(task))
        found.append(LabelPin(task, None if table is None else table.version()))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Adds the columns of labels to the rows of a stream.

    `read`: the columns that the rules read; `pins`: the versions of the labels; `before`: what fills in other columns first.
    """

    lake: Lake
    stream: str
    read: frozenset[str]
    pins: Sequence[LabelPin]
    before: RowFiller | None = None

    @property
    def columns(self) -> frozenset[str]:
        """What it needs of the rows: their key, where a rule reads labels."""
        keys = frozenset(KEY[1:]) if _wanted(self.read) else frozenset[str]()
        return keys | (self.before.columns if self.before else frozenset())

    def fill(self, rows: pa.Table) -> pa.Table:
        """The rows with a column for each task and rule; NULL where nobody has labelled.

        Raises:
            CorruptLakeError: the labels cannot be read.
        """
        filled = self.before.fill(rows) if self.before else rows
        versions = {pin.task: pin.version for pin in self.pins}
        for task, rule in _wanted(self.read):
            version = versions.get(task)
            column = pa.nulls(len(filled), pa.string())
            if version is not None:
                column = _joined(filled, _classes(self.lake, task, version, rule), self.stream)
            filled = filled.append_column(f"{LABEL}{task}:{rule}", column)
        return filled


def row_filler(
    lake: Lake, contract: Contract, read: frozenset[str], pins: Sequence[LabelPin], before: RowFiller | None = None
) -> RowFiller:
    """What adds to the committed rows of a stream all that rules read and its table lacks: labels, and columns of slides.

    Chips have the labels of their slides.

    Args:
        lake: the lake.
        contract: of the stream.
        read: the columns that the rules read.
        pins: the versions of the labels.
        before: what fills in other columns first.
    """
    is_chips = is_chip_contract(contract)
    labelled = LabelColumns(lake, slide_stream(contract.name) if is_chips else contract.name, read, pins, before)
    if not is_chips:
        return labelled
    return SlideFiller.reading(lake, contract.name, [column.name for column in contract.columns], read, labelled)


def _wanted(columns: Iterable[str]) -> list[tuple[str, ResolveRule]]:
    """Tasks and rules of the columns that hold labels."""
    parts = sorted(name.split(":") for name in columns if name.startswith(LABEL))
    return [(task, cast("ResolveRule", rule)) for _, task, rule in parts]


@lru_cache(maxsize=16)
def _classes(lake: Lake, task: str, version: int, rule: ResolveRule) -> pl.DataFrame:
    """A version never changes, so it is read once in a process."""
    found = pl.DataFrame(pl.from_arrow(resolved_classes(read_labels(lake, task, version)[0], rule)))
    return found.select(*KEY, "value")


def _joined(rows: pa.Table, classes: pl.DataFrame, stream: str) -> pa.ChunkedArray:
    mine = classes.filter(pl.col("stream") == stream).drop("stream")
    keys = pl.DataFrame(pl.from_arrow(rows.select(list(KEY[1:])))).with_columns(pl.col("device").cast(pl.String))
    joined = keys.join(mine, on=list(KEY[1:]), how="left", maintain_order="left")
    return pa.chunked_array([joined["value"].to_arrow().cast(pa.string())])
