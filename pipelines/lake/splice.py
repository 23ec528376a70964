"""A Parquet file with some of its columns replaced: the other columns' bytes are copied as they lie, never decoded.

Re-tagging changes two columns of a narrow row out of twenty or thirty. Reading and encoding the others again would cost ten
times the work; their column chunks are good as they are, and only the footer must tell where they lie now.

A Parquet file with some of its columns replaced, the slow way: every column is read and written, a row group at a time.

For files whose bytes `splice_columns` cannot take over: those that another tool wrote, with other names inside a list.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import atomic_file
from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.thrift_compact import Struct, ThriftError, decode_struct, encode_struct, field, put, without

_MAGIC = b"PAR1"
# parquet.thrift: FileMetaData.row_groups; RowGroup.columns, total_byte_size, file_offset, total_compressed_size;
# ColumnChunk.file_offset, meta_data and its indexes; ColumnMetaData.path_in_schema, sizes, page offsets and bloom filter.
_ROW_GROUPS, _COLUMNS, _GROUP_BYTES, _GROUP_OFFSET, _GROUP_COMPRESSED = 4, 1, 2, 5, 6
_CHUNK_OFFSET, _META, _CHUNK_INDEXES = 2, 3, frozenset({4, 5, 6, 7})
_PATH, _PLAIN_BYTES, _BYTES, _DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _BLOOM = 3, 6, 7, 9, 10, 11, frozenset({14, 15})
_ENCRYPTED = frozenset({8, 9})


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One column of one row group: its entry in the footer, and where its bytes lie in which file."""

    entry: Struct
    start: int
    length: int
    is_new: bool


def splice_columns(source: Path, target: Path, columns: pa.Table) -> int:
    """Write `target`: the rows of `source` with the columns of `columns` in place of its own. Durable when it returns.

    Args:
        source: a Parquet file as `write_table_file` writes it.
        target: where the new file shall lie.
        columns: the new columns, of the types and the row count that the source has.

    Returns:
        The size of the new file in bytes.

    Raises:
        RefusedError: the source is written in a way whose bytes cannot be taken over; write it again instead.
        CorruptLakeError: the source is not a Parquet file, or the result would not be one.
        OSError: the disk refused.
    """
    try:
        with source.open("rb") as old:
            footer = _read_footer(source, old.fileno(), source.stat().st_size)
            rows = [field(group, 3) for group in field(footer, _ROW_GROUPS).items]
            fresh = _encoded(columns, rows)
            replacement = _read_tail(source, fresh)
            with atomic_file(target, mode=0o666) as out:
                _write(old.fileno(), fresh, out, (footer, replacement), set(columns.column_names))
                out.flush()
                _check(Path(out.name), sum(rows), len(rows))
                return out.tell()
    except ThriftError as error:
        raise CorruptLakeError(f"{source}: its footer cannot be read ({error}); restore the file") from error


def _read_footer(path: Path, descriptor: int, size: int) -> Struct:
    tail = os.pread(descriptor, 8, max(0, size - 8))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length + 12 > size:
        raise CorruptLakeError(f"{path}: not a Parquet file; restore it")
    return decode_struct(os.pread(descriptor, length, size - 8 - length))


def _read_tail(path: Path, body: pa.Buffer) -> Struct:
    view = memoryview(body)
    length = int.from_bytes(view[-8:-4], "little")
    if bytes(view[-4:]) != _MAGIC:
        raise CorruptLakeError(f"{path}: the new columns were not written as Parquet")
    return decode_struct(bytes(view[-8 - length : -8]))


def _encoded(columns: pa.Table, group_rows: list[int]) -> pa.Buffer:
    """The new columns as a Parquet file of the same row groups, in memory."""
    if columns.num_rows != sum(group_rows):
        raise RefusedError(f"{columns.num_rows} new values for {sum(group_rows)} rows")
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "write_statistics": False}
    with pq.ParquetWriter(sink, columns.schema, write_page_checksum=True, **options) as writer:
        at = 0
        for rows in group_rows:
            writer.write_table(columns.slice(at, rows), row_group_size=max(1, rows))
            at += rows
    return sink.getvalue()


def _write(old: int, fresh: pa.Buffer, out: Any, footers: tuple[Struct, Struct], names: Collection[str]) -> None:
    footer, replacement = footers
    groups, new_groups = field(footer, _ROW_GROUPS).items, field(replacement, _ROW_GROUPS).items
    if len(groups) != len(new_groups):
        raise RefusedError("the new columns have other row groups")
    out.write(_MAGIC)
    for group, new_group in zip(groups, new_groups, strict=True):
        chunks = _chosen(group, new_group, names)
        begin = out.tell()
        _copy(old, fresh, out, chunks)
        at = begin
        for chunk in chunks:
            _move(chunk, at)
            at += chunk.length
        field(group, _COLUMNS).items = [without(chunk.entry, _CHUNK_INDEXES) for chunk in chunks]
        metas = [field(chunk.entry, _META) for chunk in chunks]
        put(group, _GROUP_BYTES, sum(field(meta, _PLAIN_BYTES) for meta in metas))
        put(group, _GROUP_COMPRESSED, at - begin)
        put(group, _GROUP_OFFSET, begin)
    body = encode_struct(footer)
    out.write(body + len(body).to_bytes(4, "little") + _MAGIC)
    out.flush()


