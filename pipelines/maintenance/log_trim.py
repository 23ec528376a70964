"""Keeps the tables' logs short: a commit lists its table's log, so what is old in it is paid for by every run.

Of each table the entries of older versions go once nobody may want to open them, and the names of removed files leave its newest
checkpoint. Nothing is deleted before a checkpoint that stands for it has been published and read back.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog

from pipelines.errors import RefusedError
from pipelines.lake.delta_log import (
    DeltaLogFile,
    KeepLog,
    LogKind,
    build_slim,
    first_kept,
    has_tombstones,
    log_files,
    publish_slim,
    read_entry,
    remember_removed,
    superfluous,
)
from pipelines.lake.lake import Lake
from pipelines.lake.layout import ARCHIVE, COMMITS, QUALITY, QUARANTINE, QUARANTINE_CLOSED, ROLLUPS, STREAMS

# Commits that say so can be looked back to, or undone: the version before them stays, too.
NOTED = ("catchment.retag", "catchment.undo", "catchment.backfill")
MAX_LOG_GRACE_S = 600

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The result for one table's log: files before and after."""

    table: str
    files_before: int
    files_after: int


def all_tables(lake: Lake) -> list[str]:
    """Every table of the lake, by its folder.

    Raises:
        RetryLaterError: the storage is away.
    """
    found = [COMMITS, QUARANTINE, QUARANTINE_CLOSED, ARCHIVE]
    for parent in (STREAMS, ROLLUPS, QUALITY):
        found += [f"{parent}/{name}" for name in lake.folders(parent)]
    return found


def trim_logs(lake: Lake, keep: KeepLog) -> list[Trimmed]:
    """Shorten the logs of all tables. For the holder of the maintenance lease, once runs are archived.

    Raises:
        CorruptLakeError: a log cannot be read; nothing of it was deleted.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    found: list[Trimmed] = []
    for table in all_tables(lake):
        try:
            done = trim_log(lake, table, keep, time.time())
        except RefusedError as error:
            log.warning("log_left_as_it_is", table=table, reason=str(error))
            continue
        found += [] if done is None else [done]
    return found


def trim_log(lake: Lake, table: str, keep: KeepLog, now_s: float) -> Trimmed | None:
    """Shorten the log of one table; None if nothing in it was superfluous.

    Raises:
        RefusedError: another tool writes this log in a form that is left alone.
        CorruptLakeError: the log cannot be read; nothing of it was deleted.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    files = log_files(lake, table)
    if any(file.kind is LogKind.FOREIGN for file in files):
        raise RefusedError(
            f"{lake.root / table}: it has checkpoints of another form; let the tool that writes them clean its log up"
        )
    newest = max((file.version for file in files if file.kind is LogKind.ENTRY), default=None)
    if newest is None:
        return None
    first = first_kept(files, keep, now_s)
    pinned = [] if first is None else _pinned(lake, table, files, first, now_s - keep.age_s)
    referenced = {version - 1 for version in pinned} | (set() if first is None else {first})
    there = {file.version for file in files if file.kind is LogKind.CHECKPOINT}
    if newest not in there and has_tombstones(lake, files):
        referenced.add(newest)
    for version in sorted(referenced - there):
        _slim(lake, table, version, files, oldest_ms=_oldest_ms(keep, now_s))
    gone = [] if first is None else superfluous(files, first, pinned)
    lake.delete(*[lake.root / file.name for file in gone])
    if not gone:
        return None
    log.info("log_trimmed", table=table, entries=len(gone), first_version=first, pinned=pinned)
    return Trimmed(table, len(files), len(files) - len(gone))


def keep_log(versions_h: float, versions: int, grace_s: float) -> KeepLog:
    """Return how long the logs are kept, by the vacuum's own times."""
    return KeepLog(versions_h * 3_600, versions, min(grace_s, MAX_LOG_GRACE_S))


def _slim(lake: Lake, table: str, version: int, files: Sequence[DeltaLogFile], *, oldest_ms: int) -> None:
    slim = build_slim(lake, table, version, files)
    # First the names, then the checkpoint without them: a crash between the two only has them twice.
    remember_removed(lake, table, slim.removed, oldest_ms)
    publish_slim(lake, table, slim)


def _oldest_ms(keep: KeepLog, now_s: float) -> int:
    return round((now_s - keep.age_s) * 1_000)


def _pinned(lake: Lake, table: str, files: Sequence[DeltaLogFile], first: int, oldest_s: float) -> list[int]:
    """Of the versions before `first` those that a person may want to undo, while they are young enough."""
    if not table.startswith(f"{STREAMS}/"):
        return []
    return list(_noted(lake, [file for file in files if file.kind is LogKind.ENTRY and file.version < first], oldest_s))


def _noted(lake: Lake, entries: Sequence[DeltaLogFile], oldest_s: float) -> Iterator[int]:
    for file in entries:
        if file.modified_s <= oldest_s or file.version == 0:
            continue
        notes = [action["commitInfo"] for action in read_entry(lake, file.name) if "commitInfo" in action]
        if any(name in note for note in notes for name in NOTED):
            yield file.version
