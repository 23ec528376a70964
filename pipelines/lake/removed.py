"""Which files were removed from a table and when: one small Parquet file per table, for the vacuum alone.

Readers of older versions keep replaced files for a time. The table's own log forgets them with its next checkpoint here, so
that a run does not pay for what was replaced.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import removed_path

REMOVED_SCHEMA = pa.schema([pa.field("path", pa.string()), pa.field("removed_ms", pa.int64())])


def read_removed(lake: Lake, table: str) -> pa.Table:
    """The removed files that are remembered, by their path below the table's folder.

    Raises:
        CorruptLakeError: the file is not what was written.
        RetryLaterError: the storage is away.
    """
    path = removed_path(lake.root, table)
    try:
        return pq.read_table(pa.BufferReader(lake.read(path)), schema=REMOVED_SCHEMA)
    except FileNotFoundError:
        return REMOVED_SCHEMA.empty_table()
    except (OSError, pa.ArrowException) as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error}); delete it, and replaced files go at once") from error


def remember_removed(lake: Lake, table: str, removed: pa.Table, oldest_ms: int) -> None:
    """Add removed files to what is remembered, and forget those removed before `oldest_ms`. Durable when it returns.

    Raises:
        CorruptLakeError: the file is not what was written.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    before = read_removed(lake, table)
    whole = pa.concat_tables([before, removed]).group_by("path").aggregate([("removed_ms", "max")])
    whole = pa.table([whole.column("path"), whole.column("removed_ms_max")], schema=REMOVED_SCHEMA)
    whole = whole.filter(pc.greater(whole.column("removed_ms"), oldest_ms)).sort_by("path")
    path = removed_path(lake.root, table)
    if whole.equals(before):
        return
    if not whole.num_rows:
        lake.delete(path)
        return
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink, compression="zstd", write_page_checksum=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    lake.put(path, bytes(sink.getvalue().to_pybytes()))
    lake.evict([path])


def removed_since(lake: Lake, table: str, oldest_ms: int) -> set[str]:
    """The files removed after `oldest_ms`, as far as the table's log no longer tells of them.

    Raises:
        CorruptLakeError: the file is not what was written.
        RetryLaterError: the storage is away.
    """
    known = read_removed(lake, table)
    return set(known.column("path").filter(pc.greater(known.column("removed_ms"), oldest_ms)).to_pylist())
