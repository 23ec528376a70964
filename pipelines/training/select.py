"""Pick the rows of a training set out of stream tables pinned to one Delta version each."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipelines.errors import CorruptLakeError, NotFoundError
from pipelines.lake.lake import Lake
from pipelines.lake.reference import check_table_files
from pipelines.lake.slide_rows import SlideColumns
from pipelines.lake.table import dataset_of, files_of
from pipelines.training.manifest import Source
from schemas.contract import ColumnType

KEY = ("stream", "device", "epoch", "seq")
_TYPES: tuple[tuple[pa.DataType, ColumnType], ...] = (
    (pa.string(), ColumnType.STRING),
    (pa.large_string(), ColumnType.STRING),
    (pa.string_view(), ColumnType.STRING),
    (pa.bool_(), ColumnType.BOOL),
    (pa.int32(), ColumnType.INT32),
    (pa.int64(), ColumnType.INT64),
    (pa.float32(), ColumnType.FLOAT32),
    (pa.float64(), ColumnType.FLOAT64),
    (pa.binary(), ColumnType.BINARY),
)


class SelectExpression(Protocol):
    """A compiled rule, as `pipelines.expressions.expression` gives it."""

    def to_polars(self) -> pl.Expr:
        """A boolean column expression."""
        ...


class Compiler(Protocol):
    """Turns the text of `--where` into an expression over these columns."""

    def __call__(self, text: str, columns: Mapping[str, ColumnType]) -> SelectExpression:
        """Compile, or raise ExpressionError."""
        ...


def policy_compiler(text: str, columns: Mapping[str, ColumnType]) -> SelectExpression:
    """The expression language of the policies, tags included."""
    from pipelines.expressions.expression import compile_expression  # noqa: PLC0415 - sqlglot only where there is an expression

    compiled: SelectExpression = compile_expression(text, columns, allow_tags=True)
    return compiled


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected narrow rows, sorted by key, with a `stream` column, and where they came from."""

    rows: pa.Table
    sources: tuple[Source, ...]


def select_rows(
    lake: Lake,
    streams: tuple[str, ...],
    where: str | Mapping[str, str],
    versions: Mapping[str, int] | None = None,
    compiler: Compiler = policy_compiler,
    names: Collection[str] = (),
) -> Selection:
    """Read the streams, keep the rows for which `where` is true, sort them by key.

    Args:
        lake: the lake.
        streams: tables under `streams/`, chip tables included.
        where: an expression over columns and tags, for all streams or for each; empty keeps all rows.
        versions: the Delta version to read of a stream; the newest where absent.
        compiler: makes an expression of the text.
        names: columns of slides that rows of chips are to have, besides those that `where` reads.

    Raises:
        NotFoundError: no such stream or version.
        ExpressionError: the expression is not in the language.
        CorruptLakeError: a table cannot be read.
    """
    parts: list[pa.Table] = []
    sources: list[Source] = []
    for stream in streams:
        table = _open_table(lake, stream, (versions or {}).get(stream))
        check_table_files(lake, f"streams/{stream}", table)
        condition = where if isinstance(where, str) else where.get(stream, "")
        slides = slides_named(lake, stream, dataset_of(table).schema, (condition, *names))
        rows = _filtered(table, condition, compiler, slides)
        parts.append(rows.append_column("stream", pa.array([stream], pa.string()).take(pa.array([0] * len(rows), pa.int8()))))
        sources.append(Source(stream, table.version(), len(rows)))
        if slides is not None:
            sources.append(Source(slides.stream, slides.version, len(rows)))
    merged = pa.concat_tables(parts, promote_options="permissive")
    order = [name for name in (*KEY, "spec", "chip_index") if name in merged.schema.names]
    return Selection(merged.sort_by([(name, "ascending") for name in order]), tuple(sources))


def expression_columns(schema: pa.Schema) -> dict[str, ColumnType]:
    """The columns an expression may name, with types: plain ones, lists, vectors, fields of structs as `column.field`."""
    fields = [field for outer in schema for field in (outer, *_struct_fields(outer))]
    known = {field.name: _kind_of(field.type) for field in fields}
    return {name: kind for name, kind in known.items() if kind is not None}


