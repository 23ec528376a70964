"""The queue before the models of one stream: capture hands batches in and goes on; a thread of its own asks the models.

The queue is bounded. A sample for which there is no room gets no prediction and is counted, as is one for whose answer capture
did not wait any longer.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from edge_agent.sources.api import SampleBatch, Scalar
from schemas.model_tasks import SHADOW_LABEL

_CLOSE_S = 5.0
_LAST_WAIT_S = 5.0


class StreamModels(Protocol):
    """The models of one stream."""

    def columns(self) -> tuple[str, ...]:
        """The columns they fill; none while no model is in use."""
        ...

    def wanted_rows(self, batch: SampleBatch) -> Sequence[int]:
        """The samples that they look at."""
        ...

    def predict(self, batch: SampleBatch, rows: Sequence[int]) -> Sequence[Mapping[str, Scalar]]:
        """Ask the models about some samples; for each the columns that got a value."""
        ...

    def count(self, outcome: str, times: int) -> None:
        """Count samples that no model was judged about."""
        ...

    def rows_at_once(self, batch: SampleBatch) -> int:
        """How many samples of a batch are judged about together."""
        ...


@dataclass(frozen=True, slots=True)
class JudgedSamples:
    """Samples that the models were just judged about.

    Attributes:
        batch: of the samples.
        rows: their places in it.
        answers: columns and values for each.
        age_s: since the batch came to the queue.
        models_s: what of it the models took.
    """

    batch: SampleBatch
    rows: Sequence[int]
    answers: Sequence[Mapping[str, Scalar]]
    age_s: float
    models_s: float


class QueuedBatch:
    """A batch on its way through the models. Made by the queue; any thread may call."""

    def __init__(self, batch: SampleBatch, columns: tuple[str, ...], rows: Sequence[int], models: StreamModels) -> None:
        self.batch = batch
        self.came_s = time.monotonic()
        self._models = models
        self._open = set(rows)
        self._values: dict[str, list[Scalar]] = {name: [None] * len(batch) for name in columns}
        self._urgent = [False] * len(batch)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self.is_taken = False
        self._end_if_done()

    @property
    def is_done(self) -> bool:
        """Whether every sample has its answer, or will never have one."""
        return self._done.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is done, at most so long; whether it is."""
        return self._done.wait(timeout_s)

    def put(self, rows: Sequence[int], answers: Sequence[Mapping[str, Scalar]]) -> None:
        """Enter the answers for some samples; too late is no harm."""
        with self._lock:
            if not self.is_taken:
                for row, answer in zip(rows, answers, strict=True):
                    self._urgent[row] = any(name.endswith(SHADOW_LABEL) for name in answer)
                    for name, value in answer.items():
                        if name in self._values:
                            self._values[name][row] = value
                self._open.difference_update(rows)
            self._end_if_done()

    def take(self) -> SampleBatch:
        """Return the batch with the answers there are; the samples that still wait are counted as late."""
        with self._lock:
            self.is_taken = True
            late, self._open = len(self._open), set()
            self._done.set()
        if late:
            self._models.count("late", late)
        batch = self.batch.with_columns(self._values) if self._values else self.batch
        return replace(batch, urgent=self._urgent) if any(self._urgent) else batch

    def _end_if_done(self) -> None:
        if not self._open:
            self._done.set()


class PredictionQueue:
    """Takes batches of one stream; answers come in their order.

    Args:
        name: of the thread.
        models: judged about each sample.
        max_waiting: questions that may wait, those under way included: one for each picture, or for so many rows at once.
        max_held_bytes: payloads that may wait behind the oldest batch.
        waits: whether capture waits instead of going on without a prediction; then there is always room.
        last_wait_s: how long a source that ends waits for the predictions under way.
        on_answers: called on the queue's thread right after the models have answered, before anything is stored.
    """

    def __init__(
        self,
        name: str,
        models: StreamModels,
        *,
        max_waiting: int,
        max_held_bytes: int,
        waits: bool = False,
        last_wait_s: float = _LAST_WAIT_S,
        on_answers: Callable[[JudgedSamples], None] | None = None,
    ) -> None:
        self._on_answers = on_answers
        self.max_held_bytes = max_held_bytes
        self.waits = waits
        self.last_wait_s = last_wait_s
        self._name = name
        self._models = models
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting = 0
        self._jobs: queue.SimpleQueue[tuple[QueuedBatch, Sequence[int]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, batch: SampleBatch) -> QueuedBatch:
        """Take a batch. Never blocks: samples for which there is no room get no prediction."""
        columns = self._models.columns()
        wanted = self._models.wanted_rows(batch) if columns else ()
        at_once = self._models.rows_at_once(batch)
        with self._lock:
            room = len(wanted) if self.waits else max(0, self._max_waiting - self._waiting) * at_once
            rows = () if self._is_closed else wanted[:room]
            self._waiting += -(-len(rows) // at_once)
            if rows and self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        if len(wanted) > len(rows):
            self._models.count("skipped", len(wanted) - len(rows))
        job = QueuedBatch(batch, columns, rows, self._models)
        if rows:
            self._jobs.put((job, rows))
        return job

    def close(self) -> None:
        """End the thread after the request under way."""
        with self._lock:
            self._is_closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while (found := self._jobs.get()) is not None:
            job, rows = found
            at_once = self._models.rows_at_once(job.batch)
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                if not job.is_taken and not self._is_closed:
                    self._ask(job, some)
                with self._lock:
                    self._waiting -= 1
            del found, job, rows  # the payloads, while nothing comes

    def _ask(self, job: QueuedBatch, rows: Sequence[int]) -> None:
        began_s = time.monotonic()
        answers = self._models.predict(job.batch, rows)
        if self._on_answers is not None:
            now_s = time.monotonic()
            self._on_answers(JudgedSamples(job.batch, rows, answers, now_s - job.came_s, now_s - began_s))
        job.put(rows, answers)
