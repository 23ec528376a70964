"""What a model answers to the golden input here, so that a device can check that it answers the same there."""

import math
from dataclasses import dataclass
from typing import Any

from pipelines.errors import RefusedError
from schemas.errors import SchemaError
from schemas.model import ImageInput, golden_input

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_QUIET = 4
# What rounding may add to a share of 1.
_SCORE_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class GoldenTrial:
    """A model that was tried: the input it takes, and its answers to the golden input."""

    image: ImageInput
    golden: tuple[float, ...]


def try_model(onnx: bytes, image: ImageInput | None = None, output: str = "") -> GoldenTrial:
    """Load a model and run it once.

    Args:
        onnx: the ONNX file's bytes.
        image: what it takes; None: read from its input's shape (N,C,H,W or N,H,W,C), with pixels scaled to 0..1.
        output: the output to read; empty: the first of floating numbers.

    Raises:
        RefusedError: it does not load, takes or answers something else, or its answers are not finite.
    """
    session = _load(onnx)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        raise RefusedError(f"the model must have one input of floating numbers; it has {[i.type for i in inputs]}")
    image = image or image_of_shape(inputs[0].shape)
    outputs = [found.name for found in session.get_outputs() if found.type in _TYPES and output in ("", found.name)]
    if not outputs:
        raise RefusedError(f"the model has no output {output!r} of floating numbers")
    return GoldenTrial(image, _answers(session, inputs[0], outputs[0], image))


def check_scores(trial: GoldenTrial, labels: tuple[str, ...], softmax: bool) -> None:
    """See to it that a device can read the answers as scores of classes.

    Raises:
        RefusedError: they are not within 0..1 although no softmax follows, or there is another number of them than labels.
    """
    low, high = min(trial.golden), max(trial.golden)
    if not softmax and (low < -_SCORE_SLACK or high > 1 + _SCORE_SLACK):
        raise RefusedError(
            f"the model answers the golden input with numbers from {low:.3g} to {high:.3g}, and a score is from 0 to 1; "
            "if these are logits, publish it with --softmax"
        )
    if labels and len(labels) != len(trial.golden):
        raise RefusedError(
            f"the model answers with {len(trial.golden):,} numbers, and there are {len(labels):,} labels; give one each"
        )


def _load(onnx: bytes) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  # the infer extra: only publishing needs it
    except ImportError as error:
        raise RefusedError("trying a model needs onnxruntime; install catchment[infer]") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        raise RefusedError(f"the model does not load: {error}") from error


def _answers(session: Any, taken: Any, output: str, image: ImageInput) -> tuple[float, ...]:
    import numpy as np  # noqa: PLC0415  # as above

    tensor = np.asarray(golden_input(math.prod(image.shape)), dtype=_TYPES[taken.type]).reshape(image.shape)
    try:
        (found,) = session.run([output], {taken.name: tensor})
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        raise RefusedError(f"the model fails on an input of {list(image.shape)}: {error}") from error
    shape = list(np.shape(found))
    if sum(size > 1 for size in shape) > 1:
        raise RefusedError(
            f"the output {output!r} has the shape {shape}, which is no classification; a device reads one score for each class: "
            "export the model with such an output"
        )
    answers = tuple(float(answer) for answer in np.asarray(found, dtype=np.float64).reshape(-1))
    if not answers or not all(map(math.isfinite, answers)):
        raise RefusedError("the model answers the golden input with nothing, or with numbers that are not finite")
    return answers


def image_of_shape(shape: list[Any]) -> ImageInput:
    """The input that a four-dimensional shape speaks of.

    Raises:
        RefusedError: it does not say channels, height and width.
    """
    sizes = [size if isinstance(size, int) else None for size in shape]
    try:
        match sizes:
            case [_, 1 | 3 as channels, int(height), int(width)]:
                return ImageInput(width, height, "grey" if channels == 1 else "rgb", "nchw")
            case [_, int(height), int(width), 1 | 3 as channels]:
                return ImageInput(width, height, "grey" if channels == 1 else "rgb", "nhwc")
    except SchemaError as error:
        raise RefusedError(str(error)) from error
    raise RefusedError(f"the model's input {shape} does not say height and width; give --width, --height and --layout")