def _struct_fields(outer: pa.Field) -> list[pa.Field]:
    if _is_list(outer.type) and pa.types.is_struct(outer.type.value_type):
        return [field.with_name(f"{outer.name}[].{field.name}") for field in outer.type.value_type]
    return [field.with_name(f"{outer.name}.{field.name}") for field in outer.type] if pa.types.is_struct(outer.type) else []


def _kind_of(of: pa.DataType) -> ColumnType | None:
    """What a column of this Arrow type is to the language; None where it has no word for it."""
    if pa.types.is_timestamp(of):
        return ColumnType.TIMESTAMP
    if pa.types.is_struct(of):
        return ColumnType.STRUCT
    plain = next((kind for arrow, kind in _TYPES if of == arrow), None)
    if plain is not None or not _is_list(of):
        return plain
    item = _kind_of(of.value_type)
    shape = "vector" if pa.types.is_fixed_size_list(of) else "list"
    return next((kind for kind in ColumnType if kind == f"{shape}<{item}>"), None)


def _is_list(of: pa.DataType) -> bool:
    return bool(pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of))


def _open_table(lake: Lake, stream: str, version: int | None) -> DeltaTable:
    folder = lake.root / "streams" / stream
    try:
        table = lake.view().table(f"streams/{stream}", version)
    except DeltaError as error:
        raise NotFoundError(f"{folder}: cannot be opened at version {version}: {error}") from error
    if table is None:
        raise NotFoundError(f"{folder}: no such stream in the lake")
    return table


def slides_named(
    lake: Lake, stream: str, schema: pa.Schema, texts: Iterable[str], version: int | None = None
) -> SlideColumns | None:
    """What some texts name of the slides that a stream's chips were cut of; None where they name nothing.

    Args:
        lake: the lake.
        stream: the stream.
        schema: of its table.
        texts: expressions and names of columns.
        version: the Delta version of the slides' table; None: the newest.

    Raises:
        NotFoundError: there is no such version.
    """
    slides = SlideColumns.of(lake, stream, schema.names, version)
    named = slides.named_in(texts) if slides is not None else None
    return named if named is not None and named.fields else None


def _with_slides(batch: pa.RecordBatch, slides: SlideColumns | None) -> pa.RecordBatch:
    if slides is None:
        return batch
    rows = slides.join(pa.table(batch)).combine_chunks()
    return rows.to_batches()[0] if batch.num_rows else pa.RecordBatch.from_pylist([], schema=rows.schema)


def _filtered(table: DeltaTable, where: str, compiler: Compiler, slides: SlideColumns | None) -> pa.Table:
    try:
        dataset: Any = table.to_pyarrow_dataset(filesystem=files_of(table))
        schema: pa.Schema = slides.widened(dataset.schema) if slides is not None else dataset.schema
        verdict = compiler(where, expression_columns(schema)).to_polars() if where.strip() else None
        kept = [_keep(_with_slides(batch, slides), verdict) for batch in dataset.to_batches()]
    except (OSError, pa.ArrowInvalid, DeltaError) as error:
        raise CorruptLakeError(f"{table.table_uri}: cannot be read: {error}; restore the missing files") from error
    return pa.Table.from_batches([batch for batch in kept if batch.num_rows], schema)


@dataclass(frozen=True, slots=True)
class PinnedStream:
    """A stream at one Delta version, and the schema of its rows; of chips also the columns of their slides that are named."""

    version: int
    schema: pa.Schema
    slides: SlideColumns | None = None


def pin_stream(
    lake: Lake, stream: str, version: int | None, where: str, texts: Iterable[str] = (), slide_version: int | None = None
) -> PinnedStream:
    """Find the version of a stream that is to be read, and check that its files and a condition on its columns fit.

    Args:
        lake: the lake.
        stream: the stream.
        version: its Delta version; None: the newest.
        where: a condition on its columns.
        texts: what else may name columns of slides.
        slide_version: the Delta version of the slides' table; None: the newest.

    Raises:
        NotFoundError: no such stream or version.
        ExpressionError: the condition is not in the language.
        BadReferenceError: a file of the table is a link.
    """
    table = _open_table(lake, stream, version)
    check_table_files(lake, f"streams/{stream}", table)
    schema: pa.Schema = dataset_of(table).schema
    slides = slides_named(lake, stream, schema, (where, *texts), slide_version)
    schema = slides.widened(schema) if slides is not None else schema
    if where.strip():
        policy_compiler(where, expression_columns(schema))
    return PinnedStream(table.version(), schema, slides)


