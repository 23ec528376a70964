"""What a model answers to the golden input here, so that a device can check that it answers the same there."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Refused
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.errors import RefusedError
from schemas.errors import SchemaError
from schemas.model import MODEL_ANSWER_MS, MODEL_LOAD_S, MODEL_MEMORY_MIB, ImageInput, golden_input, golden_step
from schemas.model_tasks import MAX_VALUES, Classify, Detect, Embed, ModelTask, Regress, RowInput, Segment

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_QUIET = 4
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
# What rounding may add to a share of 1.
_SCORE_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class GoldenTrial:
    """A model that was tried: the input it takes, and its answers to the golden input.

    Attributes:
        image: how a picture becomes its input; None: it looks at columns.
        golden: the answers, of many every n-th.
        peak_mib: the most memory that its process took; 0: not measured.
    """

    image: ImageInput | None
    golden: tuple[float, ...]
    peak_mib: int = field(default=0, compare=False)


class TrialOptions(msgspec.Struct, frozen=True):
    """What a process tries: the ONNX file, the input it takes, the output to read and what it is for."""

    path: str
    image: ImageInput | None
    output: str
    task: ModelTask = Classify()
    rows: RowInput | None = None


def try_within_limits(
    onnx: bytes,
    image: ImageInput | None = None,
    output: str = "",
    *,
    memory_mib: int = MODEL_MEMORY_MIB,
    answer_ms: int = MODEL_ANSWER_MS,
    task: ModelTask | None = None,
    rows: RowInput | None = None,
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
        options = msgspec.msgpack.encode(TrialOptions(file.name, image, output, task or Classify(), rows))
        with WorkerProcess(WorkerSpec(target="pipelines.rollout.golden:open_trial", options=options, limits=limits)) as worker:
            outcome = worker.start()
            if isinstance(outcome, Answered):
                outcome = worker.request(b"", answer_ms / 1_000) or outcome
            peak_mib = worker.peak_bytes() // MIB
    if isinstance(outcome, Answered):
        return replace(msgspec.msgpack.decode(outcome.body, type=GoldenTrial), peak_mib=peak_mib)
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
    return lambda _request: msgspec.msgpack.encode(_try(session, given))


def try_model(
    onnx: bytes,
    image: ImageInput | None = None,
    output: str = "",
    task: ModelTask | None = None,
    rows: RowInput | None = None,
) -> GoldenTrial:
    """Load a model and run it once.

    Args:
        onnx: the ONNX file's bytes.
        image: what it takes; None: read from its input's shape (N,C,H,W or N,H,W,C), with pixels scaled to 0..1.
        output: the output to read; empty: the first of floating numbers.
        task: what it is for; None: a classifier.
        rows: the columns it takes, instead of a picture.

    Raises:
        RefusedError: it does not load, takes or answers something else, or its answers are not finite.
    """
    return _try(_load(onnx), TrialOptions("", image, output, task or Classify(), rows))


def _try(session: Any, given: TrialOptions) -> GoldenTrial:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        raise RefusedError(f"the model must have one input of floating numbers; it has {[i.type for i in inputs]}")
    image = None if given.rows is not None else given.image or image_of_shape(inputs[0].shape)
    there = [found.name for found in session.get_outputs() if found.type in _TYPES]
    task = given.task
    wanted = [task.boxes, task.scores] if isinstance(task, Detect) else [given.output]
    wanted = wanted if isinstance(task, Detect) and task.layout == "boxes-scores" else wanted[:1]
    outputs = [name or (there[0] if there else "") for name in wanted]
    if not there or any(name not in there for name in outputs):
        missing = " and ".join(map(repr, wanted))
        raise RefusedError(f"the model has no output {missing} of floating numbers; it has {', '.join(there) or 'none'}")
    taken = given.rows or image
    assert taken is not None, "one or the other"
    found = _outputs(session, inputs[0], outputs, taken.shape)
    _check_shapes(task, outputs, [list(each.shape) for each in found])
    return GoldenTrial(image, _golden(found))


def check_scores(trial: GoldenTrial, labels: tuple[str, ...], softmax: bool) -> None:
    """See to it that a device can read a classifier's answers as scores of classes.

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


def _outputs(session: Any, taken: Any, outputs: Sequence[str], shape: tuple[int, ...]) -> list[Any]:
    import numpy as np  # noqa: PLC0415  # as above

    tensor = np.asarray(golden_input(math.prod(shape)), dtype=_TYPES[taken.type]).reshape(shape)
    try:
        found: list[Any] = session.run(list(outputs), {taken.name: tensor})
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        _raise_if_out_of_memory(error)
        raise RefusedError(f"the model fails on an input of {list(shape)}: {error}") from error
    return [np.asarray(output) for output in found]


def _check_shapes(task: ModelTask, names: Sequence[str], shapes: Sequence[list[int]]) -> None:
    """See to it that a device can read outputs of these shapes as answers of the task."""
    name, shape = names[0], shapes[0]
    if isinstance(task, Classify) and sum(size > 1 for size in shape) > 1:
        raise RefusedError(
            f"the output {name!r} has the shape {shape}, which is no classification; a device reads one score for each class: "
            "export the model with such an output, or say what it is with --task"
        )
    if isinstance(task, Regress | Embed) and math.prod(shape) > MAX_VALUES:
        raise RefusedError(f"the output {name!r} has the shape {shape}; a device stores at most {MAX_VALUES:,} numbers")
    if isinstance(task, Segment) and len(shape) != 4:
        raise RefusedError(f"the output {name!r} has the shape {shape}; a mask has four dimensions, (1, labels, height, width)")
    if isinstance(task, Detect) and not _is_boxes(task, shapes):
        raise RefusedError(
            f"the outputs {', '.join(names)} have the shapes {shapes}, which is not the layout {task.layout!r}; "
            "choose another one in --about: yolo, yolo-objectness, boxes-scores or rows"
        )


def _is_boxes(task: Detect, shapes: Sequence[list[int]]) -> bool:
    if len(shapes[0]) != 3 or shapes[0][0] != 1:
        return False
    rows, columns = shapes[0][1:]
    if task.layout == "yolo":
        return 4 < rows < columns
    if task.layout == "yolo-objectness":
        return columns > 5
    if task.layout == "rows":
        return columns == 6
    return columns == 4 and len(shapes[1]) == 3 and shapes[1][1] == rows and shapes[1][2] > task.has_background


def _golden(outputs: Sequence[Any]) -> tuple[float, ...]:
    import numpy as np  # noqa: PLC0415  # as above

    answers = np.concatenate([output.astype(np.float64).reshape(-1) for output in outputs])
    if not answers.size or not np.isfinite(answers).all():
        raise RefusedError("the model answers the golden input with nothing, or with numbers that are not finite")
    return tuple(answers[:: golden_step(answers.size)].tolist())


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
