"""The rows of a stream's live files, block by block, and single rows by their place. A place is a file and a row in it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.expressions.expression import compile_expression
from pipelines.lake.commit import LiveFile, live_files
from pipelines.lake.lake import Lake
from pipelines.lake.layout import stream_table
from pipelines.lake.table import dataset_of
from pipelines.training.select import expression_columns, rows_that

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
KEY = ("device", "epoch", "seq")
CHIP = ("spec", "chip_index")
BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows of one file: `first` is the number of the first one in it."""

    file: int
    first: int
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Places:
    """Places of rows, with a score each: `file` (n,), `row` (n,), `score` (n,)."""

    file: Int64s
    row: Int64s
    score: npt.NDArray[np.float64]

    def best(self, count: int) -> "Places":
        """Those with the highest scores, the highest first; equal ones by place, so that the result is always the same."""
        order = np.lexsort((self.row, self.file, -self.score))[:count]
        return Places(self.file[order], self.row[order], self.score[order])

    def joined(self, other: "Places") -> "Places":
        """These and the others."""
        pairs = ((self.file, other.file), (self.row, other.row))
        file, row = (np.concatenate(pair) for pair in pairs)
        return Places(file, row, np.concatenate((self.score, other.score)))


NO_PLACES = Places(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


class StreamRows:
    """The rows of a stream at its newest version.

    Args:
        lake: the lake.
        stream: the stream.

    Raises:
        NotFoundError: there is no such stream.
        RefusedError: another tool has switched on what the reader here does not know, such as deletion vectors.
    """

    def __init__(self, lake: Lake, stream: str) -> None:
        table = lake.view().checked_table(stream_table(stream))
        if table is None:
            raise NotFoundError(f"there is no stream {stream!r} in {lake.root}; `catchment streams` lists them")
        self.lake = lake
        self.stream = stream
        self.schema: pa.Schema = dataset_of(table).schema
        self.version: int = table.version()
        self.files: tuple[LiveFile, ...] = live_files(table)

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The columns that name a row."""
        return (*KEY, *(name for name in CHIP if name in self.schema.names))

    def path(self, file: int) -> Path:
        """Where a file lies on this machine."""
        return self.lake.view().file(stream_table(self.stream), self.files[file].path)

    def blocks(self, columns: Sequence[str], file: int | None = None) -> Iterator[RowBlock]:
        """Columns of all rows, or of one file's, in blocks; a column that a file lacks is null there.

        Raises:
            CorruptLakeError: a file cannot be read.
        """
        for number in range(len(self.files)) if file is None else (file,):
            first = 0
            path = self.path(number)
            try:
                with pq.ParquetFile(path) as opened:
                    there = [name for name in columns if name in opened.schema_arrow.names]
                    # Without any column a batch has no rows: the key is always there.
                    for batch in opened.iter_batches(BLOCK_ROWS, columns=there or list(KEY)):
                        yield RowBlock(number, first, self._shaped(pa.table(batch), columns))
                        first += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise CorruptLakeError(f"{path}: cannot be read ({error}); restore it") from error

    def fetch(self, places: Places, columns: Sequence[str]) -> pa.Table:
        """Columns of single rows, in the order of their places.

        Raises:
            CorruptLakeError: a file cannot be read.
        """
        parts: list[pa.Table] = []
        order: list[Int64s] = []
        for file in np.unique(places.file).tolist():
            at = np.flatnonzero(places.file == file)
            at = at[np.argsort(places.row[at], kind="stable")]
            parts.append(self._fetched(file, places.row[at], columns))
            order.append(at)
        if not parts:
            return pa.schema([self.schema.field(name) for name in columns]).empty_table()
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(parts).take(pa.array(back))

    def find(self, samples: Sequence[str]) -> Places:
        """The places of samples, given as `sample_id` gives them or without the stream.

        Raises:
            RefusedError: that is not how a sample is named.
            NotFoundError: one is not in the stream.
        """
        wanted = pl.DataFrame(pl.from_arrow(self.keys_of(samples))).with_row_index("number")
        found = NO_PLACES
        for block in self.blocks(self.key):
            rows = pl.DataFrame(pl.from_arrow(block.rows)).with_row_index("row").with_columns(_texts(self.key[1:]))
            hits = rows.join(wanted.with_columns(_texts(self.key[1:])), on=list(self.key)).sort("row")
            row = hits["row"].to_numpy().astype(np.int64) + block.first
            number = hits["number"].to_numpy().astype(np.float64)
            found = found.joined(Places(np.full(len(row), block.file, np.int64), row, -number))
        missing = sorted(set(range(len(samples))) - {round(-number) for number in found.score.tolist()})
        if missing:
            raise NotFoundError(f"stream {self.stream} has no sample {samples[missing[0]][:200]}")
        return found.best(len(samples))

    def keys_of(self, samples: Sequence[str]) -> pa.Table:
        """The keys in samples' names, as the stream has them.

        Raises:
            RefusedError: that is not how a sample is named.
        """
        keys = [self._split(sample) for sample in samples]
        fields = [pa.field(name, self.schema.field(name).type) for name in self.key]
        columns = [pa.array([key[at] for key in keys], pa.string()) for at in range(len(fields))]
        try:
            return pa.table([column.cast(field.type) for column, field in zip(columns, fields, strict=True)], pa.schema(fields))
        except pa.ArrowInvalid as error:
            raise RefusedError(f"a sample is named {'/'.join(self.key)}, such as car-1/7/42: {error}") from error

    def _split(self, sample: str) -> tuple[str, ...]:
        steps = tuple(sample.removeprefix(f"{self.stream}/").split("/"))
        if len(steps) != len(self.key) or not all(step.isdecimal() for step in steps[1:3]):
            raise RefusedError(f"a sample is named {'/'.join(self.key)}, such as car-1/7/42, not {sample[:80]!r}")
        return steps

    def _fetched(self, file: int, rows: Int64s, columns: Sequence[str]) -> pa.Table:
        path = self.path(file)
        parts, first = [], 0
        try:
            with pq.ParquetFile(path) as opened:
                there = [name for name in columns if name in opened.schema_arrow.names]
                for group in range(opened.num_row_groups):
                    size = opened.metadata.row_group(group).num_rows
                    inside = rows[(rows >= first) & (rows < first + size)] - first
                    if len(inside):
                        whole = self._shaped(opened.read_row_group(group, columns=there or list(KEY)), columns)
                        parts.append(whole.take(pa.array(inside)))
                    first += size
        except (pa.ArrowException, OSError) as error:
            raise CorruptLakeError(f"{path}: cannot be read ({error}); restore it") from error
        return pa.concat_tables(parts)

    def _shaped(self, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
        fields = [self.schema.field(name) for name in columns]
        arrays = [
            rows.column(field.name).cast(field.type)
            if field.name in rows.schema.names
            else pa.chunked_array([pa.nulls(len(rows), field.type)])
            for field in fields
        ]
        return pa.table(arrays, schema=pa.schema([field.with_nullable(True) for field in fields]))


class RowFilter:
    """Which rows of a stream may be picked: those for which an expression is true and whose key is not among `without`.

    Args:
        rows: the stream.
        where: the expression; empty: every row.
        without: keys of rows that are not wanted; None: there are none.

    Raises:
        ExpressionError: the expression is not in the language.
    """

    def __init__(self, rows: StreamRows, where: str = "", without: pl.DataFrame | None = None) -> None:
        self._verdict: pl.Expr | None = None
        self._without = without
        columns: set[str] = set()
        if where.strip():
            compiled = compile_expression(where, expression_columns(rows.schema), allow_tags="tags" in rows.schema.names)
            self._verdict = compiled.to_polars()
            columns |= compiled.columns | ({"tags"} & set(rows.schema.names))
        if without is not None:
            columns |= set(KEY)
        self.columns: tuple[str, ...] = tuple(sorted(columns))

    @property
    def takes_all(self) -> bool:
        """Whether every row may be picked."""
        return not self.columns

    def mask(self, rows: pa.Table) -> Bools:
        """Which of some rows may be picked; they have at least the columns that are named here."""
        kept = np.ones(len(rows), bool)
        if self._verdict is not None:
            kept &= np.asarray(rows_that(self._verdict, rows).to_numpy(zero_copy_only=False), bool)
        if self._without is not None:
            keys = pl.DataFrame(pl.from_arrow(rows.select(list(KEY)))).with_row_index("row")
            gone = keys.join(self._without, on=list(KEY), how="semi")["row"].to_numpy()
            kept[gone] = False
        return kept


def sample_ids(stream: str, rows: pa.Table, key: Sequence[str]) -> list[str]:
    """The names of rows: `stream/device/epoch/seq`, and of a chip its spec and number besides."""
    frame = pl.DataFrame(pl.from_arrow(rows.select(list(key))))
    parts = [pl.lit(stream), *(pl.col(name).cast(pl.String) for name in key)]
    return frame.select(pl.concat_str(parts, separator="/")).to_series().to_list()


def _texts(columns: Sequence[str]) -> list[pl.Expr]:
    return [pl.col(name).cast(pl.String) for name in columns]


def delete_others(folder: Path, wanted: Collection[Path]) -> int:
    """Delete the files of a cache but those that are wanted; how many went.

    Raises:
        OSError: the disk refused.
    """
    others = [path for path in folder.iterdir() if path not in wanted]
    for path in others:
        path.unlink(missing_ok=True)
    return len(others)
