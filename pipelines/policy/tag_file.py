"""One narrow file with new tags: reads the columns that the rules read, writes the two that tell the tags."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.arrow import ARROW_TYPES, arrow_type
from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.expressions.expression import ROW_COLUMNS
from pipelines.lake.splice import rewrite_columns, splice_columns
from pipelines.policy.engine import Judge, lists_of
from schemas.contract import Contract

BLOCK_ROWS = 1024 * 1024
TAG_COLUMNS = ("tags", "tag_rules")


class FileTagger(Protocol):
    """The interface that judges the rows of a file."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns it wants, where the file has them."""
        ...

    def tag(self, rows: pa.Table) -> pa.Table:
        """The columns tags and tag_rules for these rows."""
        ...


class Filler(Protocol):
    """The interface that computes columns that rows lack."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns it wants."""
        ...

    def fill(self, rows: pa.Table) -> pa.Table:
        """The rows with what they lacked."""
        ...


@dataclass(frozen=True, slots=True)
class RuleTagger:
    """Rules over the contract's columns; a column that a file does not have yet is null, or what `fill` finds."""

    tagger: Judge
    fill: "Filler | None" = None

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the rules read, and those that filling in needs."""
        return self.tagger.columns | (self.fill.columns if self.fill else frozenset())

    def tag(self, rows: pa.Table) -> pa.Table:
        """The tag columns, as codes into the few words there are: no string is copied for each row."""
        if not self.tagger.rules:
            empty = pa.array([[]] * rows.num_rows, pa.list_(pa.string()))
            return pa.table([empty, empty], names=list(TAG_COLUMNS))
        rows = self.fill.fill(rows) if self.fill else rows
        hits = self.tagger.verdicts(completed(rows, self.tagger.contract))
        return pa.table(list(lists_of(self.tagger.rules, hits, rows.num_rows)), names=list(TAG_COLUMNS))


def completed(rows: pa.Table, contract: Contract) -> pa.Table:
    """The rows with a null column for each one that rules may read and the rows lack."""
    for name, type_ in readable(contract).items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, type_))
    return rows


def readable(contract: Contract) -> dict[str, pa.DataType]:
    """The columns that rules may read, with their types in the lake."""
    own = {column.name: arrow_type(column) for column in contract.columns}
    return own | {name: ARROW_TYPES[type_] for name, type_ in ROW_COLUMNS.items()}


def retag_file(source: Path, target: Path, tagger: FileTagger) -> int:
    """Write `target`: the rows of `source` with new tags; the size in bytes. Memory does not depend on the file's size.

    Raises:
        CorruptLakeError: the source cannot be read.
        RefusedError: the source has no columns for tags.
    """
    try:
        with pq.ParquetFile(source) as file:
            _check_tag_types(source, file.schema_arrow)
            tags = [tagger.tag(block) for block in _blocks(file, tagger.columns)]
            empty = file.schema_arrow.empty_table().select(list(TAG_COLUMNS))
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptLakeError(f"{source}: cannot be read ({error}); restore it") from error
    columns = pa.concat_tables(tags).unify_dictionaries() if tags else empty
    try:
        return splice_columns(source, target, columns)
    except RefusedError:  # another tool wrote it: slower, and the same rows
        return rewrite_columns(source, target, columns)


def _blocks(file: Any, wanted: frozenset[str]) -> Iterator[pa.Table]:
    """The wanted columns, some row groups at a time."""
    names = [name for name in file.schema_arrow.names if name in wanted]
    groups: list[int] = []
    rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows >= BLOCK_ROWS or group == file.num_row_groups - 1:
            yield _read(file, groups, names, rows)
            groups, rows = [], 0


def _read(file: Any, groups: list[int], names: list[str], rows: int) -> pa.Table:
    if not names:  # Arrow forgets the row count of a table without columns
        return pa.table({"": pa.nulls(rows)})
    found: pa.Table = file.read_row_groups(groups, columns=names, use_threads=False)
    return found


def _check_tag_types(source: Path, schema: pa.Schema) -> None:
    wanted = pa.list_(pa.string())
    if any(name not in schema.names or schema.field(name).type != wanted for name in TAG_COLUMNS):
        raise RefusedError(f"{source}: has no columns {' and '.join(TAG_COLUMNS)} of type {wanted}")
