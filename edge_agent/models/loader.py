"""Loads a version in a process of its own; each attempt is on disk before it begins."""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from edge_agent.errors import ModelDiedError, ModelError, ModelStoppedError, ModelUnfitError
from edge_agent.models.config import ModelConfig
from edge_agent.models.model_process import ModelProcess
from edge_agent.models.state import MAX_ATTEMPTS, Installed
from edge_agent.models.store import ModelStore
from schemas.model import ModelSpec


# The golden input: what a model must answer before it may look at real pictures.
class Testable(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """What the signed metadata say of it."""
        ...

    def answers_to_golden(self) -> list[float]:
        """Its answers to the golden input."""
        ...


def check_golden(model: Testable) -> None:
    """Run the model on the golden input.

    Raises:
        ModelUnfitError: it fails, answers with numbers that are not finite, or not what its publisher saw.
        ModelDiedError: its process did not survive it.
        ModelStoppedError: the agent stops.
    """
    name = f"{model.spec.name} version {model.spec.version}"
    try:
        answers = model.answers_to_golden()
    except (ModelDiedError, ModelStoppedError):
        raise
    except ModelError as error:
        raise ModelUnfitError(f"{name} fails on the golden input: {error}") from error
    if not all(map(math.isfinite, answers)):
        raise ModelUnfitError(f"{name} answers the golden input with numbers that are not finite")
    worst = _worst(answers, model.spec.golden)
    if worst > model.spec.tolerance:
        raise ModelUnfitError(f"{name} is off by {worst:.4g} on the golden input; {model.spec.tolerance:.4g} is allowed")


def _worst(answers: Sequence[float], golden: Sequence[float]) -> float:
    if not golden:
        return 0.0
    if len(answers) != len(golden):
        return math.inf
    return max(abs(answer - wanted) for answer, wanted in zip(answers, golden, strict=True))


log = structlog.get_logger(__name__)


class ModelLoader:
    """Loads versions of one model.

    Args:
        store: its files, and the attempts.
        config: limits, labels, self-test.
    """

    def __init__(self, store: ModelStore, config: ModelConfig) -> None:
        self._store = store
        self._config = config
        self._lock = threading.Lock()
        self._under_way: list[ModelProcess] = []
        self._is_closed = False

    def load(self, installed: Installed, *, is_new: bool) -> ModelProcess:
        """Load a version once.

        Args:
            installed: which version; its bytes are on disk.
            is_new: whether it must pass its self-test.

        Raises:
            RottenModelError: its bytes are not those that were installed.
            ModelUnfitError: it does not load, or fails its self-test.
            ModelDiedError: its process did not survive loading or self-test.
            ModelStoppedError: the agent stops.
            ModelError: it cannot be loaded at the moment.
        """
        path = self._store.whole(installed)
        must_record = is_new or self._store.state.on_probation
        self._record(lambda: self._store.begin_attempt(installed), must=must_record)
        process = ModelProcess(path, installed.spec, self._config)
        try:
            self._run(process, is_new=is_new)
        except ModelError as error:
            process.close()
            counts = isinstance(error, ModelDiedError | ModelUnfitError)
            self._record(lambda: self._store.end_attempt(installed, counts=counts), must=must_record)
            if isinstance(error, ModelUnfitError):
                self._store.whole(installed)  # raises if it rotted in the meantime: then it is not unfit
            raise
        self._record(lambda: self._store.forget_attempts(installed), must=False)
        return process

    def load_new(self, installed: Installed) -> ModelProcess:
        """Load a version that was never active, again if its process dies, but `MAX_ATTEMPTS` times in all.

        Raises:
            ModelUnfitError: as for `load`, or its process died in every attempt.
            ModelError: as for `load`.
        """
        while True:
            try:
                return self.load(installed, is_new=True)
            except ModelDiedError as error:
                log.warning("model_died_while_loading", version=installed.version, reason=str(error))
                if self.is_exhausted(installed.version):
                    raise ModelUnfitError(f"{error}; {MAX_ATTEMPTS} attempts") from error

    def is_exhausted(self, version: int) -> bool:
        """Whether all attempts of a version are used up."""
        return self._store.state.attempts_of(version) >= MAX_ATTEMPTS

    def close(self) -> None:
        """Break off the loads that are under way; they do not count as attempts."""
        with self._lock:
            self._is_closed = True
            for process in self._under_way:
                process.close()

    def _run(self, process: ModelProcess, *, is_new: bool) -> None:
        with self._lock:
            if self._is_closed:
                raise ModelStoppedError("the agent is stopping")
            self._under_way.append(process)
        try:
            process.start()
            if is_new and self._config.self_test:
                check_golden(process)
        finally:
            with self._lock:
                self._under_way.remove(process)

    def _record(self, change: Callable[[], None], *, must: bool) -> None:
        """Write an attempt down. A version that has proved itself runs on a full disk, too; another is not loaded unrecorded."""
        try:
            change()
        except ModelError as error:
            if must:
                raise
            log.warning("model_attempt_not_recorded", model=self._config.name, reason=str(error))
