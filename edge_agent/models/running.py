"""The model in use: asked about pictures on the models' own threads, never on capture's. No exceptions, no disk."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from edge_agent.errors import ModelBusyError, ModelDiedError, ModelError, ModelStoppedError, UnreadablePictureError
from edge_agent.models.model_process import Crop, ModelProcess
from edge_agent.models.tallying import Shadow, VersionTally
from edge_agent.sources.api import SampleBatch, Scalar
from schemas.model import ModelSpec
from schemas.model_tally import ModelTally
from schemas.model_tasks import SHADOW_LABEL, Classify, prediction_columns

log = structlog.get_logger(__name__)

_PLAIN = prediction_columns(Classify())


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
        on_problem: set when there is a problem to take.
        prefix: begins the names of the columns.

    Attributes:
        counts: pictures by what became of them: `inferences`, `failures` of the model, `unreadable` pictures, `skipped` while
            the model was starting or its queue was full, `late` ones whose answer came after capture had gone on; and `deaths` of
            its process.
    """

    def __init__(self, on_problem: threading.Event, prefix: str = "") -> None:
        self._prefix = prefix
        self._names: tuple[str, ...] = _PLAIN
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._process: ModelProcess | None = None
        self._problem: ModelProblem | None = None
        self._failures = 0
        self._answers = 0
        self._is_expected = False
        self._tally: VersionTally | None = None
        self._before: ModelTally | None = None
        self._shadow: Shadow | None = None
        self.counts = {"inferences": 0, "failures": 0, "unreadable": 0, "skipped": 0, "late": 0, "deaths": 0}

    @property
    def process(self) -> ModelProcess | None:
        """The process that answers."""
        return self._process

    def peak_mib(self) -> int:
        """The most memory that the process took; 0 while there is none."""
        process = self._process
        return 0 if process is None else process.peak_mib()

    def use(self, process: ModelProcess | None, *, is_expected: bool = False) -> None:
        """Ask this process from now on, and end the one before.

        Args:
            process: loaded; None: pictures get no prediction.
            is_expected: whether there is a model that will run again, so that pictures without a prediction are counted.
        """
        with self._lock:
            old, self._process = self._process, process
            if process is not None:
                self._names = prediction_columns(process.spec.task)
                self._begin_tally(process.spec.version)
            self._is_expected = is_expected or process is not None
            self._failures, self._answers, self._problem = 0, 0, None
        if old is not None and old is not process:
            old.close()

    def _begin_tally(self, version: int) -> None:
        if self._tally is None or self._tally.version != version:
            self._before = None if self._tally is None else self._tally.frozen()
            self._tally = VersionTally(version)

    def tallies(self) -> tuple[ModelTally, ...]:
        """Sums of the version that runs, and of the one that ran before it."""
        with self._lock:
            found = (None if self._tally is None else self._tally.frozen(), self._before)
        return tuple(each for each in found if each is not None)

    def compare_with(self, shadow: Shadow | None) -> None:
        """Have a candidate look at some of the pictures as well; None: no more. The process before is ended."""
        with self._lock:
            old, self._shadow = self._shadow, shadow
        if old is not None:
            old.process.close()

    @property
    def shadow(self) -> Shadow | None:
        """The comparison under way."""
        return self._shadow

    def take_shadow(self) -> Shadow | None:
        """Stop comparing; the candidate's process goes on."""
        with self._lock:
            found, self._shadow = self._shadow, None
        return found

    def take_problem(self) -> ModelProblem | None:
        """What went wrong since the last call."""
        with self._lock:
            found, self._problem = self._problem, None
            return found

    @property
    def spec(self) -> ModelSpec | None:
        """What the signed metadata say of the model that answers; None: none does now."""
        process = self._process
        return None if process is None else process.spec

    def columns(self) -> tuple[str, ...]:
        """The columns that the model fills; none while there is no model."""
        if self._process is None and not self._is_expected:
            return ()
        names = self._names if self._shadow is None else (*self._names, SHADOW_LABEL)
        return tuple(map(self.column, names))

    def column(self, name: str) -> str:
        """The name of one of its columns, with the prefix."""
        return self._prefix + name

    def annotate(self, batch: SampleBatch) -> SampleBatch:
        """The batch with what the model says about each payload, at once; unchanged while no model is active.

        A picture without an answer keeps its columns null and is counted.
        """
        names = self.columns()
        if batch.payloads is None or not names:
            return batch
        answers = [{} if payload is None else next(iter(self.look_at(payload)), {}) for payload in batch.payloads]
        return batch.with_columns({name: [answer.get(name) for answer in answers] for name in names})

    def look_at(self, payload: bytes | Path, crops: Sequence[Crop] = ()) -> list[dict[str, Scalar]]:
        """Column -> value, for a picture or each of its crops; empty where there is no answer, which is counted."""
        answers = self._ask(lambda process: process.look_at(payload, crops), 1)
        shadow = self._shadow
        if shadow is not None and answers and not crops:
            answers[0] |= self._compare(shadow, payload, answers[0].get(self.column("predicted_label")))
        return answers

    def _compare(self, shadow: Shadow, payload: bytes | Path, ours: Scalar) -> dict[str, Scalar]:
        theirs = shadow.label_of(payload)
        if theirs is None:
            if shadow.failure:
                self._on_problem.set()
            return {}
        with self._lock:
            if self._tally is not None:
                self._tally.note_comparison(str(ours), theirs)
        return {self.column(SHADOW_LABEL): theirs} if theirs != str(ours) else {}

    def look_at_rows(self, rows: Sequence[tuple[float | None, ...]]) -> list[dict[str, Scalar]]:
        """Column -> value, for each row; empty where there is no answer, which is counted."""
        return self._ask(lambda process: process.look_at_rows(rows), len(rows))

    def _ask(self, question: Callable[[ModelProcess], list[dict[str, Any]]], samples: int) -> list[dict[str, Scalar]]:
        process = self._process
        if process is None:
            self.count("skipped", samples)
            return []
        began_s = time.monotonic()
        try:
            answers = question(process)
        except UnreadablePictureError as error:
            self._unreadable(process, str(error))
        except (ModelBusyError, ModelStoppedError):
            self.count("skipped", samples)
        except ModelDiedError as error:
            self._failed(process, str(error), samples, died=True)
        except (ModelError, OSError) as error:
            self._failed(process, str(error), samples, died=False)
        else:
            with self._lock:
                self.counts["inferences"] += samples
                self._failures = 0
                self._answers += samples
                if self._tally is not None:
                    self._tally.note_answers(samples, (time.monotonic() - began_s) * 1_000)
            about: dict[str, Scalar] = {
                self.column("model_name"): process.spec.name,
                self.column("model_version"): process.spec.version,
            }
            return [about | {self.column(name): value for name, value in answer.items()} for answer in answers]
        return []

    def _unreadable(self, process: ModelProcess, reason: str) -> None:
        log.debug("picture_unreadable_for_model", reason=reason)
        self.count("unreadable")
        if process.pid is None:
            self._report_problem(process, ModelProblem(reason, died=True, failures=0, is_of_the_model=False))

    def _failed(self, process: ModelProcess, reason: str, samples: int, *, died: bool) -> None:
        with self._lock:
            self.counts["failures"] += samples
            self.counts["deaths"] += died
            if self._tally is not None:
                self._tally.failures += samples
                self._tally.deaths += died
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

    def refuse_use(self, reason: str) -> None:
        """The model cannot be asked in the way it is configured to: counted as a failure, and told as one."""
        process = self._process
        if process is not None:
            self._failed(process, reason, 1, died=False)

    def count(self, outcome: str, times: int = 1) -> None:
        """Count pictures by what became of them."""
        with self._lock:
            self.counts[outcome] += times
