"""A model in a process of its own: memory and time are limited, and a crash costs one prediction."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

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
from edge_agent.models.config import DECODED, GoldenRequest, LoadOptions, ModelConfig, PictureRequest, Request, RowsRequest
from schemas.model import ModelSpec

TARGET = "edge_agent.models.inference:open_model"
_NEEDED = ("numpy", "onnxruntime", "PIL")
_MAX_ANSWER_BYTES = 64 * MIB

Crop: TypeAlias = tuple[float, float, float, float]


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
        self._worker = WorkerProcess(WorkerSpec(target=TARGET, options=msgspec.msgpack.encode(options), limits=limits))

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return self._worker.pid

    def peak_mib(self) -> int:
        """The most memory that the process had resident since it was started; 0 while it does not run."""
        try:
            return self._worker.peak_bytes() // MIB
        except OSError:
            return 0  # it has just ended

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

    def look_at(self, payload: bytes | Path, crops: Sequence[Crop] = ()) -> list[dict[str, Any]]:
        """Columns of the prediction for a picture, or for each of its crops.

        Args:
            payload: an encoded picture, or the path of a file with it.
            crops: x, y, width and height of each, px.

        Raises:
            UnreadablePictureError: the picture cannot be decoded.
            ModelBusyError: there is no process now, or it is busy with others' pictures for longer than a picture may take.
            ModelDiedError: its process did not survive it.
            ModelError: the model fails on it.
        """
        body, path = (payload, "") if isinstance(payload, bytes) else (b"", str(payload.absolute()))
        return self._columns(PictureRequest(body, path, tuple(crops)), len(crops) or 1)

    def look_at_rows(self, rows: Sequence[tuple[float | None, ...]]) -> list[dict[str, Any]]:
        """Columns of the prediction for each row.

        Raises:
            ModelError: the model fails on them; ModelBusyError, ModelDiedError as for `look_at`.
        """
        return self._columns(RowsRequest(tuple(rows)), len(rows))

    def _columns(self, request: Request, count: int) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = self._ask(request, list[dict[str, Any]], "fails", self._answer_s)
        if len(answers) != count:
            raise ModelError(f"{self._name} answers nonsense: {len(answers)} answers to {count} questions")
        return answers

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
