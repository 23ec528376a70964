"""From a file, a folder or a run to what is signed as a version: describe, try within a device's limits, check."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from pipelines.rollout.description import FoundModel, ModelAbout, find_model
from pipelines.rollout.golden import GoldenTrial, check_scores, try_within_limits
from schemas.model import ImageInput, ModelNeeds
from schemas.model_tasks import Classify, ModelTask, RowInput

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
    needs = replace(found.needs, peak_mib=trial.peak_mib)
    return PublishableModel(found.onnx, task, image, about.rows, about.labels, about.output, softmax, trial.golden, needs)
