"""Maintenance of a lake: roll-ups, compaction, archive, logs, vacuum; one at a time, while runs go on."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from pipelines.errors import ConflictError, RefusedError
from pipelines.lake.compact import Compacted, compact_all
from pipelines.lake.lake import Lake
from pipelines.lake.layout import RUNS, maintain_lock_path
from pipelines.lake.rollup import roll_up_all
from pipelines.lake.rollup_again import roll_up_again
from pipelines.lake.workplace import only_maintainer
from pipelines.maintenance.archive import archive_runs
from pipelines.maintenance.log_trim import keep_log, trim_logs
from pipelines.maintenance.private import hide_private, private_today
from pipelines.maintenance.vacuum import Keep, Vacuum, Vacuumed

log = structlog.get_logger(__name__)


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
