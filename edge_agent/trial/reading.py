"""Read the first samples of one source for a trial: nothing is stored, acknowledged, moved, deleted or logged."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import structlog

from catchment.runtime.clock import Clock, SystemClock
from edge_agent.capture.transforms import build_transforms
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.errors import AgentError, SourceAgainError, SourceEndedError
from edge_agent.sources.api import SampleBatch, Source
from edge_agent.sources.registry import build_trial_source
from edge_agent.sources.rows.mapping import explain_unfilled
from edge_agent.trial.result import Trial, tried_columns, tried_samples
from schemas.contract import Contract

_IDLE_S = 0.05
# Long enough for a source to open and close, next to what it waits for samples.
_GRACE_S = 20.0
# Options that only pace a source, or begin it where there may be nothing yet.
_AT_ONCE: Mapping[str, Mapping[str, Any]] = {
    "replay": {"rate_hz": 0.0},
    "tail": {"start": "begin"},
    "zeek": {"start": "begin"},
    "directory": {"end_when_idle": True, "max_settle_s": 0.0},
    "exec": {"restart": False},
    "camera": {"as_fast_as_it_goes": True, "loop": False},
}


@contextmanager
def quiet_log() -> Iterator[None]:
    """Log nothing while this lasts."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    try:
        yield
    finally:
        structlog.configure(**before)


def _drop(*_: object) -> NoReturn:
    raise structlog.DropEvent


class TrialReader:
    """Reads one source in a thread of its own, so that one that does not answer cannot hold the others up.

    Args:
        source: as configured.
        contract: of its stream.
        key: of keyed hashes, where the contract asks for those.
        clock: handed to the source.
    """

    def __init__(self, source: SourceConfig, contract: Contract, key: bytes = b"", clock: Clock | None = None) -> None:
        self._source = source
        self._contract = contract
        self._clock = clock or SystemClock()
        self._transform = build_transforms(contract, source.report, key, ClockWatch(self._clock), None)
        self._stop = threading.Event()
        self._done = threading.Event()
        self._batches: list[SampleBatch] = []
        self._built: Source | None = None
        self._failure = ""
        self._rejected: dict[str, int] = {}
        self._left_out_names: tuple[str, ...] = ()
        self._matched: dict[str, str] = {}

    def read(self, samples: int, wait_s: float) -> Trial:
        """The first samples, at most so many, that come within so many seconds.

        Raises:
            KeyboardInterrupt: the person lost patience; the source is closed before.
        """
        thread = threading.Thread(target=self._run, args=(samples, time.monotonic() + wait_s), daemon=True)
        thread.start()
        # Not joined: a join that a signal interrupts takes the thread for ended.
        try:
            self._done.wait(wait_s + _GRACE_S)
        finally:
            self._stop.set()
            self._done.wait(_GRACE_S)  # a program that was started must be ended before this one ends
        if not self._done.is_set():
            self._failure = self._failure or f"does not answer within {wait_s:.0f} s"
        return self._trial()

    def _run(self, samples: int, until_s: float) -> None:
        try:
            self._built = build_trial_source(self._source.kind, self._options(), self._contract, self._clock)
            self._take(self._built, samples, until_s)
        except (SourceEndedError, SourceAgainError):
            pass  # all there is was read
        except (AgentError, OSError) as error:
            self._failure = str(error)
        finally:
            try:
                if self._built is not None:
                    self._look(self._built)
                    self._built.close()
            finally:
                self._done.set()

    def _options(self) -> dict[str, Any]:
        return {**self._source.resolved, **_AT_ONCE.get(self._source.kind, {})}

    def _take(self, source: Source, samples: int, until_s: float) -> None:
        taken = 0
        while taken < samples and not self._stop.is_set() and time.monotonic() < until_s:
            batch = source.read(min(samples - taken, self._source.max_samples))
            if unfilled := getattr(source, "unfilled", ()):
                self._failure = explain_unfilled(self._contract, unfilled)
            if batch is None or not len(batch):
                self._stop.wait(_IDLE_S)
                continue
            self._look(source)
            batch = self._transform(batch)
            batch = batch.take(range(min(len(batch), samples - taken)))
            taken += len(batch)
            self._batches.append(batch)

    def _look(self, source: Source) -> None:
        self._rejected = dict(getattr(source, "rejected", {}))
        self._left_out_names = tuple(getattr(source, "left_out", ()))
        self._matched = dict(getattr(source, "matched", {}))
        self._failure = self._failure or getattr(source, "complaint", "")

    def _trial(self) -> Trial:
        seen = SourceCounts(
            self._rejected, dict(self._transform.rejects.counts), self._left_out_names, self._matched, self._failure
        )
        return make_trial(self._source, self._contract, list(self._batches), seen)


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Counts of a source beyond its samples; the fields are those of `Trial`, `matched` is column -> the source's name."""

    rejected: dict[str, int]
    left_out: dict[str, int]
    left_out_names: tuple[str, ...] = ()
    matched: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""
    notes: tuple[str, ...] = ()


def make_trial(source: SourceConfig, contract: Contract, batches: Sequence[SampleBatch], seen: SourceCounts) -> Trial:
    """A trial of these batches, as they would be stored."""
    rules = ", ".join(rule.name for rule in contract.quality)
    more = [f"quality rules are judged in the core alone: {rules}"] if rules else []
    more += ["columns of inspectors are not tried"] if source.inspect else []
    return Trial(
        source=source.name,
        kind=source.kind,
        stream=source.stream,
        contract_version=contract.version,
        columns=tried_columns(batches, contract, seen.matched),
        samples=tried_samples(batches, contract),
        rejected=seen.rejected,
        left_out=seen.left_out,
        left_out_names=seen.left_out_names,
        failure=seen.failure,
        notes=(*seen.notes, *more),
    )
