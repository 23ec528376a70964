"""What a model is, read from what its exporter wrote: Ultralytics' notes in the ONNX file, or an MLflow folder's signature.

`prepare_model` goes on to try it within a device's limits: what it returns is what is signed as a version.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from pipelines.errors import ConfigError, NotFoundError, RefusedError
from pipelines.rollout.golden import GoldenTrial, check_scores, try_within_limits
from pipelines.rollout.onnx_file import OnnxFile, read_onnx_file
from schemas.errors import SchemaError
from schemas.model import ImageInput, ModelNeeds
from schemas.model_tasks import Classify, Detect, Embed, ModelTask, Regress, RowInput, Segment

OWN_DOMAINS = ("", "ai.onnx.ml")
_KNOWN_DOMAINS = (*OWN_DOMAINS, "com.microsoft")
_RUN = re.compile(r"runs:/([A-Za-z0-9_-]{1,64})/([A-Za-z0-9._/-]{1,512})")
_MAX_TEXT_BYTES = 4 * 1024 * 1024


class ModelAbout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A description of a model, as `--about` reads it; what is absent is read from the file.

    Attributes:
        task: what it is for.
        picture: how a picture becomes its input.
        rows: how columns become its input.
        labels: what its answers mean.
        output: the output to read.
        softmax: whether the answers are logits.
    """

    task: ModelTask | None = None
    picture: ImageInput | None = None
    rows: RowInput | None = None
    labels: tuple[str, ...] = ()
    output: str = ""
    softmax: bool | None = None


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model's bytes, what its file says, and the description that was found with it."""

    onnx: bytes
    file: OnnxFile
    about: ModelAbout

    @property
    def needs(self) -> ModelNeeds:
        """What a device must have to run it."""
        foreign = sorted(f"{domain}::{name}" for domain, name in self.file.operators if domain not in OWN_DOMAINS)
        return ModelNeeds(len(self.onnx), self.file.opsets, tuple(foreign))


def find_model(where: str, about: ModelAbout | None = None) -> FoundModel:
    """Read a model from an ONNX file, an MLflow model's folder, or `runs:/RUN/PATH` of a folder of MLflow runs.

    Args:
        where: path or URI; the folder of runs is $MLFLOW_TRACKING_URI, else `mlruns`.
        about: what the caller knows better than the file.

    Raises:
        NotFoundError: it is not there.
        RefusedError: it is no ONNX model, or one that no device could load.
        ConfigError: the description that goes with it is malformed.
    """
    path = _run_folder(where) if where.startswith("runs:/") else Path(where)
    found = ModelAbout()
    if path.is_dir():
        path, found = _mlflow(path)
    try:
        onnx = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from error
    file = read_onnx_file(onnx)
    _refuse_unloadable(file)
    for better in (_ultralytics(file), about or ModelAbout()):
        found = _overlaid(found, better)
    return FoundModel(onnx, file, found)


def read_about(path: Path) -> ModelAbout:
    """Read a description from a JSON file.

    Raises:
        ConfigError: it cannot be read, or is malformed.
    """
    try:
        return msgspec.json.decode(_text(path), type=ModelAbout)
    except (msgspec.MsgspecError, SchemaError) as error:
        raise ConfigError(f"{path}: {error}") from error


def task_named(name: str) -> ModelTask:
    """The task of a name, as it is without further words.

    Raises:
        ConfigError: there is no such task, or it needs a description.
    """
    tasks: dict[str, ModelTask] = {
        "classify": Classify(), "detect": Detect("yolo"), "segment": Segment(), "regress": Regress(), "embed": Embed(),
    }  # fmt: skip
    if name not in tasks:
        raise ConfigError(f"--task {name[:40]!r} is not one of {', '.join(tasks)}")
    return tasks[name]


def _overlaid(under: ModelAbout, over: ModelAbout) -> ModelAbout:
    given = {name: value for name in ModelAbout.__struct_fields__ if (value := getattr(over, name)) not in (None, (), "")}
    return msgspec.structs.replace(under, **given)


def _refuse_unloadable(file: OnnxFile) -> None:
    if file.has_external_data:
        raise RefusedError(
            "its weights lie in other files, which a device does not fetch; save it with save_as_external_data=False"
        )
    if unknown := sorted({domain for domain, _ in file.operators} - set(_KNOWN_DOMAINS)):
        raise RefusedError(
            f"it needs operators of {', '.join(unknown)}, which no device has; export it with ONNX's own operators"
        )


# -- Ultralytics ----------------------------------------------------------------------------------------------------------


def _ultralytics(file: OnnxFile) -> ModelAbout:
    """The description in an Ultralytics export's notes; an empty one without them."""
    kind, names = file.notes.get("task", ""), file.literal("names")
    if "stride" not in file.notes or not isinstance(names, dict):
        return ModelAbout()
    if kind not in ("detect", "classify"):
        raise RefusedError(f"its notes say task {kind[:40]!r}; of Ultralytics' tasks a device reads detect and classify")
    labels = tuple(str(names[index]) for index in range(len(names)) if index in names)
    if len(labels) != len(names):
        raise RefusedError("its notes name labels that are not numbered from 0")
    size = file.literal("imgsz")
    picture = None
    if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size):
        picture = ImageInput(size[1], size[0], fit="letterbox" if kind == "detect" else "stretch")
    args = file.literal("args")
    has_nms = isinstance(args, dict) and args.get("nms") is True
    task: ModelTask = Classify() if kind == "classify" else Detect("rows", form="corners") if has_nms else Detect("yolo")
    return ModelAbout(task, picture, labels=labels, softmax=False)


