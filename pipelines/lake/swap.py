"""Puts new files of a table in the place of some old ones that hold the same rows, in one commit.

A commit that removes files is accepted by the library although somebody else removed them a moment before. So it is made on
the very version in which all of them were seen to be live, or not at all.
"""

import time
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import ConflictError, RetryLaterError
from pipelines.lake.files import NewFile
from pipelines.lake.lake import Lake
from pipelines.lake.table import HOOKS, open_table, sync_log
from pipelines.lake.upload import upload_files

ATTEMPTS = 50


def live_sizes(table: DeltaTable) -> dict[str, int]:
    """The files of this version, by their path below the table's folder."""
    actions = pa.table(table.get_add_actions(flatten=True))
    return dict(zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True))


def swap_files(
    lake: Lake,
    name: str,
    old: Collection[str],
    new: Sequence[NewFile],
    note: Mapping[str, str],
    *,
    changes_rows: bool = False,
    transaction: tuple[str, int] | None = None,
) -> bool:
    """Remove `old` from a table and add `new`, if all of `old` are still live.

    Args:
        lake: the lake.
        name: the table's folder, relative to the root.
        old: paths below the table's folder.
        new: durable files.
        note: what the commit says of itself.
        changes_rows: whether the rows differ; if not, whoever follows the table need not look.
        transaction: an application transaction to record with it.

    Returns:
        False if one of `old` is no longer live: somebody else has rewritten it.

    Raises:
        ConflictError: others kept winning.
        CorruptLakeError: a new file is not there as it was written.
        RetryLaterError: the storage is away.
    """
    upload_files(lake, new)
    for attempt in range(ATTEMPTS):
        table = open_table(lake, name)
        sizes = {} if table is None else live_sizes(table)
        if table is None or not set(old) <= set(sizes):
            return False
        now_ms = time.time_ns() // 1_000_000
        actions: list[AddAction | RemoveAction] = [
            AddAction(file.path.removeprefix(f"{name}/"), file.bytes, {}, now_ms, data_change=changes_rows, stats=file.stats)
            for file in new
        ]
        actions += [RemoveAction(path, data_change=changes_rows, deletion_timestamp=now_ms, size=sizes[path]) for path in old]
        marks = None if transaction is None else [Transaction(*transaction, now_ms)]
        properties = CommitProperties(custom_metadata=dict(note), max_commit_retries=0, app_transactions=marks)
        try:
            table.create_write_transaction(
                actions, "append", table.schema(), commit_properties=properties, post_commithook_properties=HOOKS
            )
        except CommitFailedError:
            time.sleep(0.01 * attempt)
            continue
        except (DeltaError, OSError) as error:
            raise RetryLaterError(f"{name}: could not be rewritten: {error}; is the storage there?") from error
        sync_log(lake, name, table.version())
        return True
    raise ConflictError(f"{name}: runs committed {ATTEMPTS} times meanwhile; try again when less arrives")
