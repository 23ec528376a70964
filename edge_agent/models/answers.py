"""From a model's raw outputs to the columns of a prediction, in the model's process. Pure; it needs numpy of the `infer` extra.

Boxes follow the common way of each layout: the best label of each box, those below `min_score` left out, then non-maximum
suppression label by label (the better one of two that overlap stays), then the best `max_boxes`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.errors import ConfigError, ModelError
from edge_agent.models.picture_input import InputPlacement
from schemas.model import ModelSpec
from schemas.model_tasks import MAX_MASK_RUNS, MAX_VALUES, Classify, Detect, Embed, Regress, Segment

try:
    import numpy as np
except ImportError as error:  # pragma: no cover  # the bare install
    raise ConfigError(f"a model is configured, but {error.name} is missing; install catchment[infer]") from error

# More candidates than this are not looked at: overlaps are compared pairwise.
_MAX_CANDIDATES = 5_000


def read_answers(
    spec: ModelSpec, labels: Sequence[str], outputs: Sequence[Any], placement: InputPlacement | None
) -> Mapping[str, Any]:
    """Column -> value, of one sample.

    Args:
        spec: what the signed metadata say of the model.
        labels: what its answers mean; the numbers themselves beyond them.
        outputs: the chosen outputs, for one sample.
        placement: where the picture lies in the input; None: a row.

    Raises:
        ModelError: the outputs are not what the task has, or not finite.
    """
    if not all(np.isfinite(output).all() for output in outputs):
        raise ModelError(f"{spec.name} version {spec.version} answers with numbers that are not finite")
    if isinstance(spec.task, Detect):
        if placement is None:
            raise ModelError(f"{spec.name}: boxes are of pictures")
        return _boxes(spec.task, labels, outputs, placement)
    if isinstance(spec.task, Segment):
        return _mask(spec.task, labels, outputs[0])
    values = np.asarray(outputs[0], dtype=np.float64).reshape(-1)
    if not values.size:
        raise ModelError(f"{spec.name} version {spec.version} answers nothing")
    if isinstance(spec.task, Classify):
        return _best(labels, values, softmax=spec.softmax)
    if values.size > MAX_VALUES:
        raise ModelError(f"{spec.name} answers with {values.size:,} numbers; at most {MAX_VALUES:,} are stored")
    if isinstance(spec.task, Regress):
        return {"predicted_value": float(values[0]), "predicted_values": values.tolist()}
    return {"predicted_embedding": _embedding(spec.task, values)}


def _best(labels: Sequence[str], scores: Any, *, softmax: bool) -> Mapping[str, Any]:
    if softmax:
        powers = np.exp(scores - scores.max())
        scores = powers / powers.sum()
    best = int(scores.argmax())
    return {"predicted_label": _label(labels, best), "predicted_score": min(1.0, max(0.0, float(scores[best])))}


def _embedding(task: Embed, values: Any) -> list[float]:
    length = float(np.linalg.norm(values))
    found: list[float] = (values / length if task.has_unit_length and length else values).tolist()
    return found


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)


# -- boxes ----------------------------------------------------------------------------------------------------------------


def _boxes(task: Detect, labels: Sequence[str], outputs: Sequence[Any], placement: InputPlacement) -> Mapping[str, Any]:
    corners, scores, indexes = candidates(task, outputs)
    corners = _in_picture(task, corners, placement)
    shown = np.flatnonzero((corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1]))  # the others lie outside
    corners, scores, indexes = corners[shown], scores[shown], indexes[shown]
    kept = suppress_overlaps(task, corners, scores, indexes)
    boxes = [
        {
            "x": float(corners[at, 0]),
            "y": float(corners[at, 1]),
            "width": float(corners[at, 2] - corners[at, 0]),
            "height": float(corners[at, 3] - corners[at, 1]),
            "label": _label(labels, int(indexes[at])),
            "score": min(1.0, float(scores[at])),
        }
        for at in kept
    ]
    best: Mapping[str, Any] = boxes[0] if boxes else {"label": None, "score": None}
    return {"predicted_label": best["label"], "predicted_score": best["score"], "predicted_boxes": boxes}


def candidates(task: Detect, outputs: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Corners (n, 4) as the model gives them, score and label index of each box that is good enough, best first.

    Raises:
        ModelError: an output has another shape than the layout.
    """
    first: Any = np.asarray(outputs[0], dtype=np.float64)
    first = first.reshape(first.shape[-2:])
    if task.layout == "rows":
        _demand(first.shape[1] == 6, "rows of six numbers", first)
        raw, scores, indexes = first[:, :4], first[:, 4], first[:, 5].astype(int)
    else:
        raw, each = _split(task, first, outputs)
        start = 1 if task.has_background else 0
        _demand(each.shape[1] > start and len(each) == len(raw), "as many scores as boxes", each)
        indexes = each[:, start:].argmax(axis=1) + start
        scores = each[np.arange(len(each)), indexes]
    good = np.flatnonzero(scores >= task.min_score)
    good = good[np.argsort(-scores[good], kind="stable")][:_MAX_CANDIDATES]
    return _as_corners(task, raw[good]), scores[good], indexes[good]


