"""What a model answers to the golden input here, so that a device can check that it answers the same there."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Refused
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.errors import RefusedError
from schemas.errors import SchemaError
from schemas.model import MODEL_ANSWER_MS, MODEL_LOAD_S, MODEL_MEMORY_MIB, ImageInput, golden_input

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_QUIET = 4
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
# What rounding may add to a share of 1.
_SCORE_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class GoldenTrial:
    """A model that was tried: the input it takes, and its answers to the golden input."""

    image: ImageInput
    golden: tuple[float, ...]


class TrialOptions(msgspec.Struct, frozen=True):
    """What a process tries: the ONNX file, the input it takes and the output to read."""

    path: str
    image: ImageInput | None
    output: str


def try_within_limits(
    onnx: bytes,
    image: ImageInput | None = None,
    output: str = "",
    *,
    memory_mib: int = MODEL_MEMORY_MIB,
    answer_ms: int = MODEL_ANSWER_MS,
) -> GoldenTrial:
    """Try a model as `try_model` does, in a process with the memory and time that a device gives it.

    Raises:
        RefusedError: as for `try_model`, or it crashes, or needs more than that.
    """
    limits = WorkerLimits(
        memory_bytes=memory_mib * MIB,
        cpu_s=max(1, answer_ms // 1_000) * 2,
        start_timeout_s=MODEL_LOAD_S,
        max_answer_bytes=64 * MIB,
    )
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(onnx)
        file.flush()
        options = msgspec.msgpack.encode(TrialOptions(file.name, image, output))
        with WorkerProcess(WorkerSpec(target="pipelines.rollout.golden:open_trial", options=options, limits=limits)) as worker:
            outcome = worker.start()
            if isinstance(outcome, Answered):
                outcome = worker.request(b"", answer_ms / 1_000) or outcome
    if isinstance(outcome, Answered):
        return msgspec.msgpack.decode(outcome.body, type=GoldenTrial)
    if isinstance(outcome, Refused):
        raise RefusedError(str(outcome))
    raise RefusedError(
        f"the model cannot be tried within what a device gives it: {outcome}; "
        "raise --memory-mib or --answer-ms if your devices have larger max_memory_mib and max_ms under [model]"
    )


def open_trial(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Load the model that the options name: the target of the process that tries it."""
    given = msgspec.msgpack.decode(options, type=TrialOptions)
    session = _load(Path(given.path).read_bytes())
    return lambda _request: msgspec.msgpack.encode(_try(session, given.image, given.output))


def try_model(onnx: bytes, image: ImageInput | None = None, output: str = "") -> GoldenTrial:
    """Load a model and run it once.

    Args:
        onnx: the ONNX file's bytes.
        image: what it takes; None: read from its input's shape (N,C,H,W or N,H,W,C), with pixels scaled to 0..1.
        output: the output to read; empty: the first of floating numbers.

    Raises:
        RefusedError: it does not load, takes or answers something else, or its answers are not finite.
    """
    return _try(_load(onnx), image, output)


def _try(session: Any, image: ImageInput | None, output: str) -> GoldenTrial:
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
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # as on a device, whose limits it must keep
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        _raise_if_out_of_memory(error)
        raise RefusedError(f"the model does not load: {error}") from error


def _answers(session: Any, taken: Any, output: str, image: ImageInput) -> tuple[float, ...]:
    import numpy as np  # noqa: PLC0415  # as above

    tensor = np.asarray(golden_input(math.prod(image.shape)), dtype=_TYPES[taken.type]).reshape(image.shape)
    try:
        (found,) = session.run([output], {taken.name: tensor})
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        _raise_if_out_of_memory(error)
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


def _raise_if_out_of_memory(error: Exception) -> None:
    """The runtime reports memory that it was refused as one of its own exceptions, told apart by their text."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
        raise MemoryError from error


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
