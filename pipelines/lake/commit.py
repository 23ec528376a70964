"""The commit: files of one run enter a table exactly once.

Delta's application transactions record `("ingest", n)`, but nothing enforces their order, and a second commit with the
same number from a fresh view is accepted. So: open fresh, look at the recorded number, commit on that same view. Two
committers then meet in the log, one wins, the other looks again and finds the work done.
"""

import time
from collections.abc import Collection, Sequence

import pyarrow as pa
from deltalake import CommitProperties, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction

from pipelines.errors import ConflictError, CorruptLakeError, RetryLaterError
from pipelines.lake.files import NewFile
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, RUNS
from pipelines.lake.table import HOOKS, ensure_table, open_table, sync_log
from pipelines.lake.table_states import TableStates
from pipelines.lake.upload import upload_files

APP = "ingest"
ATTEMPTS = 20


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
    for attempt in range(ATTEMPTS):
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
    raise ConflictError(f"{name}: run {run} lost {ATTEMPTS} times against other committers; try again")


def _add(file: NewFile, now_ms: int) -> AddAction:
    return AddAction(
        path=file.path.removeprefix(f"{file.table}/"),
        size=file.bytes,
        partition_values={},
        modification_time=now_ms,
        data_change=True,
        stats=file.stats,
    )