def _split(task: Detect, first: Any, outputs: Sequence[Any]) -> tuple[Any, Any]:
    if task.layout == "yolo":
        _demand(first.shape[0] > 4, "4 + labels rows", first)
        return first[:4].T, first[4:].T
    if task.layout == "yolo-objectness":
        _demand(first.shape[1] > 5, "5 + labels columns", first)
        return first[:, :4], first[:, 5:] * first[:, 4:5]
    _demand(first.shape[1] == 4 and len(outputs) == 2, "boxes of four numbers, and scores", first)
    each: Any = np.asarray(outputs[1], dtype=np.float64)
    return first, each.reshape(each.shape[-2:])


def _demand(fits: bool, expected: str, output: Any) -> None:
    if not fits:
        raise ModelError(f"its output has the shape {list(output.shape)}; the layout has {expected}")


def _as_corners(task: Detect, raw: Any) -> Any:
    if task.form == "corners":
        return raw
    half = raw[:, 2:] / 2
    return np.concatenate([raw[:, :2] - half, raw[:, :2] + half], axis=1)


def _in_picture(task: Detect, corners: Any, placement: InputPlacement) -> Any:
    """Corners in pixels of the picture, within what the model was shown."""
    found = corners.copy()
    if task.unit == "shares":
        found[:, 0::2] *= placement.scale_x * placement.width + 2 * placement.pad_x
        found[:, 1::2] *= placement.scale_y * placement.height + 2 * placement.pad_y
    found[:, 0::2] = ((found[:, 0::2] - placement.pad_x) / placement.scale_x).clip(0, placement.width) + placement.left
    found[:, 1::2] = ((found[:, 1::2] - placement.pad_y) / placement.scale_y).clip(0, placement.height) + placement.top
    return found


def suppress_overlaps(task: Detect, corners: Any, scores: Any, indexes: Any) -> list[int]:
    """Positions of the boxes that stay, best first. `scores` fall."""
    if task.layout == "rows":
        return list(range(min(len(scores), task.max_boxes)))
    areas = (corners[:, 2] - corners[:, 0]).clip(0) * (corners[:, 3] - corners[:, 1]).clip(0)
    left, kept = np.arange(len(scores)), list[int]()
    while left.size and len(kept) < task.max_boxes:
        best, rest = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(corners[best, :2], corners[rest, :2])
        high = np.minimum(corners[best, 2:], corners[rest, 2:])
        shared = (high - low).clip(0).prod(axis=1)
        union = areas[best] + areas[rest] - shared
        overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        left = rest[(overlap <= task.max_overlap) | (indexes[rest] != indexes[best])]
    return kept


# -- masks ----------------------------------------------------------------------------------------------------------------


def _mask(task: Segment, labels: Sequence[str], output: Any) -> Mapping[str, Any]:
    planes = np.asarray(output)
    if planes.ndim != 4:
        raise ModelError(f"its output has the shape {list(planes.shape)}; a mask has four dimensions")
    planes = planes[0] if task.layout == "nchw" else planes[0].transpose(2, 0, 1)
    mask = (planes[0] >= task.threshold).astype(np.int64) if len(planes) == 1 else planes.argmax(axis=0)
    counts = np.bincount(mask.reshape(-1))
    # The first label is the background, by convention: the largest of the others is what the picture shows.
    shown = int(counts[1:].argmax()) + 1 if counts[1:].any() else 0
    return {"predicted_label": _label(labels, shown), "predicted_mask": encode_mask(mask)}


def encode_mask(mask: Any) -> list[int]:
    """Width, height, then label index and run length in turn, row by row.

    Raises:
        ModelError: it has too many runs to be stored: it is noise.
    """
    flat = mask.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    if len(starts) > MAX_MASK_RUNS:
        raise ModelError(f"its mask has {len(starts):,} runs; at most {MAX_MASK_RUNS:,} are stored")
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    runs = np.stack([flat[starts], lengths], axis=1).reshape(-1)
    return [int(mask.shape[1]), int(mask.shape[0]), *map(int, runs)]
