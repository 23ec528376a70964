"""The run loop: plan what has landed by the rules of the moment, run it, commit it, tell the devices; one loop per lake.

A file that is broken or does not fit the lake never stops the runs: the rules before it stay in force, the error is
logged once for each change and counted. At the start there are no rules before it, so there it does stop.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeAlias

import msgspec
import structlog

from catchment.runtime.clock import Clock
from pipelines.config import CoreConfig
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, CorruptLakeError, PipelineError, RefusedError, RetryLaterError
from pipelines.ingest.fault_breaker import FaultBreaker
from pipelines.ingest.plan import (
    Pins,
    Plan,
    SegmentHeads,
    SegmentRef,
    find_segments,
    make_plan,
    read_heads,
    read_plan,
    segment_path,
    write_pins,
    write_plan,
)
from pipelines.ingest.quarantine import forget_request, look_again, oldest_request, replay_plan
from pipelines.ingest.receipt_sender import ReceiptSender, sink_of
from pipelines.ingest.receipts import Publisher
from pipelines.ingest.run import RunContext, execute, read_prepared, stream_shape
from pipelines.ingest.work import Limits
from pipelines.inspect.code import store_code
from pipelines.inspect.columns import inspected
from pipelines.labels.rule_columns import LabelPin, pin_labels
from pipelines.lake.claims import LOOP_NAME
from pipelines.lake.commit import APP, check_of_one_time, committed_run
from pipelines.lake.lake import Lake, lake_at
from pipelines.lake.layout import COMMITS, QUARANTINE, RUNS, STREAMS, lock_path, plan_path, stream_table
from pipelines.lake.ledger import Ledger
from pipelines.lake.ledger_files import prune_ledgers, read_ledger
from pipelines.lake.table import TableStates, check_evolution
from pipelines.policy.documents import newest_number, policies_in_force
from pipelines.policy.engine import Tagger
from pipelines.runners.engine import Engine
from schemas.topics import Topics

log = structlog.get_logger(__name__)

Fingerprint: TypeAlias = tuple[tuple[str, int, int, int], ...]
IN_PROCESS = Engine()


class RuleBook:
    """The rules in force.

    Args:
        lake: the lake, where rules are stored under their digest.
        contracts: a folder, or "".
        policies: a folder, or "".

    Raises:
        ConfigError: a file is broken, or a contract does not fit the lake's tables.
        ExpressionError: a rule does not compile.
    """

    def __init__(self, lake: Lake, contracts: str, policies: str) -> None:
        self.errors = 0
        self.broken = ""
        self.reloads = 0
        self._lake = lake
        self._contracts = contracts
        self._policies = policies
        self._changes = 0
        self._read: frozenset[str] = frozenset()
        self._labels: tuple[LabelPin, ...] = ()
        self._seen = self._fingerprint()
        self._digest = self._load()

    @property
    def digest(self) -> str:
        """The name of the rules in force."""
        return self._digest

    def refresh(self) -> str:
        """The rules for the next run: read again if a file, or labels that a rule reads, have changed since the last look."""
        seen = self._fingerprint()
        if seen == self._seen and pin_labels(self._lake, self._read) == self._labels:
            return self._digest
        self._seen = seen
        try:
            before, self._digest = self._digest, self._load()
        except (PipelineError, OSError) as error:
            self.errors += 1
            self.broken = str(error)
            log.error("rules_refused", reason=str(error), still_in_force=self._digest[:12], errors=self.errors)  # noqa: TRY400  # the reason says it all
            return self._digest
        self.broken = ""
        self.reloads += 1
        log.info("rules_reloaded", before=before[:12], now=self._digest[:12])
        return self._digest

    def _load(self) -> str:
        policies = policies_in_force(self._lake, self._policies)
        store_code(self._lake, policies, Path(self._policies))
        known = ContractSet.load(self._contracts)
        contracts = tuple(inspected(contract, policies) for contract in known.all())
        # A rule that does not compile must stop here, not the first run. Contracts of chips are in no pins: no device may send by
        # them, and a cut takes the rules as they are when it is committed.
        read = frozenset(name for contract in contracts for name in Tagger.compile(policies, contract).columns)
        for contract in known.derived():
            Tagger.compile(policies, inspected(contract, policies))
        labels = pin_labels(self._lake, read)
        pins = Pins(contracts, policies, labels)
        _check_all_fit(self._lake, sorted({contract.name for contract in contracts}), pins)
        self._read, self._labels = read, labels
        return write_pins(self._lake, pins)

    def _fingerprint(self) -> Fingerprint:
        """Names, sizes, times and inodes of all files: a few stats, no reading."""
        self._changes = newest_number(self._lake, self._changes)
        found: list[tuple[str, int, int, int]] = [("applied", self._changes, 0, 0)]
        for folder in filter(None, (self._contracts, self._policies)):
            try:
                for path in sorted(Path(folder).rglob("*")):
                    stat = path.stat()
                    found.append((str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError as error:
                found.append((f"{folder}: {error}", 0, 0, 0))  # a file that went meanwhile is a change too
        return tuple(found)


def _check_all_fit(lake: Lake, streams: Sequence[str], pins: Pins) -> None:
    """Refuse, with the difference, a contract whose columns the stream's table has with other types."""
    states = TableStates(lake, APP)
    states.look_up([stream_table(stream) for stream in streams])
    for stream in streams:
        schema, _private = stream_shape(stream, pins)
        state = states.get(stream_table(stream))
        differing = [] if state is None else check_evolution(state.fields(), schema)
        if differing:
            shown = "; ".join(differing)
            raise ConfigError(f"contract {stream} does not fit its table: {shown}; give changed columns new names")
    states.keep()


