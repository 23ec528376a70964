"""Maintain a lake: roll-ups, compaction, archive, logs, vacuum; one at a time, while runs go on.

Values of columns that contracts declare private today are removed from statistics, roll-ups and profiles.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from pipelines.contracts.arrow import private_by_stream
from pipelines.errors import ConflictError, CorruptLakeError, RefusedError
from pipelines.ingest.plan import read_pins, read_plan
from pipelines.lake.commit import committed_run
from pipelines.lake.compact import Compacted, compact_all
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, RUNS, STREAMS, maintain_lock_path, stream_table
from pipelines.lake.private_values import forget_values, hide_statistics, private_of_stream
from pipelines.lake.rollup import roll_up_again, roll_up_all, rollup_table
from pipelines.lake.workplace import only_maintainer
from pipelines.maintenance.archive import archive_runs
from pipelines.maintenance.log_trim import keep_log, trim_logs
from pipelines.maintenance.vacuum import Keep, Vacuum, Vacuumed
from pipelines.quality.store import quality_table

log = structlog.get_logger(__name__)


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


@contextmanager
def only_maintenance(lake: Lake) -> Iterator[None]:
    """Be the only one that rewrites or deletes files of this lake, until the process ends however it ends.

    Raises:
        RefusedError: another one is at work, of a remote lake on whatever machine.
    """
    (lake.root / RUNS).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(maintain_lock_path(lake.root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(f"{lake.root}: maintenance is at work already; leave it to that one") from error
        with only_maintainer(lake, "maintenance"):
            yield
    finally:
        os.close(descriptor)


def maintain(lake: Lake, keep: Keep) -> tuple[list[Compacted], Vacuumed]:
    """All of it once. Runs that commit too often for a compaction only put it off.

    Raises:
        RefusedError: another maintenance is at work.
        CorruptLakeError: a table cannot be read.
        OSError: the disk refused.
    """
    with only_maintenance(lake):
        try:
            private = private_today(lake)
            hide_private(lake)
            roll_up_again(lake, private)
            roll_up_all(lake, private)
            compacted = compact_all(lake)
        except ConflictError as error:
            log.warning("compaction_put_off", reason=str(error))
            compacted = []
        archive_runs(lake)
        trim_logs(lake, keep_log(keep.versions_h, keep.versions, keep.grace_s))
        return compacted, Vacuum(lake, keep).sweep()
