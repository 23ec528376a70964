"""A model in a process of its own, and the model in use: memory and time are limited, and a crash costs one prediction.

`RunningModel` asks it about pictures on the threads of capture: no exceptions, no disk, and a bounded wait.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import structlog

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Closed, Outcome, Refused
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from edge_agent.errors import (
    ConfigError,
    ModelBusyError,
    ModelDiedError,
    ModelError,
    ModelStoppedError,
    ModelUnfitError,
    UnreadablePictureError,
)
from edge_agent.models.config import DECODED, GoldenRequest, LoadOptions, ModelConfig, PictureRequest, Request
from edge_agent.sources.api import SampleBatch, Scalar
from schemas.model import ModelSpec

log = structlog.get_logger(__name__)

_TARGET = "edge_agent.models.inference:open_classifier"
_NEEDED = ("numpy", "onnxruntime", "PIL")
_MAX_ANSWER_BYTES = 64 * MIB


def check_extra() -> None:
    """Make sure that what a model needs is installed, without loading it into this process.

    Raises:
        ConfigError: something is missing.
    """
    for name in _NEEDED:
        if find_spec(name) is None:
            raise ConfigError(f"a model is configured, but {name} is missing; install catchment[infer]")


class ModelProcess:
    """One model, loaded in a child process once `start` has returned.

    Args:
        path: the ONNX file.
        spec: what the signed metadata say of it.
        config: limits and labels.
    """

    def __init__(self, path: Path, spec: ModelSpec, config: ModelConfig) -> None:
        self.spec = spec
        self._name = f"{spec.name} version {spec.version}"
        self._answer_s = config.max_ms / 1_000
        options = LoadOptions(str(path.absolute()), spec, config.labels)
        limits = WorkerLimits(
            memory_bytes=config.max_memory_mib * MIB,
            cpu_s=max(1, round(self._answer_s)) * 2,
            start_timeout_s=config.max_load_s,
            max_answer_bytes=_MAX_ANSWER_BYTES,
        )
        self._worker = WorkerProcess(WorkerSpec(target=_TARGET, options=msgspec.msgpack.encode(options), limits=limits))

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return self._worker.pid

    def start(self) -> None:
        """Load the model.

        Raises:
            ModelUnfitError: it does not load, or does not take or answer what its metadata say.
            ModelDiedError: its process did not survive it.
            ModelStoppedError: `close` was called in the meantime.
            ModelError: no process can be started at the moment.
        """
        try:
            outcome = self._worker.start()
        except OSError as error:
            raise ModelError(f"{self._name}: its process cannot be started: {error}") from error
        if isinstance(outcome, Refused) and outcome.kind != ModelUnfitError.__name__:
            raise ModelError(f"{self._name} cannot be loaded: {outcome.kind}: {outcome}")
        self._body(outcome, "does not load")

    def answers_to_golden(self) -> list[float]:
        """The answers to the golden input.

        Raises:
            ModelError: it fails on it; ModelDiedError, ModelStoppedError likewise.
        """
        answers: list[float] = self._ask(GoldenRequest(), list[float], "fails on the golden input", None)
        return answers

    def predict(self, payload: bytes | Path) -> tuple[str, float]:
        """The label of a picture and how sure the model is, 0..1.

        Raises:
            UnreadablePictureError: the picture cannot be decoded.
            ModelBusyError: there is no process now, or it is busy with others' pictures for longer than a picture may take.
            ModelDiedError: its process did not survive it.
            ModelError: the model fails on it.
        """
        request = PictureRequest(body=payload) if isinstance(payload, bytes) else PictureRequest(path=str(payload.absolute()))
        answer: tuple[str, float] = self._ask(request, tuple[str, float], "fails", self._answer_s)
        return answer

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _ask(self, request: Request, answer: Any, failure: str, max_wait_s: float | None) -> Any:
        outcome = self._worker.request(msgspec.msgpack.encode(request), self._answer_s, max_wait_s)
        if outcome is None:
            raise ModelBusyError(f"{self._name} does not run, or is busy")
        is_picture = isinstance(request, PictureRequest)
        if is_picture and not isinstance(outcome, Answered | Refused | Closed) and outcome.note != DECODED:
            raise UnreadablePictureError(f"a picture ended the process that decodes it: {outcome}")
        body = self._body(outcome, failure)
        try:
            return msgspec.msgpack.decode(body, type=answer)
        except msgspec.MsgspecError as error:
            raise ModelError(f"{self._name} answers nonsense: {error}") from error

    def _body(self, outcome: Outcome, failure: str) -> bytes:
        if isinstance(outcome, Answered):
            return outcome.body
        if isinstance(outcome, Closed):
            raise ModelStoppedError(f"{self._name} was stopped")
        if not isinstance(outcome, Refused):
            raise ModelDiedError(f"{self._name} {failure}: {outcome}")
        families = {family.__name__: family for family in (ModelUnfitError, UnreadablePictureError)}
        family = families.get(outcome.kind, ModelError)
        if family is ModelError and outcome.kind not in (ModelError.__name__, "RequestTooLarge"):
            raise ModelError(f"{self._name} {failure}: {outcome.kind}: {outcome}")
        if outcome.kind == "RequestTooLarge":
            raise UnreadablePictureError(f"a picture is too large for the model: {outcome}")
        raise family(str(outcome))


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