@dataclass(slots=True)
class LoopState:
    """The state of the lake: the ledger after the last committed run, and per bridge the next segment to read."""

    ledger: Ledger
    cursors: dict[str, int]


@contextmanager
def only_loop(lake: Lake, stop: Event | None = None) -> Iterator[Callable[[], None]]:
    """Be the only run loop of this lake, until the process ends however it ends.

    Yields:
        A check that it still is; it raises RefusedError where another one has taken a remote lake over.

    Raises:
        RefusedError: another one is running.
    """
    (lake.root / RUNS).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock_path(lake.root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                f"{lake.root}: another run loop is at work on this lake; leave the work to it, or stop it"
            ) from error
        with lake.store.claimed(LOOP_NAME, "run loop", stop=stop) as check:
            yield check
    finally:
        os.close(descriptor)


class NoReceipts:
    """For a loop that only carries out requests: what it changes is in no receipt."""

    def publish(self, messages: Mapping[str, bytes]) -> None:
        """Leave it to the run loop, which publishes every receipt when it starts."""
        raise RetryLaterError(f"{len(messages)} receipts are left to the run loop")


class RunLoop:
    """Carries out one run at a time.

    Args:
        config: the core's configuration.
        publisher: where receipts go: a sender with a thread of its own, or whatever publishes while the loop waits.
        clock: for the time of a plan.
        engine: where graphs run.
        worker_count: child processes that settle the items of a run; 0: none, the runner's own workers do.

    Raises:
        CorruptLakeError: the ledger of the last committed run is gone.
        ConfigError: a contract or policy cannot be read.
    """

    def __init__(
        self, config: CoreConfig, publisher: Publisher | ReceiptSender, clock: Clock, engine: Engine, worker_count: int = 0
    ) -> None:
        self._config = config
        self._lake = lake_at(config.lake_root)
        self._clock = clock
        limits = Limits(
            config.run.max_envelope_bytes,
            config.run.max_row_bytes,
            config.run.max_image_pixels,
            worker_memory_bytes=config.run.worker_memory_bytes,
        )
        fault_breaker = FaultBreaker(config.run.fault_breaker_share, config.run.fault_breaker_count)
        self._context = RunContext(engine, limits, worker_count, fault_breaker, config.run.max_device_ranges)
        self._state = load_state(self._lake)
        self._receipts = sink_of(publisher, self._lake, Topics(config.broker.namespace), clock)
        self._receipts.mark_pending(self._state.ledger, self._state.ledger.devices_with_receipt())
        self.rules = RuleBook(self._lake, config.contracts, config.policies)
        self._heads: dict[SegmentRef, SegmentHeads] = {}
        self.worker_count = worker_count
        self.runs = 0
        self.segments_skipped = 0

    @property
    def ledger(self) -> Ledger:
        """The ledger after the last committed run."""
        return self._state.ledger

    @property
    def receipts_pending(self) -> int:
        """The number of devices that wait for a receipt."""
        return self._receipts.pending

    @property
    def receipts_failing(self) -> Mapping[str, str]:
        """Devices whose receipt cannot be published, and why."""
        return self._receipts.failing

    def step(self) -> bool:
        """Do one run if anything waits, and let receipts go out; whether a run was done.

        Raises:
            CorruptLakeError: stop; the message says what to restore.
            RetryLaterError: try again later.
        """
        try:
            plan = self.next_plan()
            if plan is not None:
                self._run(plan)
        except OSError as error:
            hint = "is there room, and may it be written? Nothing is lost meanwhile"
            raise RetryLaterError(f"{self._lake.root}: the disk refuses ({error}); {hint}") from error
        self._receipts.step()
        return plan is not None

    def carry_out_requests(self) -> None:
        """Do what people ask, and nothing else; a run that a crash has left comes first.

        Raises:
            PipelineError: as `step`.
        """
        left = read_plan(self._lake, self._state.ledger.run + 1)
        if left is not None:
            self._run(left)
        look_again(self._lake)
        while (plan := self._next_replay(self._state.ledger.run + 1)) is not None:
            self._run(plan)

    def next_plan(self) -> Plan | None:
        """The plan of the next run, or the one that an interrupted run left; None where nothing has landed."""
        run = self._state.ledger.run + 1
        self._heads = {}
        left = read_plan(self._lake, run)
        if left is not None:
            log.info("run_resumed", run=run)
            return left
        requested = self._next_replay(run)
        if requested is not None:
            return requested
        found = find_segments(self._lake, self._state.cursors, self._config.run.max_segments)
        if not found:
            return None
        found = [self._checked_segment(segment) for segment in found]
        plan = make_plan(run, self._clock.now_ms() * 1_000, self.rules.refresh(), self._state.cursors, found)
        if plan is not None:
            write_plan(self._lake, plan)
        return plan

    def _next_replay(self, run: int) -> Plan | None:
        """The next piece of the oldest request; a request of which nothing is left is forgotten."""
        while (requested := oldest_request(self._lake)) is not None:
            path, request = requested
            now_us = self._clock.now_ms() * 1_000
            plan = replay_plan(self._lake, run, now_us, self.rules.refresh(), dict(self._state.cursors), request)
            if plan is not None:
                write_plan(self._lake, plan)
                return plan
            log.info("request_done", kind=request.kind, rows=len(request.ids))
            forget_request(self._lake, path)
        return None

    def _checked_segment(self, segment: SegmentRef) -> SegmentRef:
        """Bytes that cannot be trusted are skipped with a log line: their samples are not settled, so devices send them again."""
        if segment.skip_reason:
            log.error("segment_skipped", segment=str(segment_path(self._lake, segment)), reason=segment.skip_reason)
            return segment
        try:
            self._heads[segment] = read_heads(self._lake, segment)
        except CorruptLakeError as error:
            log.exception("segment_skipped", segment=str(segment_path(self._lake, segment)))
            return msgspec.structs.replace(segment, skip_reason=str(error))
        return segment

    def _run(self, plan: Plan) -> None:
        started = self._clock.monotonic_s()
        try:
            outcome = execute(self._lake, plan, self._state.ledger, self._context, self._heads)
        except CorruptLakeError as error:
            if not self._is_stale(plan):
                raise
            # A segment rotted after it was planned. Nothing of this run is prepared, let alone committed: plan it again.
            self._lake.delete(plan_path(self._lake.root, plan.run))
            raise RetryLaterError(f"run {plan.run} is planned again: {error}") from error
        before, self._state = self._state.ledger, LoopState(outcome.ledger, dict(plan.next_numbers))
        prune_ledgers(self._lake, before, outcome.ledger)
        self._receipts.mark_pending(outcome.ledger, outcome.devices, outcome.beyond)
        self.runs += 1
        self.segments_skipped += sum(bool(segment.skip_reason) for segment in plan.segments)
        took_ms = round((self._clock.monotonic_s() - started) * 1_000)
        log.info("run_committed", run=plan.run, segments=len(plan.segments), devices=len(outcome.devices), took_ms=took_ms)

    def _is_stale(self, plan: Plan) -> bool:
        """Whether nothing of the plan is prepared and a segment of it is no longer what it was."""
        if read_prepared(self._lake, plan.run) is not None:
            return False
        return any(not segment.skip_reason and self._checked_segment(segment).skip_reason for segment in plan.segments)


def load_state(lake: Lake) -> LoopState:
    """Load the state of the lake, by the one pointer to the truth: the transaction of the commits table.

    Raises:
        CorruptLakeError: the plan or ledger of the last committed run is gone, or tables have seen later runs.
    """
    run = committed_run(lake, COMMITS)
    check_of_one_time(lake, run, [*(stream_table(name) for name in lake.folders(STREAMS)), QUARANTINE])
    if run == 0:
        return LoopState(Ledger(), {})
    plan = read_plan(lake, run)
    if plan is None:
        raise CorruptLakeError(f"{lake.root}: run {run} is committed, its plan in runs/ is gone; restore it from a copy")
    return LoopState(read_ledger(lake, run), dict(plan.next_numbers))
