"""The models of one stream, asked one after another; a model may look at the boxes of one before it."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from edge_agent.errors import ConfigError
from edge_agent.models.config import ModelConfig
from edge_agent.models.model_process import Crop
from edge_agent.models.running import RunningModel
from edge_agent.sources.api import SampleBatch, Scalar
from schemas.model_tasks import MODEL_COLUMNS, Classify

_ROWS_AT_ONCE = 1_000
_OF_BOXES = ("predicted_label", "predicted_score", "predicted_boxes")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelOfStream:
    """One model: its settings, and its version that answers."""

    config: ModelConfig
    running: RunningModel

    def columns(self) -> tuple[str, ...]:
        """The columns it fills; none while there is no model."""
        names = self.running.columns()
        if not names or not self.config.after:
            return names
        return tuple(map(self.running.column, (*MODEL_COLUMNS, *_OF_BOXES)))


def in_order(configs: Sequence[ModelConfig]) -> list[ModelConfig]:
    """The models such that each comes behind the one whose boxes it looks at.

    Raises:
        ConfigError: they wait for each other.
    """
    left, found = list(configs), list[ModelConfig]()
    while left:
        ready = [config for config in left if config.after not in {other.name for other in left}]
        if not ready:
            raise ConfigError(f"models {', '.join(config.name for config in left)}: each is after another of them")
        found += ready
        left = [config for config in left if config not in ready]
    return found


class ModelsOfStream:
    """All models of one stream.

    Args:
        models: each behind the one whose boxes it looks at.
        known: the columns of the stream's contract; what it has no column for is not stored, and logged once.
    """

    def __init__(self, models: Sequence[ModelOfStream], known: AbstractSet[str]) -> None:
        self._models = models
        self._known = known
        self._unknown: set[str] = set()

    def columns(self) -> tuple[str, ...]:
        """The columns of all of them that the contract has."""
        names = [name for model in self._models for name in model.columns()]
        if new := {*names} - self._known - self._unknown:
            self._unknown |= new
            log.warning("model_columns_not_stored", columns=sorted(new), action="add them to the stream's contract")
        return tuple(name for name in names if name in self._known)

    def wanted_rows(self, batch: SampleBatch) -> Sequence[int]:
        """The samples that have a picture; all, where a model looks at columns."""
        specs = [model.running.spec for model in self._models]
        if any(spec is not None and spec.rows is not None for spec in specs):
            return range(len(batch))
        if batch.payloads is None:
            return ()
        return [row for row, payload in enumerate(batch.payloads) if payload is not None]

    def rows_at_once(self, batch: SampleBatch) -> int:
        """How many samples of a batch are asked about together: pictures one by one."""
        return _ROWS_AT_ONCE if batch.payloads is None else 1

    def predict(self, batch: SampleBatch, rows: Sequence[int]) -> Sequence[Mapping[str, Scalar]]:
        """Ask every model about each of these samples."""
        found: list[dict[str, Scalar]] = [{} for _ in rows]
        for model in self._models:
            spec = model.running.spec
            if spec is not None and spec.rows is not None:
                values = _row_values(batch, spec.rows.columns, rows)
                _merge(found, model.running.look_at_rows(values))
            elif batch.payloads is not None:
                for at, row in enumerate(rows):
                    payload = batch.payloads[row]
                    if payload is not None:
                        found[at] |= self._of_picture(model, payload, found[at])
        return found

    def count(self, outcome: str, times: int) -> None:
        """Count samples that no model was asked about."""
        for model in self._models:
            if model.columns():
                model.running.count(outcome, times)

    def _of_picture(self, model: ModelOfStream, payload: bytes | Path, before: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        if not model.config.after:
            return next(iter(model.running.look_at(payload)), {})
        spec = model.running.spec
        if spec is not None and not isinstance(spec.task, Classify):
            model.running.refuse_use(f"after {model.config.after}: only a classifier looks at boxes")
            return {}
        detector = next(other for other in self._models if other.config.name == model.config.after)
        boxes: Any = before.get(detector.running.column("predicted_boxes"))
        if boxes is None:
            return {}  # the detector did not answer, which is counted there
        return _of_boxes(model, payload, boxes[: model.config.max_crops])


def _of_boxes(model: ModelOfStream, payload: bytes | Path, boxes: Sequence[dict[str, Any]]) -> Mapping[str, Scalar]:
    """The boxes with what a classifier says of each, and the surest of them."""
    column = model.running.column
    crops: list[Crop] = [(box["x"], box["y"], box["width"], box["height"]) for box in boxes]
    answers = model.running.look_at(payload, crops) if crops else []
    spec = model.running.spec
    if (crops and not answers) or spec is None:
        return {}
    label, score = column("predicted_label"), column("predicted_score")
    judged = [box | {"label": answer[label], "score": answer[score]} for box, answer in zip(boxes, answers, strict=True)]
    best = max(judged, key=lambda box: box["score"], default={"label": None, "score": None})
    return {
        column("model_name"): spec.name,
        column("model_version"): spec.version,
        label: best["label"],
        score: best["score"],
        column("predicted_boxes"): judged,
    }


def _row_values(batch: SampleBatch, columns: Sequence[str], rows: Sequence[int]) -> list[tuple[float | None, ...]]:
    absent: Sequence[Scalar] = [None] * len(batch)
    taken = [batch.columns.get(name, absent) for name in columns]
    return [tuple(_number(values[row]) for values in taken) for row in rows]


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _merge(found: Sequence[dict[str, Scalar]], answers: Sequence[Mapping[str, Scalar]]) -> None:
    for mine, answer in zip(found, answers, strict=False):  # no answers at all where the model failed
        mine.update(answer)
