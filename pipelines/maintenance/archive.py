"""The archive of runs: which run read which segments under which rules, one row for each, kept for good.

Plans go with their segments, and log entries when they are old. What lineage needs of them is put here first, exactly once: the
number of the last run archived is the table's own transaction, and it is committed before anything is deleted.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import structlog

from pipelines.ingest.plan import Plan, read_plan
from pipelines.lake.commit import commit_once, committed_run
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import ARCHIVE, COMMITS, RUNS, plan_path
from pipelines.lake.table import open_table

ARCHIVE_APP = "archive"
RUNS_AT_ONCE = 10_000
ARCHIVE_SCHEMA = pa.schema(
    [
        pa.field("run", pa.int64()),
        pa.field("planned_at", pa.timestamp("us", "UTC")),
        pa.field("pins", pa.string()),
        pa.field("bridge", pa.string()),
        pa.field("segment", pa.int64()),
        pa.field("segment_bytes", pa.int64()),
        pa.field("is_set_aside", pa.bool_()),
        pa.field("releases", pa.int64()),
    ]
)
"""One row for each segment of a run; `replay_items` counts the quarantined rows that it replayed or discarded."""

log = structlog.get_logger(__name__)


def archived_run(lake: Lake) -> int:
    """The last run whose facts are in the archive; 0 for none.

    Raises:
        CorruptLakeError: the archive's log cannot be read.
        RetryLaterError: the storage is away.
    """
    table = open_table(lake, ARCHIVE)
    return 0 if table is None else table.transaction_version(ARCHIVE_APP) or 0


def archive_runs(lake: Lake) -> int:
    """Archive every committed run that is not in the archive. For the holder of the maintenance lease.

    Returns:
        How many runs were archived. Runs whose plan an earlier release has deleted are skipped, with a count in the log.

    Raises:
        ConflictError: another maintenance is at work.
        CorruptLakeError: a plan or the archive cannot be read.
        RetryLaterError: the storage is away.
    """
    done, last = archived_run(lake), committed_run(lake, COMMITS)
    if done >= last:
        return 0
    there = _planned(lake)
    count = 0
    for first in range(done + 1, last + 1, RUNS_AT_ONCE):
        upper = min(first + RUNS_AT_ONCE - 1, last)
        plans = list(_plans(lake, [run for run in range(first, upper + 1) if run in there]))
        _commit(lake, plans, first, upper)
        count += len(plans)
    log.info("runs_archived", runs=count, without_plan=last - done - count, upto=last)
    return count


def _planned(lake: Lake) -> set[int]:
    """The runs whose plan is there: one listing, so that a bucket is not asked for each that is not."""
    names = (file.name.rsplit("/", 1)[-1] for file in lake.files(RUNS) if file.name.count("/") == 1)
    return {int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal()}


def _plans(lake: Lake, runs: Sequence[int]) -> Iterator[Plan]:
    for run in runs:
        plan = read_plan(lake, run)
        lake.evict([plan_path(lake.root, run)])
        if plan is not None:
            yield plan


def _commit(lake: Lake, plans: Sequence[Plan], first: int, upper: int) -> None:
    rows = [
        (
            plan.run,
            plan.planned_at_us,
            plan.pins,
            one.bridge,
            one.number,
            one.bytes,
            bool(one.skip_reason),
            len(plan.replay_items),
        )
        for plan in plans
        for one in plan.segments
    ]
    columns = zip(*rows, strict=True) if rows else ([] for _ in ARCHIVE_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ARCHIVE_SCHEMA, strict=True)]
    table = pa.table(arrays, schema=ARCHIVE_SCHEMA)
    file = write_table_file(lake, ARCHIVE, f"{first:012d}-{upper:012d}.parquet", table, lasting=True)
    commit_once(lake, ARCHIVE, [file], ARCHIVE_SCHEMA, upper, app=ARCHIVE_APP)
