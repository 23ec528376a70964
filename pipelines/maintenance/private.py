"""Takes values of private columns out of statistics, roll-ups and profiles, by what contracts say today."""

from pipelines.contracts.arrow import private_by_stream
from pipelines.errors import CorruptLakeError
from pipelines.ingest.plan_files import read_pins, read_plan
from pipelines.lake.commit import committed_run
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, RUNS, STREAMS, stream_table
from pipelines.lake.private_values import forget_values, hide_statistics, private_of_stream
from pipelines.lake.rollup import rollup_table
from pipelines.quality.store import quality_table


def private_today(lake: Lake) -> dict[str, frozenset[str]]:
    """The private columns of each stream, by the rules of the last committed run.

    Raises:
        CorruptLakeError: the plan or the rules of that run are gone.
        RetryLaterError: the storage is away.
    """
    run = committed_run(lake, COMMITS)
    if not run:
        return {}
    plan = read_plan(lake, run)
    if plan is None:
        raise CorruptLakeError(f"{lake.root}: run {run} is committed, its plan in runs/ is gone; restore it from a copy")
    return private_by_stream(read_pins(lake, plan.pins).contracts)


def hide_private(lake: Lake) -> int:
    """Take them out of every stream's files and log, roll-ups and profiles; how many files and lines that concerned.

    Raises:
        ConflictError: runs kept committing meanwhile.
        CorruptLakeError: a table cannot be read.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    declared, count = private_today(lake), 0
    for stream in lake.folders(STREAMS):
        private = private_of_stream(lake, stream_table(stream), declared.get(stream, ()))
        count += hide_statistics(lake, stream_table(stream), private)
        count += forget_values(lake, rollup_table(stream), private)
        count += forget_values(lake, quality_table(stream), private)
    if count:
        _forget_prepared(lake)
    return count


def _forget_prepared(lake: Lake) -> None:
    """Lists of the files of committed runs, with bounds of columns that were not private then: no run needs them any more."""
    run = committed_run(lake, COMMITS)
    for file in lake.files(RUNS):
        base = file.name.removeprefix(f"{RUNS}/")
        number = base.removesuffix(".prepared.json")
        if number != base and number.isdecimal() and int(number) <= run:
            lake.delete(lake.root / file.name)
