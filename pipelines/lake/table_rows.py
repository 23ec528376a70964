"""The rows of some files of a table, whoever wrote them, with every column and type that the table has today."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from pipelines.lake.lake import Lake
from pipelines.lake.reference import table_path


def read_files(lake: Lake, name: str, table: DeltaTable, paths: Sequence[str]) -> pa.Table:
    """Read files of a table as one; a file without a column has nulls.

    Args:
        lake: the lake.
        name: the table's folder, relative to the root.
        table: the table, for its types.
        paths: the files, below the table's folder.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    files = [table_path(lake, name, path) for path in paths]
    parts = [pq.read_table(path, partitioning=None, page_checksum_verification=True) for path in files]
    # By the table's own types: other tools that rewrote a file may have left word in it to read text as views.
    there = {column for part in parts for column in part.column_names}
    target = pa.schema(
        [pa.field(field.name, field.type) for field in pa.schema(table.schema().to_arrow()) if field.name in there]
    )
    whole = [pa.table([_column(part, field) for field in target], schema=target) for part in parts]
    return pa.concat_tables(whole).combine_chunks()


def _column(part: pa.Table, field: pa.Field) -> Any:
    if field.name in part.column_names:
        return part.column(field.name).cast(field.type)
    return pa.nulls(part.num_rows, field.type)
