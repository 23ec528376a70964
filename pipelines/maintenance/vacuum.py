"""Takes away what nothing refers to any more: replaced files, orphans of crashes, landed segments that became rows long ago.

Nothing is deleted that a live row, a table version young enough to be read, or the run in hand refers to. What belongs to
nobody goes only after a grace, for a run at work writes its files before it commits them.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import structlog
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipelines.bridge.segment import segment_number
from pipelines.config import MaintainConfig
from pipelines.errors import RetryLaterError
from pipelines.ingest.chips.requests import read_last_cut
from pipelines.ingest.plan import Plan, read_plan
from pipelines.lake.claims import held_alone
from pipelines.lake.commit import committed_run
from pipelines.lake.delta_log import REMOVED_SCHEMA, remember_removed, removed_since
from pipelines.lake.lake import Lake
from pipelines.lake.layout import (
    ARCHIVE,
    CHIPS,
    COMMITS,
    LABELS,
    LANDING,
    OBJECTS,
    PAYLOAD,
    QUARANTINE,
    QUARANTINE_CLOSED,
    REPLAYS,
    ROLLUPS,
    RUNS,
    SETS,
    STREAMS,
    cut_prefix,
    landing_folder,
    retag_lock_path,
)
from pipelines.lake.ledger import KEPT_LEDGERS
from pipelines.lake.ledger_files import ledger_bases, read_ledger
from pipelines.lake.store import Stored
from pipelines.lake.table import open_table
from pipelines.lake.workplace import abandoned
from pipelines.maintenance.archive import archive_runs
from pipelines.maintenance.log_trim import all_tables
from pipelines.maintenance.orphans import (
    chip_places,
    copies,
    half_written,
    never_filled,
    referenced_payloads,
    set_versions,
    unfinished,
)
from pipelines.training.manifest import MANIFEST_NAME

log = structlog.get_logger(__name__)
# Only runs and maintenance write here, and neither is at work when their grace is waived.
_OURS = (STREAMS, ROLLUPS, PAYLOAD, CHIPS, QUARANTINE, QUARANTINE_CLOSED, COMMITS, ARCHIVE, RUNS)


@dataclass(frozen=True, slots=True)
class Keep:
    """How long things are kept: table versions to go back to, segments to run again, objects to be named.

    What belongs to nobody is kept `grace_s`, or `others_s` where its writer may be neither a run nor maintenance. Of each table
    the last `versions` versions can be opened while they are younger than `versions_h`.
    """

    versions_h: float = 168
    landing_h: float = 168
    objects_h: float = 720
    grace_s: float = 3_600
    others_s: float = 3_600
    versions: int = 500

    @classmethod
    def of(cls, limits: MaintainConfig) -> "Keep":
        """How long things are kept by the configuration."""
        return cls(limits.keep_versions_h, limits.keep_landing_h, limits.keep_objects_h, versions=limits.keep_versions)


@dataclass(slots=True)
class Vacuumed:
    """Counts of deleted things, by kind."""

    files: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def add(self, kind: str, file: Stored) -> None:
        """Count a file."""
        self.files[kind] = self.files.get(kind, 0) + 1
        self.bytes += file.bytes


class Vacuum:
    """One pass over the lake.

    Args:
        lake: the lake.
        keep: how long things are kept.
        dry_run: only count.

    Raises:
        CorruptLakeError: a table or the last plan cannot be read; nothing is deleted on a guess.
    """

    def __init__(self, lake: Lake, keep: Keep, *, dry_run: bool = False) -> None:
        self.done = Vacuumed()
        self._lake = lake
        self._keep = keep
        self._dry_run = dry_run
        self._now_s = time.time()
        self._run = committed_run(lake, COMMITS)
        self._plan: Plan | None = read_plan(lake, self._run) if self._run else None
        self._cut = read_last_cut(lake).cut
        self._gone: set[str] = set()

    def sweep(self) -> Vacuumed:
        """Do it, tables first: their files say which payloads are wanted.

        Raises:
            OSError: the disk refused.
        """
        # The log of labels is never cut short, and what compaction replaced stays: sets and runs pin versions of them for good.
        for name in (*all_tables(self._lake), *(f"{LABELS}/{task}" for task in self._lake.folders(LABELS))):
            self._table(name)
        referenced = referenced_payloads(self._lake, self._gone)
        self._payloads(referenced)
        self._objects(referenced)
        self._landing()
        self._runs()
        self._sets()
        self._orphans()
        log.info("vacuumed", dry_run=self._dry_run, bytes=self.done.bytes, **self.done.files)
        return self.done

    def _table(self, name: str) -> None:
        with self._quiet(name) as is_quiet:
            if not is_quiet:
                return
            table, files = open_table(self._lake, name), self._files(name, "*")
            is_lasting = name.startswith(f"{LABELS}/")
            oldest_ms = 0 if is_lasting else round((self._now_s - self._keep.versions_h * 3_600) * 1_000)
            if table is not None:
                unreferenced = {Path(found).name for found in self._unreferenced(table, max(0, round(self._keep.versions_h)))}
                unreferenced -= removed_since(self._lake, name, oldest_ms)
            elif self._plan is not None and never_filled(read_ledger(self._lake, self._run), name):
                unreferenced = {_base(file) for file in files}  # of a run that was paused before there was a table
            else:
                return
            for file in files:
                is_unreferenced = _base(file) in unreferenced and not _base(file).startswith(".")
                if is_unreferenced and not self._is_in_hand(_base(file)) and self._is_old(file):
                    self._delete("table_files", file)
            if not self._dry_run:
                remember_removed(self._lake, name, REMOVED_SCHEMA.empty_table(), oldest_ms)

    @contextmanager
    def _quiet(self, name: str) -> Iterator[bool]:
        """Whether nobody tags the stream again: second names of old files are as old as those, so no grace covers them."""
        parent, _, stream = name.partition("/")
        if parent != STREAMS:
            yield True
            return
        with held_alone(retag_lock_path(self._lake.root, stream), is_made=not self._dry_run) as is_held:
            yield is_held

    def _unreferenced(self, table: DeltaTable, hours: int) -> list[str]:
        try:
            return table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        except (DeltaError, OSError) as error:
            raise RetryLaterError(f"{table.table_uri}: its files cannot be listed ({error}); try again") from error

    def _files(self, folder: str, *patterns: str) -> list[Stored]:
        """The files below a folder, one level for each pattern, newly listed."""
        return [file for file in self._lake.files(folder) if _fits(file.name.removeprefix(f"{folder}/"), patterns)]

    def _is_in_hand(self, base: str) -> bool:
        """Whether a file may belong to the run after the last commit, or to the cut after the last one."""
        return base.startswith((f"{self._run + 1:012d}", cut_prefix(self._cut + 1)))

    def _payloads(self, referenced: set[str]) -> None:
        for file in self._files(PAYLOAD, "*", "*.parquet"):
            if file.name not in referenced and not self._is_in_hand(_base(file)) and self._is_old(file):
                self._delete("payload_shards", file)
        for place, files in sorted(chip_places(self._lake.files(CHIPS)).items()):
            if place not in referenced and not self._is_in_hand(place.rsplit("/", 1)[-1]) and all(map(self._is_old, files)):
                self._delete_all("chips", files, place)

    def _objects(self, referenced: set[str]) -> None:
        for file in self._files(OBJECTS, "[0-9a-f]*"):
            if file.name not in referenced and self._age_s(file) > self._keep.objects_h * 3_600:
                self._delete("objects", file)

    def _landing(self) -> None:
        if self._plan is None:
            return
        cursors = {**self._plan.next_numbers, REPLAYS: self._run + 1}
        for bridge, cursor in sorted(cursors.items()):
            keep_s = 0 if bridge == REPLAYS else self._keep.landing_h * 3_600
            for file in self._files(f"{LANDING}/{bridge}", "*.arrows"):
                number = segment_number(Path(file.name))
                if number is not None and number < cursor and self._age_s(file) >= keep_s:
                    self._delete("segments", file)
        for path in sorted((self._lake.root / LANDING).glob("*/torn/*")):
            torn = self._here(path)
            if self._age_s(torn) > self._keep.landing_h * 3_600:
                self._delete("torn_tails", torn)

    def _runs(self) -> None:
        """Plans whose segments are gone can neither be resumed nor run again. Ledgers that later ones refer to stay.

        What a plan says is archived first.
        """
        if not self._dry_run:
            archive_runs(self._lake)
        needed = {f"{base:012d}.{kind}.parquet" for base in ledger_bases(self._lake, self._run) for kind in ("ledger", "books")}
        for file in self._files(RUNS, "[0-9]*.*"):
            run = _base(file).split(".", 1)[0]
            if (
                _base(file) in needed
                or not run.isdigit()
                or int(run) > self._run - KEPT_LEDGERS
                or self._age_s(file) < self._keep.landing_h * 3_600
            ):
                continue
            plan = read_plan(self._lake, int(run))
            landed = () if plan is None else (landing_folder(self._lake.root, one.bridge) / f"{one.number:012d}.arrows"
                                              for one in plan.segments)  # fmt: skip
            if _base(file) == f"{run}.json" and any(self._lake.size(segment) is not None for segment in landed):
                continue
            self._delete("run_files", file)

    def _sets(self) -> None:
        """In a bucket the manifest of a set comes last: without one, and not being brought for a while, its builder died."""
        if self._lake.store.renames_folders:
            return
        for version, files in sorted(set_versions(self._lake.files(SETS)).items()):
            if not any(_base(file) == MANIFEST_NAME for file in files) and all(map(self._is_old, files)):
                self._delete_all("half_sets", files, version)

    def _orphans(self) -> None:
        """Find what killed processes left on this disk; of a remote lake also copies that are no longer needed here."""
        for path in half_written(self._lake):
            with self._quiet("/".join(path.relative_to(self._lake.root).parts[:2])) as is_quiet:
                if is_quiet:
                    self._clear("orphans", path)
        for path in unfinished(self._lake, self._run, self._cut):
            self._clear("orphans", path)
        for path in abandoned(self._lake.root):
            self._clear("orphans", path, is_dead=True)
        cursors = {} if self._plan is None else self._plan.next_numbers
        for path in list(copies(self._lake, self._run, self._cut, cursors)):
            self._clear("working_copies", path)

    def _clear(self, kind: str, path: Path, *, is_dead: bool = False) -> None:
        """Delete a file or folder of this disk once all of it is old, or is known to be dead. Nothing is asked of a bucket."""
        found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
        files = [self._here(file) for file in found]
        if not is_dead and not all(map(self._is_old, files)):
            return
        for file in files:
            self._count(kind, file)
        if self._dry_run:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _here(self, path: Path) -> Stored:
        stat = path.stat()
        return Stored(str(path.relative_to(self._lake.root)), stat.st_size, stat.st_mtime)

    def _is_old(self, file: Stored) -> bool:
        parent = file.name.split("/", 1)[0]
        return self._age_s(file) >= (self._keep.grace_s if parent in _OURS else max(self._keep.grace_s, self._keep.others_s))

    def _age_s(self, file: Stored) -> float:
        return self._now_s - file.modified_s

    def _delete(self, kind: str, file: Stored) -> None:
        self._count(kind, file)
        if not self._dry_run:
            self._lake.delete(self._lake.root / file.name)

    def _delete_all(self, kind: str, files: Iterable[Stored], place: str) -> None:
        """Delete the files of a place, and the folders that then hold nothing."""
        for file in files:
            self._delete(kind, file)
        if not self._dry_run and (self._lake.root / place).is_dir():
            shutil.rmtree(self._lake.root / place)

    def _count(self, kind: str, file: Stored) -> None:
        self.done.add(kind, file)
        self._gone.add(file.name)


def _base(file: Stored) -> str:
    return file.name.rsplit("/", 1)[-1]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    steps = name.split("/")
    return len(steps) == len(patterns) and all(fnmatchcase(step, pattern) for step, pattern in zip(steps, patterns, strict=True))
