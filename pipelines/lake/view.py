"""The rows and payloads of a lake as people and programs read them: commands, notebooks, training sets, exports, re-tagging.

Every such reader opens tables, their files and payloads here, so that there is one place where rules of access can stand.
There are none yet: all is passed through. Code that keeps the lake itself (runs, maintenance, roll-ups) opens tables without
a view, in the few modules that a test names.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipelines.lake.commit import APP, committed_run
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, STREAMS, stream_table
from pipelines.lake.ledger_files import read_ledger
from pipelines.lake.payload import read_payload
from pipelines.lake.payload_batch import PayloadRefs, read_payloads
from pipelines.lake.reference import check_table_files, table_path
from pipelines.lake.table import open_table

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class View:
    """What one reader may see of a lake.

    Args:
        lake: the lake.
    """

    lake: Lake

    def table(self, name: str, version: int | None = None) -> DeltaTable | None:
        """A table, as it is now or as it was at a version; None if there is none.

        Raises:
            DeltaError: there is no such version.
            CorruptLakeError: its log cannot be read.
            RetryLaterError: the storage is unavailable.
        """
        table = open_table(self.lake, name)
        if table is not None and version is not None:
            table.load_as_version(version)
        return table

    def checked_table(self, name: str, version: int | None = None) -> DeltaTable | None:
        """As `table`, for libraries that open the table's files themselves.

        Raises:
            BadReferenceError: a file of the table is a link.
        """
        table = self.table(name, version)
        if table is not None:
            check_table_files(self.lake, name, table)
        return table

    def file(self, table: str, path: object) -> Path:
        """A data file of a table, brought here first from a bucket.

        Args:
            table: the table's folder, relative to the lake root.
            path: path of the file as the table's log says it.

        Raises:
            BadReferenceError: the path leads out of the lake or through a link, or it is not a plain file.
            RetryLaterError: the storage is unavailable.
        """
        return table_path(self.lake, table, path)

    def payload(self, shard: str, offset: int, length: int, row: int, of: str = "") -> bytes:
        """The payload of one sample; arguments and errors are those of `read_payload`."""
        return read_payload(self.lake, shard, offset, length, row, of)

    def payloads(self, refs: PayloadRefs) -> pa.Array:
        """The payloads of many samples; arguments and errors are those of `read_payloads`."""
        return read_payloads(self.lake, refs)


@dataclass(frozen=True, slots=True)
class Books:
    """The books per stream, and whether all of them balance."""

    rows: Rows
    is_balanced: bool


def books(lake: Lake) -> Books:
    """The books per stream after the last committed run."""
    found = read_ledger(lake, committed_run(lake, COMMITS))
    rows = [
        {"stream": stream or "(none)", **msgspec.to_builtins(counts), "balanced": counts.is_balanced}
        for stream, counts in found.books_by_stream().items()
    ]
    return Books(rows, not found.unbalanced())


def streams(lake: Lake) -> Rows:
    """The stream tables and their size."""
    rows: Rows = []
    for name in lake.folders(STREAMS):
        table = lake.view().table(stream_table(name))
        if table is None:
            continue
        actions = pa.table(table.get_add_actions(flatten=True))
        rows.append(
            {
                "stream": name,
                "rows": pc.sum(actions.column("num_records")).as_py() or 0,
                "files": actions.num_rows,
                "bytes": pc.sum(actions.column("size_bytes")).as_py() or 0,
                "columns": len(table.schema().fields),
                "last_run": table.transaction_version(APP) or 0,
                "delta_version": table.version(),
            }
        )
    return rows
