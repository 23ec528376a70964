"""What the lake says of itself, as rows for a table or JSON. Reads the committed state only.

Stands alone because two commands read it, and neither owns it.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.commit import APP, committed_run
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, STREAMS, stream_table
from pipelines.lake.ledger_files import read_ledger
from pipelines.lake.table import open_table

Rows = list[dict[str, Any]]


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
        table = open_table(lake, stream_table(name))
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
