"""One source's way into the spool: read, encode, append; several batches on their way at once, positions always in order."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import structlog

from catchment.runtime.clock import Clock, doubled_s
from edge_agent.capture.encode import Encoder, RetryingEncoder, join_batches, last_position, may_join
from edge_agent.capture.predictions import PredictionWindow
from edge_agent.capture.relay import PendingAppend, Relay
from edge_agent.capture.transforms import Transforms
from edge_agent.config import SourceConfig
from edge_agent.errors import ConfigError, SourceAgainError, SourceEndedError, SourceError, SpoolFullError
from edge_agent.rules.rule_filter import RuleFilter, apply_filter
from edge_agent.sections import MAX_PRIORITY
from edge_agent.sources.api import SampleBatch, Source
from edge_agent.sources.rows.mapping import FilledColumns, explain_unfilled
from edge_agent.spool.records import Append, Passed
from edge_agent.spool.spool import Spool
from schemas.contract import Contract
from schemas.envelope import Span
from schemas.ids import StreamName

# How long a source that failed rests before it is built again. Pure.
RESTART_FIRST_S = 0.5
RESTART_CAP_S = 60.0
# A source that gave samples for so many times its last rest is well again; one that gives a few and fails each time is not.
_WELL_FACTOR = 4


@dataclass(slots=True)
class Restarts:
    """Twice as long each time, from the first on again once the source was well."""

    failures: int = 0
    rest_s: float = 0.0

    def next_s(self, ran_s: float, *, gave: bool, is_done: bool) -> float:
        """The rest before the next try.

        Args:
            ran_s: how long it ran.
            gave: whether it gave samples.
            is_done: whether it ended as it should and only begins again.
        """
        if gave and (is_done or ran_s >= _WELL_FACTOR * self.rest_s):
            self.failures = 0
        self.rest_s = doubled_s(RESTART_FIRST_S, RESTART_CAP_S, self.failures)
        self.failures += 1
        return self.rest_s


_IDLE_S = 0.1
# Batches not durable yet: enough to fill a commit, few enough to stay small. The spool bounds their bytes.
_MAX_UNDER_WAY = 64
# Small batches that follow one another at once share envelopes up to this many samples, within this time.
_JOINED_SAMPLES = 1_000
_HOLD_S = 0.01
# A position is noted no oftener than this while nothing is stored: each note is a write to flash.
_PASS_EVERY_S = 1.0

log = structlog.get_logger(__name__)


class Tap:
    """Copies of the next samples of a source, for a trial that shows them.

    Attributes:
        batches: the copies, in order.
    """

    def __init__(self, samples: int, rejected: Counter[str], left_out: Counter[str]) -> None:
        self._left = samples
        self._before = (rejected, left_out)
        self.batches: list[SampleBatch] = []

    @property
    def is_full(self) -> bool:
        """Whether all that was wanted is there."""
        return self._left <= 0

    def add(self, batch: SampleBatch) -> None:
        """Copy of these what is still wanted."""
        rows = min(self._left, len(batch))
        if rows > 0:
            self.batches.append(batch.take(range(rows)))
            self._left -= rows

    def since(self, rejected: Counter[str], left_out: Counter[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Counts since the copying began."""
        before_rejected, before_left_out = self._before
        return dict(rejected - before_rejected), dict(left_out - before_left_out)


Groups = tuple[tuple[int, SampleBatch], ...]


def urgent_first(groups: Groups) -> Groups:
    """The groups with their urgent samples in groups of their own, of the highest priority there is."""
    found: list[tuple[int, SampleBatch]] = []
    for priority, batch in groups:
        if batch.urgent is None or not any(batch.urgent):
            found.append((priority, batch))
            continue
        for is_urgent in (True, False):
            rows = [row for row, urgent in enumerate(batch.urgent) if urgent is is_urgent]
            if rows:
                found.append((MAX_PRIORITY if is_urgent else priority, batch.take(rows)))
    return tuple(found)


