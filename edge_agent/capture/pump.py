"""One source's way into the spool: read, encode, append; several batches on their way at once, positions always in order."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import structlog

from edge_agent.capture.batch import SampleBatch, Source
from edge_agent.capture.coalesce import join_batches, may_join
from edge_agent.capture.encode import Encoder
from edge_agent.clock import Clock
from edge_agent.config import SourceConfig
from edge_agent.errors import SourceEndedError, SourceError, SpoolFullError
from edge_agent.spool.records import Append
from edge_agent.spool.spool import Spool
from schemas.envelope import Span
from schemas.ids import StreamName

_IDLE_S = 0.1
_RESTART_FIRST_S = 0.5
_RESTART_CAP_S = 60.0
# Batches not durable yet: enough to fill a commit, few enough to stay small. The spool bounds their bytes.
_MAX_UNDER_WAY = 64
# Small batches that follow one another at once share envelopes up to this many samples, within this time.
_JOINED_SAMPLES = 1_000
_HOLD_S = 0.01

_log = structlog.get_logger(__name__)


class Annotate(Protocol):
    """Adds prediction columns to a batch."""

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """The batch with more columns."""
        ...


class SourcePump:
    """Runs one source in the calling thread.

    Args:
        config: the source's own table.
        build: builds the source where it goes on.
        encoder: of the stream's contract.
        spool: where the samples go.
        annotate: the active model, None without.
        clock: wall clock for the envelopes.
    """

    def __init__(
        self,
        config: SourceConfig,
        build: Callable[[bytes | None], Source],
        encoder: Encoder,
        spool: Spool,
        annotate: Annotate | None,
        clock: Clock,
    ) -> None:
        self._config = config
        self._build = build
        self._encoder = encoder
        self._spool = spool
        self._annotate = annotate
        self._clock = clock
        self._under_way: deque[tuple[Future[Span], tuple[SampleBatch, ...]]] = deque()
        self._held: list[SampleBatch] = []
        self._held_samples = 0
        self._held_since_s = 0.0
        self.failures = 0

    def run(self, stop: threading.Event) -> None:
        """Pump until the source ends or `stop` is set; a failed source is built anew after a while.

        Raises:
            SpoolError: the spool is broken.
        """
        while not stop.is_set():
            try:
                self._pump(stop)
            except SourceEndedError:
                _log.info("source ended", source=self._config.kind, stream=self._config.stream)
                return
            except (SourceError, SpoolFullError, OSError) as error:
                wait_s = min(_RESTART_CAP_S, _RESTART_FIRST_S * 2 ** min(self.failures, 10))
                self.failures += 1
                _log.warning(
                    "source failed", source=self._config.kind, stream=self._config.stream, error=str(error), retry_in_s=wait_s
                )
                stop.wait(wait_s)

    def _pump(self, stop: threading.Event) -> None:
        source = self._build(self._spool.position(self._config.name))
        try:
            while not stop.is_set():
                batch = source.read(self._config.max_samples)
                if batch is not None and len(batch) > 0:
                    self._take(batch)
                    self._settle_up(source, _MAX_UNDER_WAY)
                    self.failures = 0
                    continue
                self._append()
                self._settle_up(source, 0)
                stop.wait(_IDLE_S)
        finally:
            self._append()
            # The batches already handed in become durable whatever ended the source: its position counts them.
            self._settle_up(source, 0)
            source.close()

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
        batch = join_batches(held)
        if self._annotate is not None:
            batch = self._annotate(batch)
        append = Append(
            stream=StreamName(self._config.stream),
            envelopes=self._encoder.encode(batch, self._clock.now_ms() * 1000),
            priority=self._config.priority,
            source=self._config.name,
            position=batch.position,
            waits_for_room=self._config.when_full == "block",
        )
        self._under_way.append((self._spool.append(append), held))

    def _settle_up(self, source: Source, most: int) -> None:
        """Wait until at most so many batches are not durable, and tell the source of those that are."""
        while self._under_way and (len(self._under_way) > most or self._under_way[0][0].done()):
            future, batches = self._under_way.popleft()
            future.result()
            for batch in batches:
                source.stored(batch)