def stream_fragments(lake: Lake, stream: str, version: int) -> tuple[pa.Schema, dict[str, Any]]:
    """The files of a stream at a version as Arrow fragments, by path, and the schema of its rows.

    Raises:
        NotFoundError: no such stream or version.
        CorruptLakeError: the table cannot be read.
    """
    table = _open_table(lake, stream, version)
    check_table_files(lake, f"streams/{stream}", table)
    try:
        dataset = dataset_of(table)
        fragments = {str(fragment.path): fragment for fragment in dataset.get_fragments()}
    except (OSError, pa.ArrowInvalid, DeltaError) as error:
        raise CorruptLakeError(f"{table.table_uri}: cannot be read: {error}; restore the missing files") from error
    return dataset.schema, dict(sorted(fragments.items()))


# Left to itself Arrow buffers whole files and reads sixteen batches of four files ahead.
_ONE_BY_ONE: Mapping[str, Any] = {
    "batch_readahead": 2,
    "fragment_readahead": 1,
    "fragment_scan_options": ds.ParquetFragmentScanOptions(pre_buffer=False),
}


@dataclass(frozen=True, slots=True)
class StreamBatches:
    """Some columns of a stream, to be read once in batches; `version` is the Delta version they are of.

    `schema` is that of the batches, `full_schema` that of the table.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    version: int
    full_schema: pa.Schema


def stream_batches(
    lake: Lake,
    stream: str,
    columns: Sequence[str],
    *,
    version: int | None = None,
    where: str = "",
    among: Any = None,
    compiler: Compiler = policy_compiler,
    slide_version: int | None = None,
) -> StreamBatches:
    """Read some columns of a stream in batches, without holding more than a few.

    Args:
        lake: the lake.
        stream: its table under `streams/`.
        columns: what to read; those that are not there are left out, and a person who needs them says so.
        version: the Delta version; the newest if None.
        where: an expression over all its columns and tags; empty keeps all rows.
        among: an Arrow filter that files and row groups may be skipped by; None: all.
        compiler: makes an expression of the text.
        slide_version: of the slides' table, where a stream of chips is read; None: the newest.

    Raises:
        NotFoundError: no such stream or version.
        ExpressionError: the expression is not in the language.
        CorruptLakeError: the table cannot be read.
    """
    table = _open_table(lake, stream, version)
    check_table_files(lake, f"streams/{stream}", table)
    dataset: Any = table.to_pyarrow_dataset(filesystem=files_of(table))
    slides = slides_named(lake, stream, dataset.schema, (where, *columns), slide_version)
    schema = slides.widened(dataset.schema) if slides is not None else dataset.schema
    verdict = compiler(where, expression_columns(schema)).to_polars() if where.strip() else None
    wanted = [name for name in dict.fromkeys(columns) if name in schema.names]
    read = wanted if verdict is None and slides is None else dataset.schema.names

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for batch in dataset.to_batches(columns=read, filter=among, **_ONE_BY_ONE):
                yield _keep(_with_slides(batch, slides), verdict).select(wanted)
        except (OSError, pa.ArrowInvalid, DeltaError) as error:
            raise CorruptLakeError(f"{table.table_uri}: cannot be read: {error}; restore the missing files") from error

    return StreamBatches(pa.schema([schema.field(name) for name in wanted]), batches(), table.version(), schema)


def filter_rows(rows: pa.Table, where: str, compiler: Compiler = policy_compiler) -> pa.Table:
    """The rows of a table for which an expression is true.

    Raises:
        ExpressionError: it is not in the language.
    """
    if not where.strip():
        return rows
    verdict = compiler(where, expression_columns(rows.schema)).to_polars()
    return rows.filter(rows_that(verdict, rows))


def rows_that(verdict: pl.Expr, batch: pa.RecordBatch | pa.Table) -> pa.BooleanArray:
    """For which rows a compiled expression is true."""
    frame = pl.DataFrame(pl.from_arrow(batch))
    return frame.select(verdict.fill_null(value=False).alias("keep")).to_series().to_arrow()


def _keep(batch: pa.RecordBatch, verdict: pl.Expr | None) -> pa.RecordBatch:
    return batch if verdict is None or not batch.num_rows else batch.filter(rows_that(verdict, batch))