def _chosen(group: Struct, new_group: Struct, names: Collection[str]) -> list[_Chunk]:
    """The columns of a row group in their order, those of `names` from the new file."""
    fresh = {_path(entry): entry for entry in field(new_group, _COLUMNS).items}
    chunks: list[_Chunk] = []
    taken = 0
    for entry in field(group, _COLUMNS).items:
        is_new = _path(entry)[0] in names
        if is_new and _path(entry) not in fresh:
            raise RefusedError(f"column {'.'.join(_path(entry))} is laid out in another way")
        taken += is_new
        chosen = fresh[_path(entry)] if is_new else entry
        if any(each.id in _ENCRYPTED for each in chosen) or field(chosen, 1) is not None:
            raise RefusedError("encrypted columns and columns in other files cannot be taken over")
        meta = field(chosen, _META)
        start = field(meta, _DICTIONARY_PAGE) or field(meta, _DATA_PAGE)
        chunks.append(_Chunk(chosen, start, field(meta, _BYTES), is_new))
    if taken != len(fresh):
        raise RefusedError("the file lacks a column that is to be replaced")
    return chunks


def _path(entry: Struct) -> tuple[str, ...]:
    return tuple(step.decode() for step in field(field(entry, _META), _PATH).items)


def _copy(old: int, fresh: pa.Buffer, out: Any, chunks: list[_Chunk]) -> None:
    """Neighbours are copied in one piece, inside the kernel."""
    out.flush()
    at = 0
    while at < len(chunks):
        chunk = chunks[at]
        end, length = at + 1, chunk.length
        while end < len(chunks) and chunks[end].is_new == chunk.is_new and chunks[end].start == chunk.start + length:
            length += chunks[end].length
            end += 1
        if chunk.is_new:
            out.write(memoryview(fresh)[chunk.start : chunk.start + length])
            out.flush()
        else:
            _copy_range(old, out, chunk.start, length)
        at = end


def _copy_range(old: int, out: Any, start: int, length: int) -> None:
    position = out.tell()
    while length:
        done = os.copy_file_range(old, out.fileno(), length, start, position)
        if done == 0:
            raise CorruptLakeError("a column's bytes end before its footer says; restore the file")
        start, position, length = start + done, position + done, length - done
    out.seek(position)


def _move(chunk: _Chunk, at: int) -> None:
    meta = field(chunk.entry, _META)
    shift = at - chunk.start
    for number in (_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE):
        if (before := field(meta, number)) is not None:
            put(meta, number, before + shift)
    if field(chunk.entry, _CHUNK_OFFSET):
        put(chunk.entry, _CHUNK_OFFSET, at)
    put(chunk.entry, _META, without(meta, _BLOOM))


def _check(path: Path, rows: int, groups: int) -> None:
    """Another reader than the writer must find the file sound before anything refers to it."""
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise CorruptLakeError(f"{path}: the new file cannot be read ({error})") from error
    if (metadata.num_rows, metadata.num_row_groups) != (rows, groups):
        raise CorruptLakeError(f"{path}: the new file has {metadata.num_rows} rows where {rows} were meant")


def rewrite_columns(source: Path, target: Path, columns: pa.Table) -> int:
    """Write `target`: the rows of `source` with the columns of `columns` in place of its own. Durable when it returns.

    Returns:
        The size of the new file in bytes.

    Raises:
        CorruptLakeError: the source cannot be read.
        OSError: the disk refused.
    """
    try:
        with pq.ParquetFile(source) as file, atomic_file(target, mode=0o666) as out:
            _write_groups(file, columns, out)
            return out.tell()
    except pa.ArrowException as error:
        raise CorruptLakeError(f"{source}: cannot be read ({error}); restore it") from error


def _write_groups(file: pq.ParquetFile, columns: pa.Table, out: object) -> None:
    schema = file.schema_arrow
    for name in columns.column_names:
        schema = schema.set(schema.get_field_index(name), pa.field(name, columns.schema.field(name).type))
    plain = pa.schema([pa.field(each.name, _plain(each.type)) for each in schema])
    # Nobody says here which columns are private, so no column has bounds.
    options = {"compression": "zstd", "compression_level": 1, "write_page_checksum": True, "write_statistics": False}
    with pq.ParquetWriter(out, plain, **options) as writer:
        at = 0
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            for name in columns.column_names:
                rows = rows.set_column(rows.schema.get_field_index(name), name, columns.column(name).slice(at, rows.num_rows))
            writer.write_table(rows.cast(plain), row_group_size=max(1, rows.num_rows))
            at += rows.num_rows


def _plain(type_: pa.DataType) -> pa.DataType:
    """Lists of words are coded while they are made; in the file they are lists of text."""
    if pa.types.is_list(type_) and pa.types.is_dictionary(type_.value_type):
        return pa.list_(type_.value_type.value_type)
    return type_
