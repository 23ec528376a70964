"""A Parquet file with some of its columns replaced, the slow way: every column is read and written, a row group at a time.

For files whose bytes `splice_columns` cannot take over: those that another tool wrote, with other names inside a list.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import atomic_file
from pipelines.errors import CorruptLakeError


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
            _write(file, columns, out)
            return out.tell()
    except pa.ArrowException as error:
        raise CorruptLakeError(f"{source}: cannot be read ({error}); restore it") from error


def _write(file: pq.ParquetFile, columns: pa.Table, out: object) -> None:
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