class SourcePump:
    """Runs one source in the calling thread.

    Args:
        config: the source's own table.
        build: builds the source where it goes on.
        encoder: of the stream's contract.
        spool: where the samples go.
        transform: what becomes of a batch before it is stored.
        clock: wall clock for the envelopes.
        rule_filter: the core's rules: which samples are stored, and what they are worth; None: all, as configured.
        choose: of the sources that have a position, the one that this one goes on from if it has none; None: from nothing.

    Attributes:
        label: what the source is called in status and health; empty: its kind and stream.
    """

    def __init__(
        self,
        config: SourceConfig,
        build: Callable[[bytes | None], Source],
        encoder: Encoder,
        spool: Spool,
        transform: Transforms,
        clock: Clock,
        rule_filter: RuleFilter | None = None,
        choose: Callable[[Sequence[str]], str | None] | None = None,
    ) -> None:
        self._config = config
        self._build = build
        self._encoder = RetryingEncoder(encoder, transform.rejects)
        self._stop = threading.Event()
        self._spool = spool
        self._transform = transform
        self._rule_filter = rule_filter
        self._choose = choose
        self.label = ""
        self._clock = clock
        self._relay = Relay(spool, config.name)
        self._predicting = None if transform.predictor is None else PredictionWindow(transform.predictor)
        self._under_way: deque[tuple[Future[Span] | PendingAppend, tuple[SampleBatch, ...]]] = deque()
        self._held: list[SampleBatch] = []
        self._held_samples = 0
        self._held_since_s = 0.0
        self._passed: list[SampleBatch] = []
        self._passed_s = float("-inf")
        self._left_out: Counter[str] = Counter()
        self._source: Source | None = None
        self._rejected_before: dict[str, int] = {}
        self._restarts = Restarts()
        self._gave = False
        self._filled = FilledColumns(encoder.contract)
        self._tap: Tap | None = None
        self._failing = ""

    @property
    def failing(self) -> str:
        """The reason why the source does not run and is retried, or gives nothing of use; else empty. From any thread."""
        if self._failing:
            return self._failing
        never = self._filled.never_filled
        return explain_unfilled(self._encoder.contract, never) if never else getattr(self._source, "complaint", "")

    @property
    def name(self) -> str:
        """Kind and stream, and where another source shares them, or it has a name of its own, what tells it apart."""
        return self.label or f"{self._config.kind}:{self._config.stream}"

    def rejected(self) -> dict[str, int]:
        """Reason -> how many rows, cells or files became no sample since the agent started; any thread may ask."""
        now: dict[str, int] = getattr(self._source, "rejected", {})
        total = Counter(self._rejected_before) + Counter(now)
        return dict(total)

    @property
    def config(self) -> SourceConfig:
        """The source's own table."""
        return self._config

    @property
    def contract(self) -> Contract:
        """Of its stream."""
        return self._encoder.contract

    @property
    def left_out_names(self) -> tuple[str, ...]:
        """Names in the source that fill no column."""
        return tuple(getattr(self._source, "left_out", ()))

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name for it, where the source knows."""
        return dict(getattr(self._source, "matched", {}))

    def tap(self, samples: int) -> None:
        """Begin to copy samples as they would be stored, at most so many. From any thread, as the other two."""
        self._tap = Tap(samples, Counter(self.rejected()), Counter(self.left_out()))

    def tapped(self) -> Tap | None:
        """The copies; None where nobody asked."""
        return self._tap

    def untap(self) -> None:
        """Copy no more."""
        self._tap = None

    def _copy(self, batch: SampleBatch) -> None:
        tap = self._tap
        if tap is not None:
            tap.add(batch)

    def left_out(self) -> dict[str, int]:
        """Reason -> how many samples were read and, by configuration or contract, not stored."""
        return dict(self._transform.rejects.counts)

    def run(self, stop: threading.Event) -> None:
        """Pump until the source ends or `stop` is set; a failed source is built again after a while.

        Raises:
            SpoolError: the spool is broken.
        """
        self._stop = stop
        while not stop.is_set():
            began_s, self._gave = self._clock.monotonic_s(), False
            try:
                self._pump(stop)
            except SourceEndedError:
                self._filled.end()
                log.info("source_ended", source=self._config.kind, stream=self._config.stream)
                return
            except (SourceError, ConfigError, SpoolFullError, OSError) as error:
                is_done = isinstance(error, SourceAgainError)
                wait_s = self._restarts.next_s(self._clock.monotonic_s() - began_s, gave=self._gave, is_done=is_done)
                self._failing = "" if is_done else str(error)
                where = {"source": self._config.kind, "stream": self._config.stream}
                if is_done:
                    log.debug("source_restarted", **where, error=str(error), retry_in_s=wait_s)
                else:
                    log.warning("source_failed", **where, error=str(error), retry_in_s=wait_s)
                stop.wait(wait_s)

    def _pump(self, stop: threading.Event) -> None:
        known = self._position()
        source = self._build(known)
        self._source = source
        begins = getattr(source, "position", None)
        try:
            if known is None and begins is not None:
                # What "now" was at the first start must be the same at the second.
                self._spool.note(Passed(StreamName(self._config.stream), self._config.name, begins, ()))
            while not stop.is_set():
                batch = source.read(self._config.max_samples)
                if unfilled := getattr(source, "unfilled", ()):
                    # Whatever is read would be refused by the core: it is left where it is.
                    raise ConfigError(explain_unfilled(self._encoder.contract, unfilled))
                self._failing = ""
                if batch is not None and len(batch) > 0:
                    self._take(batch)
                    self._store_predicted()
                    self._settle_up(source, _MAX_UNDER_WAY)
                    self._pass_over(source)
                    self._gave = True
                    continue
                self._append()
                self._store_predicted()
                self._settle_up(source, 0)
                self._pass_over(source)
                self._rest(stop)
        finally:
            self._end(source, stop)

    def _end(self, source: Source, stop: threading.Event) -> None:
        try:
            self._append()
            predictor = self._transform.predictor
            self._store_predicted(0.0 if stop.is_set() or predictor is None else predictor.last_wait_s)
            # The batches already handed in become durable whatever ended the source: its position counts them.
            self._settle_up(source, 0)
            self._passed_s = float("-inf")
            self._pass_over(source)
        finally:
            self._forget_predictions()
            self._relay.close()
            self._rejected_before = self.rejected()
            self._source = None
            source.close()  # else its port or device stays taken, and it can never be opened again

    def _position(self) -> bytes | None:
        known = self._spool.position(self._config.name)
        if known is None and self._choose is not None:
            self._spool.inherit(self._config.name, self._choose)
            known = self._spool.position(self._config.name)
        return known

    def _take(self, batch: SampleBatch) -> None:
        """Hold a batch back for company, no longer than a commit would linger anyway."""
        if self._held and not may_join(self._held[0], batch):
            self._append()
        if not self._held:
            self._held_since_s = self._clock.monotonic_s()
        self._held.append(batch)
        self._held_samples += len(batch)
        is_late = self._clock.monotonic_s() - self._held_since_s > _HOLD_S
        if is_late or batch.payloads is not None or self._held_samples >= _JOINED_SAMPLES:
            self._append()

    def _append(self) -> None:
        if not self._held:
            return
        held, self._held, self._held_samples = tuple(self._held), [], 0
        batch = self._transform.before(join_batches(held))
        if self._predicting is None:
            self._store(batch, held)
        else:
            self._predicting.add(batch, held, self._stop)

    def _store_predicted(self, drain_s: float | None = None) -> None:
        """Store the batches that the models have looked at; with `drain_s` all, after at most so long."""
        if self._predicting is not None:
            found = self._predicting.ready() if drain_s is None else self._predicting.drain(drain_s)
            for batch, held in found:
                self._store(batch, held)

    def _forget_predictions(self) -> None:
        """What is left after a failure to store is read again; else it would be stored twice."""
        if self._predicting and (lost := self._predicting.clear()):
            self._transform.rejects.count("row: it waited for a model when its source failed", times=lost)

    def _rest(self, stop: threading.Event) -> None:
        """Nothing was read: wait a little, or until a model has answered."""
        if self._predicting:
            self._predicting.wait(_IDLE_S)
        else:
            stop.wait(_IDLE_S)

    def _store(self, batch: SampleBatch, held: tuple[SampleBatch, ...]) -> None:
        batch = self._transform.after(batch)
        self._copy(batch)
        filtered = apply_filter(self._rule_filter, batch, self._config.priority)
        groups = self._useful(urgent_first(filtered.groups))
        left_out = self._left_out + Counter(filtered.left_out)
        created_us = self._clock.now_ms() * 1000
        highest = max((priority for priority, _ in groups), default=0)
        envelopes = tuple(
            envelope if priority == highest else replace(envelope, priority=priority)
            for priority, group in groups
            for envelope in self._encoder.encode(group, created_us, self._stop)
        )
        if not envelopes:
            self._passed.extend(held)
            self._left_out = left_out
            return
        append = Append(
            stream=StreamName(self._config.stream),
            envelopes=envelopes,
            priority=highest,
            source=self._config.name,
            position=last_position((*self._passed, batch)),
            waits_for_room=self._config.waits_for_room,
            left_out=tuple(left_out.items()),
        )
        # What was skipped lies before this batch: its position, and what it left out, cover both.
        passed, self._passed, self._left_out = tuple(self._passed), [], Counter()
        self._under_way.append((self._relay.append(append), (*passed, *held)))

    def _useful(self, groups: Groups) -> Groups:
        """The groups as they are; none where a required column was never filled in all the source gave.

        Raises:
            ConfigError: likewise, and the source can give them again when its configuration is corrected.
        """
        for _, group in groups:
            self._filled.see(group.columns, len(group))
        never = self._filled.never_filled
        if not never or not groups:
            return groups
        if any(group.position is not None for _, group in groups):
            raise ConfigError(explain_unfilled(self._encoder.contract, never))
        reason = f"row: required column {', '.join(never)} is never filled; the core would refuse it"
        self._transform.rejects.count(reason, times=sum(len(group) for _, group in groups))
        return ()

    def _pass_over(self, source: Source) -> None:
        """Nothing of these batches is to be stored: remember only that they were read, now and then."""
        now_s = self._clock.monotonic_s()
        if not self._passed or now_s - self._passed_s < _PASS_EVERY_S:
            return
        self._passed_s = now_s
        self._settle_up(source, 0)
        passed, self._passed = self._passed, []
        left_out, self._left_out = tuple(self._left_out.items()), Counter()
        position = last_position(passed)
        if left_out or position is not None:
            self._spool.note(Passed(StreamName(self._config.stream), self._config.name, position, left_out))
        for batch in passed:
            source.stored(batch)

    def _settle_up(self, source: Source, most: int) -> None:
        """Wait until at most so many batches are not durable, and tell the source of those that are."""
        while self._under_way and (len(self._under_way) > most or self._under_way[0][0].done()):
            future, batches = self._under_way.popleft()
            try:
                future.result()
            except SpoolFullError:
                self._abandon(batches)
                raise
            for batch in batches:
                source.stored(batch)

    def _abandon(self, batches: tuple[SampleBatch, ...]) -> None:
        """There was no room for these when the source was to stop, so what follows is refused, too: read again, or counted."""
        lost = [*batches]
        while self._under_way:
            future, later = self._under_way.popleft()
            # Waited for: what is still on its way when a successor hands in would stand between the two.
            if future.exception() is not None:
                lost += later
        if count := sum(len(batch) for batch in lost if batch.position is None):
            self._transform.rejects.count("row: the spool was full when the source stopped", times=count)
