"""The commit: files of one run enter a table exactly once; new files take the place of old ones in one commit.

Delta's application transactions record `("ingest", n)`, but nothing enforces their order, and a second commit with the same
number from a fresh view is accepted. So: open fresh, look at the recorded number, commit on that same view. Two committers
then meet in the log, one wins, the other looks again and finds the work done.

A commit that removes files is accepted by the library although somebody else removed them a moment before. So it is made on
the very version in which all of them were seen to be live, or not at all.

`replace_files` removes every file of one version and adds the new ones: a reader sees all of the old or all of the new.
Application transactions stay as they are, so an ingest run goes on as if nothing had happened.
"""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import ConflictError, CorruptLakeError, RetryLaterError
from pipelines.lake.files import NewFile, upload_files
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, RUNS
from pipelines.lake.table import HOOKS, TableStates, ensure_table, open_table, sync_log

APP = "ingest"
COMMIT_ATTEMPTS = 20
SWAP_ATTEMPTS = 50


def committed_run(lake: Lake, name: str) -> int:
    """The last run that entered this table; 0 for none."""
    table = open_table(lake, name)
    return (table.transaction_version(APP) or 0) if table is not None else 0


def check_of_one_time(lake: Lake, run: int, names: Sequence[str]) -> None:
    """A table can be one run ahead of `commits`, by a crash between the two; more, and they are not of the same lake.

    Going on would give out run numbers that such tables have seen: their rows would be taken for committed, and dropped.

    Args:
        lake: the lake.
        run: the last run in `commits`.
        names: the tables that runs commit to.

    Raises:
        CorruptLakeError: a table has seen later runs.
    """
    states = TableStates(lake, APP)
    states.look_up(names)
    for name in names:
        try:
            state = states.get(name)
        except CorruptLakeError:
            continue  # told by the first run that needs this table; the others need not wait for it
        seen = 0 if state is None else state.transactions[APP]
        if seen > run + 1:
            raise CorruptLakeError(
                f"{lake.root}: {COMMITS}/ ends at run {run}, and {name}/ holds run {seen} already: one of them was lost or "
                f"put back from an older copy. Restore {COMMITS}/ and {RUNS}/ of the same time as the tables"
            )
    states.keep()


def commit_once(
    lake: Lake, name: str, files: Sequence[NewFile], schema: pa.Schema, run: int, private: Collection[str] = (), app: str = APP
) -> bool:
    """Add the files of run `run` to a table, unless that run is already in it.

    Args:
        lake: the lake.
        name: the table's folder, relative to the root.
        files: what to add, all durable.
        schema: the columns the table must have.
        run: the run's number.
        private: columns that statistics must not show.
        app: whose number `run` is.

    Returns:
        Whether this call committed; False if the run was in the table before.

    Raises:
        ConflictError: others kept winning.
        CorruptLakeError: a file to add is missing or of another size.
    """
    for attempt in range(COMMIT_ATTEMPTS):
        table = ensure_table(lake, name, schema, private)
        done = table.transaction_version(app)
        if done is not None and done >= run:
            sync_log(lake, name, table.version())  # the winner may have died before its own sync
            lake.evict([lake.root / file.path for file in files])
            return False
        upload_files(lake, files)
        now_ms = time.time_ns() // 1_000_000
        try:
            table.create_write_transaction(
                [_add(file, now_ms) for file in files],
                "append",
                table.schema(),
                commit_properties=CommitProperties(
                    custom_metadata={"run": str(run)}, app_transactions=[Transaction(app, run, now_ms)]
                ),
                post_commithook_properties=HOOKS,
            )
        except CommitFailedError as error:
            if "oncurrent" not in str(error):
                raise ConflictError(f"{name}: run {run} could not be committed: {error}") from error
            time.sleep(0.01 * attempt)
            continue
        except (DeltaError, OSError) as error:
            raise RetryLaterError(f"{name}: run {run} could not be committed: {error}; is the storage there?") from error
        sync_log(lake, name, table.version())
        lake.evict([lake.root / file.path for file in files])
        return True
    raise ConflictError(f"{name}: run {run} lost {COMMIT_ATTEMPTS} times against other committers; try again")


def _add(file: NewFile, now_ms: int) -> AddAction:
    return AddAction(
        path=file.path.removeprefix(f"{file.table}/"),
        size=file.bytes,
        partition_values={},
        modification_time=now_ms,
        data_change=True,
        stats=file.stats,
    )


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
        changes_rows: whether the rows differ; if not, a reader who follows the table need not look.
        transaction: an application transaction to record with it.

    Returns:
        False if one of `old` is no longer live: somebody else has rewritten it.

    Raises:
        ConflictError: others kept winning.
        CorruptLakeError: a new file is not there as it was written.
        RetryLaterError: the storage is away.
    """
    upload_files(lake, new)
    for attempt in range(SWAP_ATTEMPTS):
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
    raise ConflictError(f"{name}: runs committed {SWAP_ATTEMPTS} times meanwhile; try again when less arrives")


class LiveFile(msgspec.Struct, frozen=True):
    """A data file of a table's version: its path below the table's folder, and Delta's statistics JSON."""

    path: str
    rows: int
    bytes: int
    stats: str


def live_files(table: DeltaTable) -> tuple[LiveFile, ...]:
    """The files of this version, by path."""
    actions = pa.table(table.get_add_actions(flatten=False)).to_pylist()
    return tuple(sorted(map(_live_file, actions), key=lambda file: file.path))


def replace_files(lake: Lake, name: str, table: DeltaTable, files: Iterable[LiveFile], note: Mapping[str, str]) -> int:
    """Make `files` the whole content of a table.

    Args:
        lake: the lake.
        name: the table's folder, relative to the root.
        table: the version that the files follow from.
        files: durable files, none of them in that version under the same path.
        note: what the commit says of itself.

    Returns:
        The new version.

    Raises:
        ConflictError: somebody has committed since `table` was opened; look again.
        RetryLaterError: the storage is away.
    """
    now_ms = time.time_ns() // 1_000_000
    actions: list[AddAction | RemoveAction] = [
        AddAction(file.path, file.bytes, {}, now_ms, data_change=True, stats=file.stats) for file in files
    ]
    properties = CommitProperties(custom_metadata=dict(note), max_commit_retries=0)
    try:
        table.create_write_transaction(
            actions, "overwrite", table.schema(), commit_properties=properties, post_commithook_properties=HOOKS
        )
    except CommitFailedError as error:
        raise ConflictError(f"{name}: somebody committed after version {table.version()}; look again ({error})") from error
    except (DeltaError, OSError) as error:
        raise RetryLaterError(f"{name}: could not be rewritten: {error}; is the storage there?") from error
    sync_log(lake, name, table.version())
    return table.version() + 1


def _live_file(action: Mapping[str, Any]) -> LiveFile:
    stats = {
        "numRecords": action["num_records"],
        "minValues": _plain_values(action.get("min")),
        "maxValues": _plain_values(action.get("max")),
        "nullCount": _plain_values(action.get("null_count")),
    }
    return LiveFile(action["path"], action["num_records"] or 0, action["size_bytes"], json.dumps(stats))


def _plain_values(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: _plain(value) for name, value in (values or {}).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return _plain_values(value) if isinstance(value, dict) else value
