"""Maintain a lake: roll-ups, compaction, archive, logs, vacuum; one at a time, while runs go on.

Values of columns that contracts declare private today are removed from statistics, roll-ups and profiles.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog

from pipelines.contracts.arrow import private_by_stream
from pipelines.errors import ConflictError, CorruptLakeError, PipelineError, RefusedError
from pipelines.ingest.plan import read_pins, read_plan
from pipelines.lake.commit import committed_run
from pipelines.lake.compact import Compacted, compact_all
from pipelines.lake.delta_log import LogKind, log_files
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, RUNS, STREAMS, maintain_lock_path, stream_table
from pipelines.lake.private_values import forget_values, hide_statistics, private_of_stream
from pipelines.lake.rollup import roll_up_again, roll_up_all, rollup_table
from pipelines.lake.workplace import only_maintainer
from pipelines.maintenance.archive import archive_runs
from pipelines.maintenance.log_trim import keep_log, trim_logs
from pipelines.maintenance.vacuum import Keep, Vacuum, Vacuumed
from pipelines.quality.store import quality_table

# Four times what maintenance leaves by default: few enough for a run to cost what it did, and reached at most every 1,500 runs.
LONG_LOG_ENTRIES = 2_000
# A log that grew longer before loops shortened it takes minutes, for which runs must not wait.
MOST_LOG_ENTRIES = 20_000
LOOK_EVERY_RUNS = 500

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
def only_maintenance(lake: Lake, *, is_run_loop: bool = False) -> Iterator[None]:
    """Be the only one that rewrites or deletes files of this lake, until the process ends however it ends.

    Args:
        lake: the lake.
        is_run_loop: whether it is the run loop, which leaves the work to maintenance; that waits for the little the loop does.

    Raises:
        RefusedError: another one is at work, of a remote lake on whatever machine.
    """
    (lake.root / RUNS).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        # The folder itself is the lock that the run loop holds while it shortens logs.
        gate = held.enter_context(ExitStack())
        gate.enter_context(_locked(lake.root / RUNS, lake, os.O_RDONLY, is_waiting=not is_run_loop))
        held.enter_context(_locked(maintain_lock_path(lake.root), lake, os.O_RDWR | os.O_CREAT))
        if not is_run_loop:
            gate.close()
        held.enter_context(only_maintainer(lake, "maintenance"))
        yield


@contextmanager
def _locked(path: Path, lake: Lake, flags: int, *, is_waiting: bool = False) -> Iterator[None]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise RefusedError(f"{lake.root}: maintenance is at work already; leave it to that one") from error
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


class LogShortener:
    """Shortens the logs between runs where maintenance comes too seldom: else each commit would list ever more of them.

    Args:
        lake: the lake.
        keep: how long older versions are kept.
        long_log_entries: entries of the commits table's log from which on it is too long; at least twice what is kept.
        look_every_runs: runs between two looks; the first run after a start looks, too.
    """

    def __init__(
        self, lake: Lake, keep: Keep, long_log_entries: int = LONG_LOG_ENTRIES, look_every_runs: int = LOOK_EVERY_RUNS
    ) -> None:
        self._lake = lake
        self._keep = keep
        self._long_log_entries = max(long_log_entries, 2 * keep.versions)
        self._look_every_runs = look_every_runs
        self._due_run = 0

    def after_run(self, run: int) -> None:
        """Look, if it is time to, and shorten what is too long. A failure is logged: runs do not depend on it."""
        if run < self._due_run:
            return
        self._due_run = run + self._look_every_runs
        try:
            entries = sum(file.kind is LogKind.ENTRY for file in log_files(self._lake, COMMITS))
            if entries < self._long_log_entries:
                return
            if entries > MOST_LOG_ENTRIES:
                log.warning("lake_not_maintained", entries=entries, hint="run `catchment maintain` once; it may take minutes")
                return
            self._shorten(entries)
        except (PipelineError, OSError) as error:
            log.warning("logs_not_shortened", reason=str(error))

    def _shorten(self, entries: int) -> None:
        began_s = time.monotonic()
        keep = keep_log(self._keep.versions_h, self._keep.versions, self._keep.grace_s)
        with only_maintenance(self._lake, is_run_loop=True):
            archive_runs(self._lake)
            trimmed = trim_logs(self._lake, keep)
        took_ms = round((time.monotonic() - began_s) * 1_000)
        log.info("logs_shortened", entries=entries, tables=len(trimmed), took_ms=took_ms)
