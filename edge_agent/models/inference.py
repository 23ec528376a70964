"""Run an ONNX model on one thread, as the target of the model's process. It needs the `infer` extra.

See `catchment.runtime.worker.child` for the process itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.errors import ConfigError, ModelError, ModelUnfitError
from edge_agent.models.answers import read_answers
from edge_agent.models.config import DECODED, GoldenRequest, LoadOptions, PictureRequest, Request
from edge_agent.models.picture_input import read_tensors
from schemas.model import ModelSpec, golden_input, golden_step
from schemas.model_tasks import Classify, Detect, RowInput

try:
    import numpy as np
    import onnxruntime
except ImportError as error:  # pragma: no cover  # the bare install
    raise ConfigError(f"a model is configured, but {error.name} is missing; install catchment[infer]") from error

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
_QUIET = 4  # fatal only: the runtime writes to standard error by itself


class LoadedModel:
    """One loaded model.

    Args:
        path: the ONNX file.
        spec: what the signed metadata say of it.
        labels: what the answers mean here; empty: as `spec` says.

    Raises:
        ModelUnfitError: it does not load, or does not take or answer what its metadata say.
    """

    def __init__(self, path: Path, spec: ModelSpec, labels: tuple[str, ...] = ()) -> None:
        self.spec = spec
        self._labels = labels or spec.labels
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the device has other work: one thread is this model's budget
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        options.enable_cpu_mem_arena = False  # flat memory matters more here than speed
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # The runtime's exceptions share no base but Exception.
            _raise_if_out_of_memory(error)
            raise ModelUnfitError(f"{spec.name} version {spec.version} does not load: {error}") from error
        self._input, self._type = self._chosen_input()
        self._outputs = self._chosen_outputs()

    def _chosen_input(self) -> tuple[str, Any]:
        inputs = self._session.get_inputs()
        kind = _TYPES.get(inputs[0].type) if len(inputs) == 1 else None
        if kind is None:
            raise ModelUnfitError(f"{self.spec.name}: needs one input of floating numbers, has {[i.type for i in inputs]}")
        wanted, given = inputs[0].shape, self.spec.shape
        fits = len(wanted) == len(given) and all(
            not isinstance(size, int) or size == mine for size, mine in zip(wanted, given, strict=True)
        )
        if not fits:
            raise ModelUnfitError(f"{self.spec.name}: its input is {wanted}, its metadata say {list(given)}")
        return inputs[0].name, kind

    def _chosen_outputs(self) -> list[str]:
        there = [str(output.name) for output in self._session.get_outputs() if output.type in _TYPES]
        task = self.spec.task
        if isinstance(task, Detect) and task.layout == "boxes-scores":
            wanted = [task.boxes, task.scores]
        else:
            wanted = [task.boxes if isinstance(task, Detect) else self.spec.output]
        chosen = [name or (there[0] if there else "") for name in wanted]
        if not there or any(name not in there for name in chosen):
            raise ModelUnfitError(f"{self.spec.name}: has no output {' and '.join(map(repr, wanted))} of floating numbers")
        return chosen

    def answers_to_golden(self) -> list[float]:
        """The answers to the golden input, of many every n-th.

        Raises:
            ModelError: the model fails on it.
        """
        shape = self.spec.shape
        found = self._run(np.asarray(golden_input(math.prod(shape)), dtype=self._type).reshape(shape))
        answers = np.concatenate([np.asarray(output, dtype=np.float64).reshape(-1) for output in found])
        if not answers.size:
            raise ModelError(f"{self.spec.name} version {self.spec.version} answers nothing")
        # One published by the release before has all of its answers.
        step = 1 if len(self.spec.golden) == answers.size else golden_step(answers.size)
        sampled: list[float] = answers[::step].tolist()
        return sampled

    def look_at(self, request: PictureRequest, note: Callable[[bytes], None]) -> list[Mapping[str, Any]]:
        """Columns of the prediction for a picture, or for each of its crops.

        Raises:
            UnreadablePictureError: the picture cannot be decoded.
            ModelError: the model fails on it.
        """
        if self.spec.image is None:
            raise ModelError(f"{self.spec.name} looks at columns, not at pictures")
        payload = Path(request.path) if request.path else request.body
        is_coarse = isinstance(self.spec.task, Classify)
        tensors = read_tensors(payload, self.spec.image, request.crops, is_coarse=is_coarse)
        note(DECODED)
        return [
            read_answers(self.spec, self._labels, self._run(tensor.astype(self._type)), placement)
            for tensor, placement in tensors
        ]

    def look_at_rows(self, rows: Sequence[Sequence[float | None]]) -> list[Mapping[str, Any]]:
        """Columns of the prediction for each row.

        Raises:
            ModelError: the model fails on them.
        """
        wanted = self.spec.rows
        if wanted is None:
            raise ModelError(f"{self.spec.name} looks at pictures, not at columns")
        found = self._run(_row_tensor(rows, wanted).astype(self._type))
        if any(len(output) != len(rows) for output in found):
            raise ModelError(f"{self.spec.name} gives {len(found[0])} answers for {len(rows)} rows")
        return [read_answers(self.spec, self._labels, [output[at] for output in found], None) for at in range(len(rows))]

    def _run(self, tensor: Any) -> list[Any]:
        try:
            found: list[Any] = self._session.run(self._outputs, {self._input: tensor})
        except Exception as error:
            # The runtime's exceptions share no base but Exception.
            _raise_if_out_of_memory(error)
            raise ModelError(f"{self.spec.name} version {self.spec.version} fails: {error}") from error
        return found


def _raise_if_out_of_memory(error: Exception) -> None:
    """The runtime reports memory that it was refused as one of its own exceptions, distinguished by their text."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
        raise MemoryError from error


def _row_tensor(rows: Sequence[Sequence[float | None]], wanted: RowInput) -> Any:
    values = np.asarray([[math.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
    if values.shape != (len(rows), len(wanted.columns)):
        raise ModelError(f"rows of shape {list(values.shape)}, and the model takes {len(wanted.columns)} columns")
    if wanted.fill:
        values = np.where(np.isnan(values), np.asarray(wanted.fill), values)
    if wanted.mean:
        values = values - np.asarray(wanted.mean)
    if wanted.std:
        values = values / np.asarray(wanted.std)
    return values


def open_model(options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Load the model that the options name.

    Raises:
        ModelUnfitError: it does not load.
        MemoryError: it needs more than the process may have.
    """
    given = msgspec.msgpack.decode(options, type=LoadOptions)
    model = LoadedModel(Path(given.path), given.spec, given.labels)

    def handle(body: bytes) -> bytes:
        request = msgspec.msgpack.decode(body, type=Request)
        if isinstance(request, GoldenRequest):
            return msgspec.msgpack.encode(model.answers_to_golden())
        if isinstance(request, PictureRequest):
            return msgspec.msgpack.encode(model.look_at(request, note))
        return msgspec.msgpack.encode(model.look_at_rows(request.rows))

    return handle
