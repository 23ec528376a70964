"""Takes away what nothing refers to any more: replaced files, leavings of crashes, landed segments that became rows long ago.

Nothing is deleted that a live row, a table version young enough to be read, or the run in hand refers to. What belongs to
nobody goes only after a grace, for a run at work writes its files before it commits them.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipelines.bridge.segment import segment_number
from pipelines.errors import CorruptLakeError, RetryLaterError
from pipelines.ingest.plan_files import read_plan
from pipelines.lake.commit import committed_run
from pipelines.lake.copy import at_hand, discard, files_of, folders_of, forget, size_of
from pipelines.lake.layout import (
    COMMITS,
    LANDING,
    OBJECTS,
    PAYLOAD,
    QUARANTINE,
    QUARANTINE_CLOSED,
    REPLAYS,
    ROLLUPS,
    RUNS,
    STREAMS,
    landing_folder,
)
from pipelines.lake.ledger import KEPT_LEDGERS
from pipelines.lake.ledger_files import ledger_bases
from pipelines.lake.remote import Stored
from pipelines.lake.table import open_table
from pipelines.lake.workplace import workplace

log = structlog.get_logger(__name__)
_SHARD = "payload_shard"
_OTHERS_WORK_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Keep:
    """How long what might still be wanted is kept: table versions to go back to, segments to run again, objects to be named."""

    versions_h: float = 168
    landing_h: float = 168
    objects_h: float = 720
    grace_s: float = 3_600


@dataclass(slots=True)
class Vacuumed:
    """What was taken away, by kind."""

    files: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def add(self, kind: str, file: Stored) -> None:
        """Count a file."""
        self.files[kind] = self.files.get(kind, 0) + 1
        self.bytes += file.bytes


class Vacuum:
    """One pass over the lake.

    Args:
        root: the lake root.
        keep: how long things are kept.
        dry_run: only count.

    Raises:
        CorruptLakeError: a table or the last plan cannot be read; nothing is deleted on a guess.
    """

    def __init__(self, root: Path, keep: Keep, *, dry_run: bool = False) -> None:
        self.done = Vacuumed()
        self._root = root
        self._keep = keep
        self._dry_run = dry_run
        self._now_s = time.time()
        self._run = committed_run(root, COMMITS)
        self._gone: set[str] = set()

    def sweep(self) -> Vacuumed:
        """Do it, tables first: their files say which payloads are wanted.

        Raises:
            OSError: the disk refused.
        """
        for name in self._tables():
            self._table(name)
        wanted = self._wanted_payloads()
        self._payloads(wanted)
        self._objects(wanted)
        self._landing()
        self._runs()
        self._leavings()
        log.info("vacuumed", dry_run=self._dry_run, bytes=self.done.bytes, **self.done.files)
        return self.done

    def _tables(self) -> list[str]:
        found = [COMMITS, QUARANTINE, QUARANTINE_CLOSED]
        for parent in (STREAMS, ROLLUPS):
            found += [f"{parent}/{name}" for name in folders_of(self._root, parent)]
        return found

    def _table(self, name: str) -> None:
        table = open_table(self._root, name)
        if table is None:
            return
        hours = max(0, round(self._keep.versions_h))
        unwanted = {Path(found).name for found in self._unwanted(table, hours)}
        for file in self._files(name, "*"):
            is_unwanted = _base(file) in unwanted and not _base(file).startswith(".")
            if is_unwanted and not self._is_in_hand(file) and self._is_old(file):
                self._delete("table_files", file)

    def _unwanted(self, table: DeltaTable, hours: int) -> list[str]:
        try:
            return table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        except (DeltaError, OSError) as error:
            raise RetryLaterError(f"{table.table_uri}: its files cannot be listed ({error}); try again") from error

    def _files(self, folder: str, *patterns: str) -> list[Stored]:
        """The files below a folder, one level for each pattern, newly listed."""
        return [file for file in files_of(self._root, folder) if _fits(file.name.removeprefix(f"{folder}/"), patterns)]

    def _is_in_hand(self, file: Stored) -> bool:
        """Whether the file may belong to the run after the last commit, or to a retag that is at work."""
        others = _base(file).startswith("retag-") and self._age_s(file) < _OTHERS_WORK_S
        return _base(file).startswith(f"{self._run + 1:012d}") or others

    def _wanted_payloads(self) -> set[str]:
        """Every shard and object that a file of a table refers to, be the file live or kept for readers of older versions."""
        wanted: set[str] = set()
        with workplace(self._root, "vacuum") as there:
            for file in self._files(STREAMS, "*", "*.parquet"):
                if file.name in self._gone:  # a dry run leaves it there
                    continue
                wanted |= _payloads_of(at_hand(there, there / file.name))
                forget(there, [there / file.name])
        return wanted

    def _payloads(self, wanted: set[str]) -> None:
        for file in self._files(PAYLOAD, "*", "*.parquet"):
            if file.name not in wanted and not self._is_in_hand(file) and self._is_old(file):
                self._delete("payload_shards", file)

    def _objects(self, wanted: set[str]) -> None:
        for file in self._files(OBJECTS, "[0-9a-f]*"):
            if file.name not in wanted and self._age_s(file) > self._keep.objects_h * 3_600:
                self._delete("objects", file)

    def _landing(self) -> None:
        plan = read_plan(self._root, self._run) if self._run else None
        if plan is None:
            return
        cursors = {**plan.next_numbers, REPLAYS: self._run + 1}
        for bridge, cursor in sorted(cursors.items()):
            keep_s = 0 if bridge == REPLAYS else self._keep.landing_h * 3_600
            for file in self._files(f"{LANDING}/{bridge}", "*.arrows"):
                number = segment_number(Path(file.name))
                if number is not None and number < cursor and self._age_s(file) >= keep_s:
                    self._delete("segments", file)
        for path in sorted((self._root / LANDING).glob("*/torn/*")):
            torn = self._here(path)
            if self._age_s(torn) > self._keep.landing_h * 3_600:
                self._delete("torn_tails", torn)

    def _runs(self) -> None:
        """Plans whose segments are gone can neither be resumed nor run again. Ledgers that later ones refer to stay."""
        needed = {f"{base:012d}.{kind}.parquet" for base in ledger_bases(self._root, self._run) for kind in ("ledger", "books")}
        for file in self._files(RUNS, "[0-9]*.*"):
            run = _base(file).split(".", 1)[0]
            if (
                _base(file) in needed
                or not run.isdigit()
                or int(run) > self._run - KEPT_LEDGERS
                or self._age_s(file) < self._keep.landing_h * 3_600
            ):
                continue
            plan = read_plan(self._root, int(run))
            landed = () if plan is None else (landing_folder(self._root, one.bridge) / f"{one.number:012d}.arrows"
                                              for one in plan.segments)  # fmt: skip
            if _base(file) == f"{run}.json" and any(size_of(self._root, segment) is not None for segment in landed):
                continue
            self._delete("run_files", file)

    def _leavings(self) -> None:
        """Files that were being written here when their writer died."""
        for path in self._hidden():
            file = self._here(path)
            if self._is_old(file):
                self._delete("leavings", file)

    def _hidden(self) -> Iterator[Path]:
        for pattern in ("*/.*.tmp", "*/*/.*.tmp", "*/*/*/.*.tmp"):
            yield from sorted(self._root.glob(pattern))

    def _here(self, path: Path) -> Stored:
        stat = path.stat()
        return Stored(str(path.relative_to(self._root)), stat.st_size, stat.st_mtime)

    def _is_old(self, file: Stored) -> bool:
        return self._age_s(file) >= self._keep.grace_s

    def _age_s(self, file: Stored) -> float:
        return self._now_s - file.modified_s

    def _delete(self, kind: str, file: Stored) -> None:
        self.done.add(kind, file)
        self._gone.add(file.name)
        if not self._dry_run:
            discard(self._root, self._root / file.name)


def _base(file: Stored) -> str:
    return file.name.rsplit("/", 1)[-1]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    steps = name.split("/")
    return len(steps) == len(patterns) and all(fnmatchcase(step, pattern) for step, pattern in zip(steps, patterns, strict=True))


def _payloads_of(path: Path) -> set[str]:
    try:
        if _SHARD not in pq.read_schema(path).names:
            return set()
        shards = pq.read_table(path, columns=[_SHARD], partitioning=None).column(_SHARD)
    except (OSError, pa.ArrowException) as error:
        hint = "if no table knows the file, move it away"
        raise CorruptLakeError(f"{path}: cannot be read ({error}), so nobody knows which payloads it needs; {hint}") from error
    return {shard for shard in pc.unique(shards).to_pylist() if shard is not None}
