"""A step's ONNX model over pictures: a class and its score, an embedding, or how many things of interest are in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import RefusedError, UninspectableError
from pipelines.inspect.image import decoded
from schemas.errors import SchemaError
from schemas.model import ImageInput
from schemas.policy import InspectStep

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_QUIET = 4


class ModelInspector:
    """One loaded model.

    Options of the step: kind (classification, embedding, detection), width, height, colour, layout, scale, mean, std (by
    comma), labels (by comma), softmax, score (the least that counts in a detection), threads.

    Raises:
        RefusedError: it does not load, or does not take what the options say.
    """

    def __init__(self, path: Path, step: InspectStep) -> None:
        options = step.options
        self._name, self._kind = step.use, str(options.get("kind", "classification"))
        self._labels = tuple(filter(None, str(options.get("labels", "")).split(",")))
        self._softmax, self._score = bool(options.get("softmax", False)), float(options.get("score", 0.5))
        self._session = _session(path, int(options.get("threads", 1)))
        (taken,) = self._session.get_inputs() if len(self._session.get_inputs()) == 1 else (None,)
        if taken is None or taken.type not in _TYPES:
            raise RefusedError(f"inspector {step.use}: the model must have one input of floating numbers")
        self._input, self._type = taken.name, _TYPES[taken.type]
        self._image = _image_input(step, taken.shape)

    def look(self, body: bytes) -> tuple[Any, ...]:
        """The step's columns for one picture.

        Raises:
            UninspectableError: not a picture, or the model fails on it.
        """
        try:
            answers = self._session.run(None, {self._input: self.tensor(body)})
        except UninspectableError:
            raise
        except Exception as error:
            # The runtime's exceptions share no base but Exception.
            raise UninspectableError(f"the model fails: {str(error)[:200]}") from error
        if self._kind == "embedding":
            vector = np.asarray(_floats(answers), "<f4").ravel()
            return vector.tobytes(), float(np.linalg.norm(vector.astype(np.float64)))
        return self._detected(answers) if self._kind == "detection" else self._classified(_floats(answers))

    def tensor(self, body: bytes) -> Any:
        """The picture as the model takes it."""
        wanted = self._image
        pixels, _width, _height = decoded(body, wanted.width, wanted.height, "force", wanted.channels)
        if pixels.shape[2] != wanted.channels:
            pixels = np.repeat(pixels[:, :, :1], wanted.channels, axis=2)
        numbers = pixels[:, :, ::-1].astype(np.float32) if wanted.colour == "bgr" else pixels.astype(np.float32)
        numbers *= np.float32(wanted.scale)
        if wanted.mean:
            numbers -= np.asarray(wanted.mean, np.float32)
        if wanted.std:
            numbers /= np.asarray(wanted.std, np.float32)
        if wanted.layout == "nchw":
            numbers = numbers.transpose(2, 0, 1)
        return np.ascontiguousarray(numbers, self._type).reshape(wanted.shape)

    def _classified(self, answers: Any) -> tuple[str | None, float | None, float | None]:
        scores = np.asarray(answers, np.float64).ravel()
        if self._softmax and scores.size:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        if not scores.size or not np.isfinite(scores).all():
            raise UninspectableError("the model's answer is empty or not finite")
        order = np.argsort(scores)[::-1]
        best, second = float(scores[order[0]]), float(scores[order[1]]) if scores.size > 1 else 0.0
        return self._label(int(order[0])), best, best - second

    def _detected(self, answers: Sequence[Any]) -> tuple[int, str | None, float | None]:
        named = dict(zip((output.name for output in self._session.get_outputs()), answers, strict=True))
        if "scores" not in named:
            raise UninspectableError("a detection model needs an output named scores, and labels if it tells them")
        scores = np.asarray(named["scores"], np.float64).ravel()
        if not scores.size:
            return 0, None, None
        best = int(scores.argmax())
        labels = np.asarray(named.get("labels", np.zeros(scores.size))).ravel()
        return int((scores >= self._score).sum()), self._label(int(labels[best])), float(scores[best])

    def _label(self, index: int) -> str:
        return self._labels[index] if index < len(self._labels) else str(index)


def _floats(answers: Sequence[Any]) -> Any:
    for answer in answers:
        if isinstance(answer, np.ndarray) and answer.dtype.kind == "f":
            return answer
    raise UninspectableError("the model has no output of floating numbers")


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  # the infer extra: only a policy with a model needs it
    except ImportError as error:
        raise RefusedError("a policy inspects with a model, which needs onnxruntime; install catchment[infer]") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        raise RefusedError(f"the model does not load: {error}") from error


def _image_input(step: InspectStep, shape: Sequence[Any]) -> ImageInput:
    """Combine the options with the input's shape."""
    options = step.options
    layout: Any = options.get("layout", "nhwc" if len(shape) == 4 and shape[3] in (1, 3) else "nchw")
    places = (2, 1, 3) if layout == "nhwc" else (3, 2, 1)
    known = [shape[place] if len(shape) == 4 and isinstance(shape[place], int) else 0 for place in places]
    colour: Any = options.get("colour", "grey" if known[2] == 1 else "rgb")
    try:
        return ImageInput(
            int(options.get("width", known[0])),
            int(options.get("height", known[1])),
            colour,
            layout,
            float(options.get("scale", 1 / 255)),
            _numbers(options.get("mean", "")),
            _numbers(options.get("std", "")),
        )
    except (SchemaError, ValueError) as error:
        raise RefusedError(f"inspector {step.use}: {error}; give width and height in its options") from error


def _numbers(setting: object) -> tuple[float, ...]:
    return tuple(float(part) for part in str(setting).split(",") if part.strip())
