"""Asks the loaded model about pictures, on the threads of capture: no exceptions, no disk, and a bounded wait."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from edge_agent.errors import ModelError
from edge_agent.models.errors import ModelBusyError, ModelDiedError, ModelStoppedError, UnreadablePictureError
from edge_agent.models.model_process import ModelProcess
from edge_agent.sources.api import SampleBatch, Scalar

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelProblem:
    """What went wrong with the running model since the last look.

    Attributes:
        reason: the last error.
        died: whether its process is gone.
        failures: how many inferences failed in a row.
        answers: how many pictures the process had answered before.
        is_of_the_model: whether the model is to blame, and not a picture that ended the process decoding it.
    """

    reason: str
    died: bool
    failures: int
    answers: int = 0
    is_of_the_model: bool = True


class RunningModel:
    """The model in use, if any. Any thread may call.

    Args:
        on_problem: called without arguments when there is a problem to take.

    Attributes:
        counts: pictures by what became of them: `inferences`, `failures` of the model, `unreadable` pictures, `skipped` while
            the model was starting or busy; and `deaths` of its process.
    """

    def __init__(self, on_problem: threading.Event) -> None:
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._process: ModelProcess | None = None
        self._problem: ModelProblem | None = None
        self._failures = 0
        self._answers = 0
        self._is_expected = False
        self.counts = {"inferences": 0, "failures": 0, "unreadable": 0, "skipped": 0, "deaths": 0}

    @property
    def process(self) -> ModelProcess | None:
        """The process that answers."""
        return self._process

    def use(self, process: ModelProcess | None, *, is_expected: bool = False) -> None:
        """Ask this process from now on, and end the one before.

        Args:
            process: loaded; None: pictures get no prediction.
            is_expected: whether there is a model that will run again, so that pictures without a prediction are counted.
        """
        with self._lock:
            old, self._process = self._process, process
            self._is_expected = is_expected or process is not None
            self._failures, self._answers, self._problem = 0, 0, None
        if old is not None and old is not process:
            old.close()

    def take_problem(self) -> ModelProblem | None:
        """What went wrong since the last call."""
        with self._lock:
            found, self._problem = self._problem, None
            return found

    def annotate(self, batch: SampleBatch) -> SampleBatch:
        """The batch with what the model says about each payload; unchanged while no model is active.

        A picture without an answer keeps its columns null and is counted.
        """
        process = self._process
        if batch.payloads is None or (process is None and not self._is_expected):
            return batch
        answers = [self._predict(process, payload) for payload in batch.payloads]
        spec = None if process is None else process.spec
        columns: dict[str, Sequence[Scalar]] = {
            "model_name": [None if answer is None or spec is None else spec.name for answer in answers],
            "model_version": [None if answer is None or spec is None else spec.version for answer in answers],
            "predicted_label": [None if answer is None else answer[0] for answer in answers],
            "predicted_score": [None if answer is None else answer[1] for answer in answers],
        }
        return replace(batch, columns={**batch.columns, **columns})

    def _predict(self, process: ModelProcess | None, payload: bytes | Path | None) -> tuple[str, float] | None:
        if payload is None:
            return None
        if process is None or process is not self._process:
            self._count("skipped")
            return None
        try:
            answer = process.predict(payload)
        except UnreadablePictureError as error:
            self._unreadable(process, str(error))
        except (ModelBusyError, ModelStoppedError):
            self._count("skipped")
        except ModelDiedError as error:
            self._failed(process, str(error), died=True)
        except (ModelError, OSError) as error:
            self._failed(process, str(error), died=False)
        else:
            with self._lock:
                self.counts["inferences"] += 1
                self._failures = 0
                self._answers += 1
            return answer
        return None

    def _unreadable(self, process: ModelProcess, reason: str) -> None:
        log.debug("picture_unreadable_for_model", reason=reason)
        self._count("unreadable")
        if process.pid is None:
            self._report_problem(process, ModelProblem(reason, died=True, failures=0, is_of_the_model=False))

    def _failed(self, process: ModelProcess, reason: str, *, died: bool) -> None:
        with self._lock:
            self.counts["failures"] += 1
            self.counts["deaths"] += died
            self._failures += 1
            failures = self._failures
        self._report_problem(process, ModelProblem(reason, died=died, failures=failures))

    def _report_problem(self, process: ModelProcess, problem: ModelProblem) -> None:
        with self._lock:
            if process is not self._process:
                return
            problem = replace(problem, answers=self._answers)
            if self._problem is None or not self._problem.died:
                self._problem = problem
            if problem.died:
                self._process = None
        self._on_problem.set()

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1
