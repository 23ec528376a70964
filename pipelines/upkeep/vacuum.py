"""Takes away what nothing refers to any more: replaced files, leavings of crashes, landed segments that became rows long ago.

Nothing is deleted that a live row, a table version young enough to be read, or the run in hand refers to. What belongs to
nobody goes only after a grace, for a run at work writes its files before it commits them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from pipelines.bridge.segment import segment_number
from pipelines.errors import CorruptLakeError
from pipelines.ingest.plan_files import read_plan
from pipelines.lake.commit import committed_run
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
from pipelines.lake.table import open_table

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

    def add(self, kind: str, path: Path) -> None:
        """Count a file."""
        self.files[kind] = self.files.get(kind, 0) + 1
        self.bytes += path.stat().st_size


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
            folder = self._root / parent
            found += sorted(f"{parent}/{one.name}" for one in folder.iterdir()) if folder.is_dir() else []
        return found

    def _table(self, name: str) -> None:
        table = open_table(self._root, name)
        if table is None:
            return
        hours = max(0, round(self._keep.versions_h))
        unwanted = table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        for path in sorted({self._root / name / Path(found).name for found in unwanted if not Path(found).name.startswith(".")}):
            if path.is_file() and not self._is_in_hand(path) and self._is_old(path):
                self._delete("table_files", path)

    def _is_in_hand(self, path: Path) -> bool:
        """Whether the file may belong to the run after the last commit, or to a retag that is at work."""
        others = path.name.startswith("retag-") and self._age_s(path) < _OTHERS_WORK_S
        return path.name.startswith(f"{self._run + 1:012d}") or others

    def _wanted_payloads(self) -> set[str]:
        """Every shard and object that a file of a table refers to, be the file live or kept for readers of older versions."""
        wanted: set[str] = set()
        for path in (self._root / STREAMS).glob("*/*.parquet"):
            try:
                if _SHARD in pq.read_schema(path).names:
                    shards = pq.read_table(path, columns=[_SHARD], partitioning=None).column(_SHARD)
                    wanted.update(shard for shard in pc.unique(shards).to_pylist() if shard is not None)
            except (OSError, pa.ArrowException) as error:
                raise CorruptLakeError(f"{path}: cannot be read ({error}), so nobody knows which payloads it needs") from error
        return wanted

    def _payloads(self, wanted: set[str]) -> None:
        for path in sorted((self._root / PAYLOAD).glob("*/*.parquet")):
            if str(path.relative_to(self._root)) not in wanted and not self._is_in_hand(path) and self._is_old(path):
                self._delete("payload_shards", path)

    def _objects(self, wanted: set[str]) -> None:
        for path in sorted((self._root / OBJECTS).glob("[0-9a-f]*")):
            if path.is_file() and f"{OBJECTS}/{path.name}" not in wanted and self._age_s(path) > self._keep.objects_h * 3_600:
                self._delete("objects", path)

    def _landing(self) -> None:
        plan = read_plan(self._root, self._run) if self._run else None
        if plan is None:
            return
        cursors = {**plan.next_numbers, REPLAYS: self._run + 1}
        for bridge, cursor in sorted(cursors.items()):
            keep_s = 0 if bridge == REPLAYS else self._keep.landing_h * 3_600
            for path in sorted(landing_folder(self._root, bridge).glob("*.arrows")):
                number = segment_number(path)
                if number is not None and number < cursor and self._age_s(path) >= keep_s:
                    self._delete("segments", path)
        for path in sorted((self._root / LANDING).glob("*/torn/*")):
            if self._age_s(path) > self._keep.landing_h * 3_600:
                self._delete("torn_tails", path)

    def _runs(self) -> None:
        """Plans whose segments are gone can neither be resumed nor run again."""
        for path in sorted((self._root / RUNS).glob("[0-9]*.*")):
            run = path.name.split(".", 1)[0]
            if not run.isdigit() or int(run) > self._run - KEPT_LEDGERS or self._age_s(path) < self._keep.landing_h * 3_600:
                continue
            plan = read_plan(self._root, int(run))
            landed = () if plan is None else (landing_folder(self._root, one.bridge) / f"{one.number:012d}.arrows"
                                              for one in plan.segments)  # fmt: skip
            if path.name == f"{run}.json" and any(segment.exists() for segment in landed):
                continue
            self._delete("run_files", path)

    def _leavings(self) -> None:
        """Files that were being written when their writer died."""
        for path in self._hidden():
            if self._is_old(path):
                self._delete("leavings", path)

    def _hidden(self) -> Iterator[Path]:
        for pattern in ("*/.*.tmp", "*/*/.*.tmp", "*/*/*/.*.tmp"):
            yield from sorted(self._root.glob(pattern))

    def _is_old(self, path: Path) -> bool:
        return self._age_s(path) >= self._keep.grace_s

    def _age_s(self, path: Path) -> float:
        return self._now_s - path.stat().st_mtime

    def _delete(self, kind: str, path: Path) -> None:
        self.done.add(kind, path)
        if not self._dry_run:
            path.unlink()
