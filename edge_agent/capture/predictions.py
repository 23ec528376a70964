"""Batches that wait for a model, in the order in which they were read.

Capture reads on while a model answers. What waits is bounded twice: a batch for which the model's queue has no room gets no
prediction, and once the batches that wait hold too many bytes, the oldest is stored as it is.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edge_agent.sources.api import SampleBatch

_MAX_BATCHES = 256
_TURN_S = 0.05


class PendingPrediction(Protocol):
    """A batch that a model looks at."""

    @property
    def is_done(self) -> bool:
        """Whether every sample of it has its answer, or will never have one."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is done, at most so long; whether it is."""
        ...

    def take(self) -> SampleBatch:
        """Return the batch with the answers there are; the others stay null, and are counted."""
        ...


class Predictor(Protocol):
    """Models that look at a stream's samples, on a thread of their own.

    Attributes:
        max_held_bytes: payloads that may wait behind the oldest batch.
        waits: whether capture waits for the models instead of going on without a prediction.
        last_wait_s: how long a source that ends waits for the predictions under way.
    """

    max_held_bytes: int
    waits: bool
    last_wait_s: float

    def submit(self, batch: SampleBatch) -> PendingPrediction:
        """Take a batch. Never blocks."""
        ...


class PredictionWindow:
    """The batches of one source that a model looks at. Used by the source's thread alone.

    Args:
        predictor: the models.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._waiting: deque[tuple[PendingPrediction, tuple[SampleBatch, ...], int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, batch: SampleBatch, held: tuple[SampleBatch, ...], stop: threading.Event) -> None:
        """Hand a batch to the models; with `waits`, once those before it have their answers, or at a stop."""
        while self._predictor.waits and self._waiting and not stop.is_set():
            if self._waiting[-1][0].wait(_TURN_S):
                break
        size = _payload_bytes(batch)
        self._waiting.append((self._predictor.submit(batch), held, size))
        self._bytes += size

    def ready(self) -> Iterator[tuple[SampleBatch, tuple[SampleBatch, ...]]]:
        """The batches to store now, in order, each with those it was joined from."""
        while self._waiting and (self._waiting[0][0].is_done or self._is_too_much()):
            yield self._next()

    def drain(self, wait_s: float) -> Iterator[tuple[SampleBatch, tuple[SampleBatch, ...]]]:
        """All batches, after at most so long; what has no answer by then gets none."""
        until_s = time.monotonic() + wait_s
        while self._waiting:
            self._waiting[0][0].wait(max(0.0, until_s - time.monotonic()))
            yield self._next()

    def clear(self) -> int:
        """Forget what could not be stored; how many samples of it cannot be read again."""
        lost = sum(len(batch) for _, held, _ in self._waiting for batch in held if batch.position is None)
        for pending, _, _ in self._waiting:
            pending.take()
        self._waiting.clear()
        self._bytes = 0
        return lost

    def wait(self, seconds: float) -> None:
        """Wait until the oldest batch has its answers, at most so long."""
        self._waiting[0][0].wait(seconds)

    def _is_too_much(self) -> bool:
        # The oldest one does not count: it is in memory anyway, and a model must be able to finish it.
        behind = self._bytes - self._waiting[0][2]
        return not self._predictor.waits and (behind > self._predictor.max_held_bytes or len(self._waiting) > _MAX_BATCHES)

    def _next(self) -> tuple[SampleBatch, tuple[SampleBatch, ...]]:
        pending, held, size = self._waiting.popleft()
        self._bytes -= size
        return pending.take(), held


def _payload_bytes(batch: SampleBatch) -> int:
    return sum(len(payload) for payload in batch.payloads or () if payload is not None and not isinstance(payload, Path))
