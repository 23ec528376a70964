"""Cut what waits, plan after plan, on a thread of its own: no run waits for a slide. A commit that a crash interrupts ends."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from deltalake.exceptions import CommitFailedError, DeltaError

from catchment.runtime.clock import Clock, doubled_s
from pipelines.config import CoreConfig
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, ConflictError, CorruptLakeError, PipelineError, RetryLaterError
from pipelines.imaging.graph import cut_on, slide_tasks
from pipelines.imaging.pool import CutLimits, CutterPool
from pipelines.imaging.store import ChipFile, SlideRef, chip_schema, chip_table
from pipelines.ingest.chips.requests import (
    APP,
    CutPlan,
    CutRequest,
    LastCut,
    RefusedSlide,
    forget_request,
    key_of,
    missing_bytes,
    portion,
    read_cut_plan,
    read_last_cut,
    read_request,
    waiting_requests,
    wanted_slides,
    write_cut_plan,
    write_last_cut,
)
from pipelines.ingest.chips.tagging import ChipTagger
from pipelines.ingest.quarantine import BODY_NONE, PRIVATE, QUARANTINE_SCHEMA, STAGE_CHIPS, Origin, Rejection, rejections_table
from pipelines.lake.commit import commit_once
from pipelines.lake.files import NewFile, cut_paths, merged_stats, table_stats, upload_cut, write_table_file
from pipelines.lake.lake import Lake, lake_of
from pipelines.lake.layout import QUARANTINE, STREAMS, cut_folder, cut_plan_path, cut_prefix, stream_table
from pipelines.lake.reference import referred_path, sample_label
from pipelines.lake.table import HOOKS, dataset_of, open_table, sync_log
from pipelines.runners.engine import Engine, RunnerKind

log = structlog.get_logger(__name__)

IN_PROCESS = Engine()
Commit: TypeAlias = Callable[[Lake, CutPlan, tuple[ChipFile, ...]], None]
LOOK_EVERY_S = 0.5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
CLOSING_S = 5.0


def commit_cut(lake: Lake, plan: CutPlan, cut: Sequence[ChipFile]) -> None:
    """Commit what became of the slides of a plan, and make durable that it is done. Raises as `commit_tables`."""
    commit_tables(lake, plan, cut)
    last = LastCut(plan.cut, plan.request, plan.after)
    write_last_cut(lake, last)
    clear_cut(lake, last)


def commit_tables(lake: Lake, plan: CutPlan, cut: Sequence[ChipFile]) -> None:
    """Commit to each table once, however often it is called.

    Args:
        lake: the lake.
        plan: the plan.
        cut: one for each of its slides.

    Raises:
        ConflictError: another committer is at work.
        CorruptLakeError: a file that was cut is gone.
    """
    by_table: dict[str, list[NewFile]] = defaultdict(list)
    for file in cut:
        if file.rejection is None:
            by_table[str(Path(file.path).parent)].append(_new_file(lake, file))
    upload_cut(lake, plan.cut)
    for table in sorted(by_table):
        commit_once(lake, table, by_table[table], chip_schema(), plan.cut, app=APP)
        drop_replaced(lake, table, [slide for slide, file in zip(plan.slides, cut, strict=True) if file.path.startswith(table)])
    refused = [
        *plan.refused,
        *(RefusedSlide(slide, file.rejection) for slide, file in zip(plan.slides, cut, strict=True) if file.rejection),
    ]
    if refused:
        commit_once(lake, QUARANTINE, [_refused(lake, plan, refused)], QUARANTINE_SCHEMA, plan.cut, PRIVATE, app=APP)


def drop_replaced(lake: Lake, name: str, slides: Sequence[SlideRef]) -> None:
    """Take the chips out of a table that specs of another content gave these slides, now that the new ones are in it.

    Done again it finds nothing. Until it is done, a reader sees both; `spec_digest` tells them apart.

    Raises:
        ConflictError: another committer is at work.
        RetryLaterError: the storage is unavailable.
    """
    table = open_table(lake, name)
    if table is None or not slides:
        return
    of_slides = " OR ".join(
        f"(device = '{key.device}' AND epoch = {key.epoch} AND seq = {key.seq} AND spec = '{slide.spec.name}' "
        f"AND spec_digest <> '{slide.spec.digest}')"
        for slide in slides
        for key in (slide.key,)
    )
    now = {slide.spec.name: slide.spec.digest for slide in slides}
    seqs = pc.field("seq").isin(sorted({slide.key.seq for slide in slides})) & (pc.field("chip_index") == 0)
    found = dataset_of(table).to_table(columns=["spec", "spec_digest"], filter=seqs & pc.field("spec_digest").is_valid())
    if all(row["spec_digest"] == now.get(row["spec"], row["spec_digest"]) for row in found.to_pylist()):
        return
    try:
        gone = table.delete(of_slides, post_commithook_properties=HOOKS)
    except CommitFailedError as error:
        raise ConflictError(f"{name}: somebody committed while chips of an earlier spec were dropped; look again") from error
    except (DeltaError, OSError) as error:
        raise RetryLaterError(f"{name}: chips of an earlier spec could not be dropped: {error}; is the storage there?") from error
    sync_log(lake, name)
    log.info("chips_replaced", table=name, rows=gone.get("num_deleted_rows"))


def clear_cut(lake: Lake, last: LastCut) -> None:
    """Remove what only a cut in hand needs, once it is committed; done again after a crash, it finds the rest."""
    lake.delete(cut_plan_path(lake.root, last.cut))
    shutil.rmtree(lake.root / cut_folder(last.cut), ignore_errors=True)
    lake.evict(cut_paths(lake, last.cut))


def _new_file(lake: Lake, file: ChipFile) -> NewFile:
    path = lake.root / file.path
    names = pq.read_schema(path).names
    # One column at a time: a slide may have millions of chips.
    stats = merged_stats([table_stats(pq.read_table(path, columns=[name], partitioning=None)) for name in names])
    return NewFile(str(Path(file.path).parent), file.path, file.rows, file.bytes, stats)


def _refused(lake: Lake, plan: CutPlan, refused: Sequence[RefusedSlide]) -> NewFile:
    """Rows that stand for no sample (count 0): the slide is a row of its stream, and stays one."""
    rejections = [
        Rejection(
            Origin(key.device, key.stream, key.epoch, f"{APP}/{one.slide.spec.name}", None, ()),
            STAGE_CHIPS,
            f"{one.slide.spec.name}: {one.reason}",
            key.seq,
            0,
            b"",
            BODY_NONE,
        )
        for one in refused
        for key in (one.slide.key,)
    ]
    table = rejections_table(rejections, plan.cut, plan.planned_at_us, "cut")
    runs = pa.array([one.slide.run for one in refused], pa.int64())
    table = table.set_column(table.column_names.index("run"), "run", runs)
    return write_table_file(lake, QUARANTINE, f"{cut_prefix(plan.cut)}.parquet", table, PRIVATE)


class ChipLoop:
    """Carries out one cut at a time. The run loop's lock covers it: one per lake.

    Args:
        config: the core's configuration.
        clock: for the time of a plan.
        committed: the number of the last committed run: slides of later ones are no rows yet.
        engine: where slides are cut; with the direct runner in child processes of this machine.
        commit: commits a cut.

    Raises:
        CorruptLakeError: the word of the last cut cannot be read.
    """

    def __init__(
        self,
        config: CoreConfig,
        clock: Clock,
        committed: Callable[[], int],
        engine: Engine = IN_PROCESS,
        commit: Commit = commit_cut,
    ) -> None:
        self._commit = commit
        self.cuts = 0
        self._config = config
        self._lake = lake_of(config)
        self._clock = clock
        self._committed = committed
        self._engine = engine if self._lake.store.remote_config is None else IN_PROCESS  # workers elsewhere must see the folder
        chips = config.chips
        self._limits = CutLimits(config.run.max_image_pixels, chips.processes, chips.worker_memory_bytes, chips.band_timeout_s)
        self._pool = CutterPool(self._limits)
        self._contracts = ContractSet.load(config.contracts)
        self._tagger = ChipTagger(self._lake, config.policies)
        self._last: LastCut | None = None

    @property
    def deaths(self) -> int:
        """How many child processes slides have ended."""
        return self._pool.deaths

    @property
    def waiting(self) -> int:
        """How many requests wait; of a remote lake as of the last listing."""
        return len(waiting_requests(self._lake))

    def step(self) -> bool:
        """Do one cut if anything waits; whether a cut was done.

        Raises:
            RetryLaterError: try again later.
            CorruptLakeError: a table or a plan cannot be read; the message says what to restore.
        """
        try:
            last = self._last or self._found_last()
            plan = self._plan_in_hand(last) or self._next_plan(self._last or last)
            if plan is None:
                return False
            self._carry_out(plan)
        except OSError as error:
            raise RetryLaterError(f"{self._lake.root}: the disk refuses ({error}); is there room?") from error
        self._last = LastCut(plan.cut, plan.request, plan.after)
        self.cuts += 1
        return True

    def close(self) -> None:
        """End the child processes."""
        self._pool.close()

    def _found_last(self) -> LastCut:
        """The last cut, at the start. Where its word is older than the tables, cuts are counted on from those."""
        last = read_last_cut(self._lake)
        clear_cut(self._lake, last)
        names = [stream_table(name) for name in self._lake.folders(STREAMS) if name.endswith(chip_table(""))]
        tables = [open_table(self._lake, name) for name in (*names, QUARANTINE)]
        seen = max((table.transaction_version(APP) or 0 for table in tables if table is not None), default=0)
        if seen > last.cut + 1 or (seen > last.cut and read_cut_plan(self._lake, seen) is None):
            last = LastCut(seen, last.request, last.after)
        self._last = last
        return last

    def _plan_in_hand(self, last: LastCut) -> CutPlan | None:
        """The plan that an earlier try has left; planned again where a contract has changed since, so that it pins no mistake."""
        plan = read_cut_plan(self._lake, last.cut + 1)
        if plan is None:
            return None
        self._read_contracts()
        for slide in plan.slides:
            contract = self._contracts.get(slide.key.stream, None)
            if contract is None or slide.spec not in contract.chips:
                self._drop(plan)
                return None
        return plan

    def _next_plan(self, last: LastCut) -> CutPlan | None:
        for path in waiting_requests(self._lake):
            request = read_request(self._lake, path)
            if request is None or request.run > self._committed():
                continue
            self._read_contracts()
            plan = self._planned(last, path.name, request)
            if plan is None:
                forget_request(self._lake, path.name)
                continue
            write_cut_plan(self._lake, plan)
            return plan
        return None

    def _planned(self, last: LastCut, name: str, request: CutRequest) -> CutPlan | None:
        after = last.after if last.request == name else None
        waiting = wanted_slides(self._lake, request, after, self._contracts.get(request.stream, None))
        chosen = portion(waiting)
        if not chosen:
            return None
        refused = tuple(missing_bytes(self._lake, chosen))
        away = [one.slide for one in refused]
        slides = tuple(slide for slide in chosen if slide not in away)
        return CutPlan(last.cut + 1, self._clock.now_ms() * 1_000, name, slides, refused, key_of(chosen[-1]))

    def _carry_out(self, plan: CutPlan) -> None:
        started = self._clock.monotonic_s()
        try:
            done = self._tagged(plan, self._cut(plan))
        except CorruptLakeError as error:
            self._drop(plan)
            raise RetryLaterError(f"cut {plan.cut} is planned again: {error}") from error
        self._commit(self._lake, plan, done)
        refused = len(plan.refused) + sum(file.rejection is not None for file in done)
        took_ms = round((self._clock.monotonic_s() - started) * 1_000)
        chips = sum(file.rows for file in done)
        log.info("cut_committed", cut=plan.cut, slides=len(plan.slides), refused=refused, chips=chips, took_ms=took_ms)

    def _cut(self, plan: CutPlan) -> tuple[ChipFile, ...]:
        for slide in plan.slides:
            key = slide.key
            referred_path(self._lake, slide.shard, sample_label(key.stream, key.device, key.epoch, key.seq))
        tasks = slide_tasks(self._lake, plan.cut, plan.slides, self._limits.max_pixels)
        if self._engine.kind is RunnerKind.DIRECT:
            return tuple(self._pool.cut_all(tasks))
        return cut_on(self._engine, tasks, self._limits)

    def _tagged(self, plan: CutPlan, done: tuple[ChipFile, ...]) -> tuple[ChipFile, ...]:
        """The files with their tags; those of a try that was killed after its commit are left as the table names them."""
        for stream in {slide.key.stream for slide in plan.slides}:
            table = open_table(self._lake, stream_table(chip_table(stream)))
            if table is None or (table.transaction_version(APP) or 0) < plan.cut:
                done = self._tagger.tag(stream, self._contracts, done)
        return done

    def _drop(self, plan: CutPlan) -> None:
        """Forget a plan and its number, because a table may have its share of it already; the rest is planned again."""
        last = self._last or read_last_cut(self._lake)
        self._last = LastCut(plan.cut, last.request, last.after)
        write_last_cut(self._lake, self._last)
        clear_cut(self._lake, self._last)

    def _read_contracts(self) -> None:
        """Take the contracts as they are now; a broken folder leaves those before it in force, as it does for runs."""
        try:
            self._contracts = ContractSet.load(self._config.contracts)
        except (ConfigError, OSError) as error:
            log.warning("chip_contracts_refused", reason=str(error))


class ChipThread:
    """Cuts until the block is left.

    Args:
        loop: the loop.
    """

    def __init__(self, loop: ChipLoop) -> None:
        self.failures = 0
        self.trouble = ""
        self.loop = loop
        self._stop = Event()
        self._wake = Event()
        self._thread = Thread(target=self._run, name="chips", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._wake.set()
        self.loop.close()
        self._thread.join(CLOSING_S)

    def wake(self) -> None:
        """Look now whether slides wait."""
        self._wake.set()

    def drain(self, stop: Event) -> None:
        """Cut all that waits, in the caller's thread instead.

        Raises:
            PipelineError: as `ChipLoop.step`.
        """
        while not stop.is_set() and self.loop.step():
            pass

    def _run(self) -> None:
        """Whatever goes wrong with chips is logged, shown in the heartbeat and tried again: runs go on meanwhile."""
        in_a_row = 0
        while not self._stop.is_set():
            try:
                is_busy = self.loop.step()
                in_a_row, self.trouble = 0, ""
            except Exception as error:  # an internal error must not end the runs
                if self._stop.is_set():
                    return
                in_a_row += 1
                self.failures += 1
                self.trouble = str(error)
                pause_s = doubled_s(FIRST_PAUSE_S, LONGEST_PAUSE_S, in_a_row - 1)
                log.warning("cut_retried", reason=str(error), again_in_s=pause_s, exc_info=not isinstance(error, PipelineError))
                self._stop.wait(pause_s)
                continue
            if not is_busy:
                self._wake.wait(LOOK_EVERY_S)
                self._wake.clear()
