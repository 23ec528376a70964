"""Takes values of private columns out of statistics, roll-ups and profiles, by what contracts say today."""

from pathlib import Path

from pipelines.contracts.arrow import private_by_stream
from pipelines.errors import CorruptLakeError
from pipelines.ingest.plan_files import read_pins, read_plan
from pipelines.lake.commit import committed_run
from pipelines.lake.copy import discard, files_of, folders_of
from pipelines.lake.layout import COMMITS, RUNS, STREAMS, stream_table
from pipelines.lake.private_values import forget_values, hide_statistics, private_of_stream
from pipelines.lake.rollup import rollup_table
from pipelines.quality.store import quality_table


def private_today(root: Path) -> dict[str, frozenset[str]]:
    """The private columns of each stream, by the rules of the last committed run.

    Raises:
        CorruptLakeError: the plan or the rules of that run are gone.
        RetryLaterError: the storage is away.
    """
    run = committed_run(root, COMMITS)
    if not run:
        return {}
    plan = read_plan(root, run)
    if plan is None:
        raise CorruptLakeError(f"{root}: run {run} is committed, its plan in runs/ is gone; restore it from a copy")
    return private_by_stream(read_pins(root, plan.pins).contracts)


def hide_private(root: Path) -> int:
    """Take them out of every stream's files and log, roll-ups and profiles; how many files and lines that concerned.

    Raises:
        ConflictError: runs kept committing meanwhile.
        CorruptLakeError: a table cannot be read.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    declared, count = private_today(root), 0
    for stream in folders_of(root, STREAMS):
        private = private_of_stream(root, stream_table(stream), declared.get(stream, ()))
        count += hide_statistics(root, stream_table(stream), private)
        count += forget_values(root, rollup_table(stream), private)
        count += forget_values(root, quality_table(stream), private)
    if count:
        _forget_prepared(root)
    return count


def _forget_prepared(root: Path) -> None:
    """Lists of the files of committed runs, with bounds of columns that were not private then: no run needs them any more."""
    run = committed_run(root, COMMITS)
    for file in files_of(root, RUNS):
        base = file.name.removeprefix(f"{RUNS}/")
        number = base.removesuffix(".prepared.json")
        if number != base and number.isdecimal() and int(number) <= run:
            discard(root, root / file.name)