# -- MLflow ---------------------------------------------------------------------------------------------------------------


def _run_folder(uri: str) -> Path:
    found = _RUN.fullmatch(uri)
    if found is None or ".." in found[2].split("/"):
        raise ConfigError(f"{uri[:200]!r} is not runs:/RUN/PATH")
    runs = Path(os.environ.get("MLFLOW_TRACKING_URI", "mlruns").removeprefix("file://"))
    folders = sorted(runs.glob(f"*/{found[1]}/artifacts/{found[2]}"))
    if not folders:
        raise NotFoundError(f"{uri}: not below {runs}; set MLFLOW_TRACKING_URI to the folder of the runs, or download the model")
    return folders[0]


def _mlflow(folder: Path) -> tuple[Path, ModelAbout]:
    """The ONNX file of an MLflow model's folder, and what its signature says."""
    try:
        plain = yaml.safe_load(_text(folder / "MLmodel"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{folder / 'MLmodel'} is malformed: {error}") from error
    flavors = plain.get("flavors") if isinstance(plain, dict) else None
    onnx = flavors.get("onnx") if isinstance(flavors, dict) else None
    if not isinstance(onnx, dict):
        kinds = ", ".join(map(str, flavors)) if isinstance(flavors, dict) else "none"
        raise RefusedError(f"{folder} holds no ONNX model (flavors: {kinds}); log it with mlflow.onnx.log_model")
    name = str(onnx.get("data") or "model.onnx")
    if "/" in name or name.startswith("."):
        raise RefusedError(f"{folder}: the file of its ONNX flavor is {name[:80]!r}, not a plain name")
    signature = plain.get("signature")
    return folder / name, _signature(folder, signature) if isinstance(signature, dict) else ModelAbout()


def _signature(folder: Path, signature: Mapping[str, Any]) -> ModelAbout:
    """Columns, where the inputs are named numbers; a picture, where there is one tensor of four dimensions."""
    try:
        inputs = json.loads(signature.get("inputs") or "[]")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{folder / 'MLmodel'}: its signature is malformed: {error}") from error
    if not isinstance(inputs, list) or not all(isinstance(each, dict) for each in inputs):
        raise ConfigError(f"{folder / 'MLmodel'}: its signature has no list of inputs")
    names = [each.get("name") for each in inputs]
    if inputs and all(isinstance(name, str) and name for name in names) and all(each.get("type") != "tensor" for each in inputs):
        return ModelAbout(rows=RowInput(tuple(map(str, names))))
    shape = (inputs[0].get("tensor-spec") or {}).get("shape") if len(inputs) == 1 else None
    return ModelAbout(picture=picture_of_shape(shape)) if isinstance(shape, list) and len(shape) == 4 else ModelAbout()


def picture_of_shape(shape: list[Any]) -> ImageInput | None:
    """The picture that a four-dimensional shape speaks of; None: it does not say channels, height and width."""
    layout: Literal["nchw", "nhwc"]
    match shape:
        case [_, 1 | 3 as channels, int(height), int(width)] if height > 0 and width > 0:
            layout = "nchw"
        case [_, int(height), int(width), 1 | 3 as channels] if height > 0 and width > 0:
            layout = "nhwc"
        case _:
            return None
    return ImageInput(width, height, "grey" if channels == 1 else "rgb", layout)


def _text(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            body = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from error
    if len(body) > _MAX_TEXT_BYTES:
        raise ConfigError(f"{path} has more than {_MAX_TEXT_BYTES:,} bytes")
    return body


# -- trying it ---------------------------------------------------------------------------------------------------------------


Complete = Callable[[ImageInput | None, Callable[[], ImageInput | None]], ImageInput | None]


@dataclass(frozen=True, slots=True)
class PublishableModel:
    """A model that was tried here, as a device would read it."""

    onnx: bytes
    task: ModelTask
    image: ImageInput | None
    rows: RowInput | None
    labels: tuple[str, ...]
    output: str
    softmax: bool
    golden: tuple[float, ...]
    needs: ModelNeeds


def prepare_model(where: str, about: ModelAbout, complete: Complete, *, memory_mib: int, answer_ms: int) -> PublishableModel:
    """Read, describe and try a model.

    Args:
        where: an ONNX file, an MLflow model's folder, or `runs:/RUN/PATH`.
        about: what the caller knows better than the file.
        complete: the input's description from the one that was found, if any, and the one that the model's own shape gives.
        memory_mib: memory that the devices give a model.
        answer_ms: time that they give it for a sample.

    Raises:
        RefusedError: it is no model for a device, or its answers are not those of its task.
        NotFoundError: it is not there.
        ConfigError: its description is malformed.
    """
    found = find_model(where, about)
    task = found.about.task or Classify()
    attempt = partial(try_within_limits, found.onnx, memory_mib=memory_mib, answer_ms=answer_ms, output=found.about.output)
    image = None
    if found.about.rows is None:
        image = complete(found.about.picture, lambda: attempt(None, task=task).image)
    trial = attempt(image, task=task, rows=found.about.rows)
    return _checked(found, task, image, trial)


def _checked(found: FoundModel, task: ModelTask, image: ImageInput | None, trial: GoldenTrial) -> PublishableModel:
    about = found.about
    softmax = bool(about.softmax)
    if isinstance(task, Classify):
        check_scores(trial, about.labels, softmax)
    needs = msgspec.structs.replace(found.needs, peak_mib=trial.peak_mib)
    return PublishableModel(found.onnx, task, image, about.rows, about.labels, about.output, softmax, trial.golden, needs)
