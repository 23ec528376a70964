"""The columns of slides on the rows of their chips: joined when they are read, never stored there.

A slide that is tagged again or gets a column changes what its chips show at once, and no chip row is rewritten for it. The
columns are named as in the contract of chips (`schemas.chip_contract`).
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from pipelines.errors import CorruptLakeError, NotFoundError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import stream_table
from pipelines.lake.table import dataset_of
from schemas.chip_contract import SLIDE_PREFIX, SLIDE_TAGS, slide_column, slide_stream
from schemas.contract import RESERVED_COLUMNS

KEY = ("device", "epoch", "seq")
_MARKS = frozenset({"spec", "chip_index"})
_MAX_DEVICES_BY_NAME = 1_000
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class RowFiller(Protocol):
    """The interface that adds columns to rows before they are judged."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns it needs."""
        ...

    def fill(self, rows: pa.Table) -> pa.Table:
        """The rows with what they lacked."""
        ...


@dataclass(frozen=True, slots=True)
class SlideColumns:
    """What rows of chips may show of their slides.

    `stream` is that of the slides, `version` its Delta version, `fields` the columns by the names that chips show them by.
    """

    lake: Lake
    stream: str
    version: int
    fields: tuple[pa.Field, ...]

    @classmethod
    def of(cls, lake: Lake, chips: str, names: Collection[str], version: int | None = None) -> "SlideColumns | None":
        """The columns for a stream of chips; None where the stream is none, or its slides have no table.

        Args:
            lake: the lake.
            chips: name of the stream.
            names: the columns that its table has.
            version: the Delta version of the slides' table; None: the newest.

        Raises:
            NotFoundError: there is no such version.
        """
        stream = slide_stream(chips)
        if not stream or not set(names) >= _MARKS:
            return None
        try:
            table = lake.view().checked_table(stream_table(stream), version)
        except DeltaError as error:
            raise NotFoundError(f"stream {stream} has no version {version}: {str(error)[:200]}") from error
        if table is None:
            return None
        found = [(_shown(field.name), field) for field in dataset_of(table).schema]
        fields = tuple(field.with_name(name) for name, field in found if name and name not in names)
        return cls(lake, stream, table.version(), fields)

    @property
    def names(self) -> frozenset[str]:
        """The names of the columns."""
        return frozenset(field.name for field in self.fields)

    def widened(self, schema: pa.Schema) -> pa.Schema:
        """A schema of chips with these columns."""
        return pa.schema([*schema, *self.fields])

    def named_in(self, texts: Iterable[str]) -> "SlideColumns":
        """Those alone that some texts name, such as expressions; a word that only looks like one costs a column."""
        words = {word for text in texts for word in _WORD.findall(text)}
        return SlideColumns(self.lake, self.stream, self.version, tuple(field for field in self.fields if field.name in words))

    def join(self, rows: pa.Table) -> pa.Table:
        """The rows with these columns, in their order; null where the slide's row is gone.

        Raises:
            CorruptLakeError: the slides' table cannot be read.
        """
        if not self.fields:
            return rows
        keys = pl.DataFrame(pl.from_arrow(rows.select(list(KEY)))).with_columns(pl.col("device").cast(pl.String))
        slides = pl.DataFrame(pl.from_arrow(self._slides(rows)))
        joined = keys.join(slides.unique(list(KEY), keep="first"), on=list(KEY), how="left", maintain_order="left")
        for field in self.fields:
            rows = rows.append_column(field, joined[field.name].to_arrow().cast(field.type))
        return rows

    def scan(self) -> pl.LazyFrame:
        """The key of each slide with these columns, to be joined lazily."""
        table = self.lake.view().table(stream_table(self.stream), self.version)
        assert table is not None
        own = [pl.col(field.name.removeprefix(SLIDE_PREFIX)).alias(field.name) for field in self.fields]
        return pl.scan_pyarrow_dataset(dataset_of(table)).select(*KEY, *own).unique(list(KEY), keep="first")

    def _slides(self, rows: pa.Table) -> pa.Table:
        """The slides that these rows may be of: those of their devices, between their lowest and highest seq."""
        table = self.lake.view().table(stream_table(self.stream), self.version)
        assert table is not None
        own = {field.name: field.name.removeprefix(SLIDE_PREFIX) for field in self.fields}
        found: pa.Table
        try:
            found = dataset_of(table).to_table(columns=[*KEY, *own.values()], filter=_among(rows))
        except (OSError, pa.ArrowInvalid, DeltaError) as error:
            raise CorruptLakeError(f"{table.table_uri}: cannot be read: {error}; restore the missing files") from error
        return found.rename_columns([*KEY, *own])


def _shown(name: str) -> str:
    """The name by which chips show a slide's column; "" for those that they have themselves, and for references."""
    if name == SLIDE_TAGS.removeprefix(SLIDE_PREFIX):
        return SLIDE_TAGS
    return "" if name in RESERVED_COLUMNS else slide_column(name)


def _among(rows: pa.Table) -> pc.Expression | None:
    span = pc.min_max(rows.column("seq"))
    if not span["min"].is_valid:
        return pc.scalar(value=False)
    among = (pc.field("seq") >= span["min"]) & (pc.field("seq") <= span["max"])
    devices = pc.unique(rows.column("device")).cast(pa.string())
    return among & pc.field("device").isin(devices) if len(devices) <= _MAX_DEVICES_BY_NAME else among


@dataclass(frozen=True, slots=True)
class SlideFiller:
    """Adds to rows of chips what rules read of their slides.

    `slides`: what there is; None: the stream is not one of chips. `read`: the columns that the rules read. `before`: what fills
    in other columns first.
    """

    slides: SlideColumns | None
    before: RowFiller | None = None

    @classmethod
    def reading(
        cls, lake: Lake, stream: str, names: Collection[str], read: Iterable[str], before: RowFiller | None = None
    ) -> "SlideFiller":
        """A filler for the rules of a stream.

        Args:
            lake: the lake.
            stream: the stream.
            names: the columns of its contract that its table may have.
            read: the columns that the rules read.
            before: what fills in other columns first.
        """
        wanted = {name for name in read if name.startswith(SLIDE_PREFIX)}
        own = [name for name in names if not name.startswith(SLIDE_PREFIX)]
        slides = SlideColumns.of(lake, stream, own) if wanted else None
        return cls(slides.named_in(wanted) if slides else None, before)

    @property
    def columns(self) -> frozenset[str]:
        """What it needs of the rows: their key, where a slide's column is read."""
        keys = frozenset(KEY) if self.slides else frozenset[str]()
        return keys | (self.before.columns if self.before else frozenset())

    def fill(self, rows: pa.Table) -> pa.Table:
        """The rows with the columns of their slides.

        Raises:
            CorruptLakeError: the slides' table cannot be read.
        """
        filled = self.before.fill(rows) if self.before else rows
        return self.slides.join(filled) if self.slides else filled
