"""Label Studio's JSON: tasks with annotations, each of one author, shapes in percent. An empty one is "nothing"."""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.geometry import turned_about
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import read_json, shapes_of
from pipelines.labels.formats.studio_brush import brush_of, mask_of_brush
from pipelines.labels.run_lengths import mask_of, runs_of

_UPLOAD = re.compile(r"[0-9a-f]{8}-")
_UNSIZED = "turned boxes and brushes without the picture's size"
_KINDS = {
    "rectanglelabels": LabelKind.BOX, "polygonlabels": LabelKind.POLYGON, "keypointlabels": LabelKind.POINTS,
    "brushlabels": LabelKind.MASK, "choices": LabelKind.CLASS,
}  # fmt: skip
_TYPES = {kind: name for name, kind in _KINDS.items()} | {LabelKind.ROTATED: "rectanglelabels"}


class _Result(msgspec.Struct, frozen=True):
    type: str = ""
    value: dict[str, Any] = {}
    id: str = ""
    original_width: int = 0
    original_height: int = 0
    meta: dict[str, Any] = {}


class _Annotation(msgspec.Struct, frozen=True):
    id: int | str = ""
    result: tuple[_Result, ...] = ()
    completed_by: int | str | dict[str, Any] | None = None
    was_cancelled: bool = False
    created_at: str = ""
    lead_time: float | None = None


class _Task(msgspec.Struct, frozen=True):
    data: dict[str, Any]
    id: int | str = ""
    annotations: tuple[_Annotation, ...] = ()
    predictions: tuple[Any, ...] = ()


def read(path: Path) -> ForeignFile:
    """Read an export as JSON (not JSON-MIN). Raises as `read_json`.

    Raises:
        RefusedError: a shape lacks a number, or a brush does not fill its picture.
    """
    found = ForeignFile("label-studio")
    for task in read_json(path, tuple[_Task, ...]):
        if task.predictions:
            found.losses["predictions of a model, which nobody has confirmed"] += len(task.predictions)
        image = _name(task.data)
        sample, sha256 = (str(task.data.get(name) or "") for name in ("sample", "sha256"))
        about = Drawn(image, LabelKind.NOTHING, sample=sample, sha256=sha256)
        done = [each for each in task.annotations if not each.was_cancelled]
        found.losses["annotations that were cancelled or skipped"] += len(task.annotations) - len(done)
        for annotation in done:
            found.labels += _labels(path, about, annotation, found.losses)
    found.losses = +found.losses
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write one file of tasks, with an annotation for each author; what it cannot say is counted."""
    losses: Counter[str] = Counter()
    documents = []
    for at, task in enumerate(tasks, 1):
        known = shapes_of(task, (*_TYPES, LabelKind.NOTHING), losses)
        shapes = [label for label in known if label.kind in (LabelKind.CLASS, LabelKind.NOTHING) or (task.width and task.height)]
        losses["shapes of samples without width and height"] += len(known) - len(shapes)
        authors = list(dict.fromkeys((label.author, label.kind is LabelKind.NOTHING) for label in shapes))
        annotations = [
            _annotation(
                task, number, [label for label in shapes if (label.author, label.kind is LabelKind.NOTHING) == key], losses
            )
            for number, key in enumerate(authors, 1)
        ]
        picture = {"image": f"/data/local-files/?d=images/{task.name}", "sample": task.sample, "sha256": task.sha256}
        documents.append({"id": at, "data": picture, "annotations": annotations})
    write_atomic(path, msgspec.json.encode(documents), mode=0o644)
    return +losses


def _name(data: dict[str, Any]) -> str:
    """The picture's file name: of an upload without the letters that Label Studio puts before it."""
    text = str(data.get("image") or next((value for value in data.values() if isinstance(value, str) and "." in value), ""))
    parts = urlsplit(text)
    inner = parse_qs(parts.query).get("d", [""])[0]
    name = unquote(inner or parts.path).rsplit("/", 1)[-1]
    return _UPLOAD.sub("", name, count=1) if "/upload/" in parts.path else name


def _author(annotation: _Annotation) -> str:
    who = annotation.completed_by
    if isinstance(who, dict):
        return str(who.get("email") or who.get("id") or "")
    return "" if who is None else str(who)


def _micros(text: str) -> int:
    if not text:
        return 0
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1_000_000 + 0.5)
    except ValueError:
        return 0


def _labels(path: Path, about: Drawn, annotation: _Annotation, losses: Counter[str]) -> Iterable[Drawn]:
    """The labels of one annotation; of one without results, that there is nothing."""
    stated = msgspec.structs.replace(about, author=_author(annotation), made_us=_micros(annotation.created_at))
    if not annotation.result:
        return [msgspec.structs.replace(stated, tool_id=str(annotation.id))]
    found: list[Drawn] = []
    for at, result in enumerate(annotation.result):
        kind = _KINDS.get(result.type)
        if kind is None:
            losses[f"results of type {result.type[:40]}"] += 1
            continue
        try:
            shape = _shape(kind, result)
        except (KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"{path}: a {result.type} of {about.image} lacks a number: {error}") from error
        if shape is None:
            losses[_UNSIZED] += 1
            continue
        numbers, kind, is_share = shape
        attributes = result.meta
        for value in result.value.get(result.type) or ():
            tool_id = f"{annotation.id}/{result.id or at}/{value}"
            found.append(
                msgspec.structs.replace(
                    stated,
                    kind=kind,
                    value=str(value),
                    geometry=numbers,
                    is_share=is_share,
                    tool_id=tool_id,
                    attributes=attributes,
                )
            )
    return found


def _shape(kind: LabelKind, result: _Result) -> tuple[tuple[float, ...], LabelKind, bool] | None:
    """Numbers, kind, and whether they are shares; None for what needs the picture's size and lacks it."""
    width, height, value = result.original_width, result.original_height, result.value
    is_share = not (width and height)
    across, down = (0.01, 0.01) if is_share else (width / 100, height / 100)
    if kind is LabelKind.CLASS:
        return (), kind, False
    if kind is LabelKind.MASK:
        return None if is_share else (runs_of(mask_of_brush(value["rle"], width, height)), kind, False)
    if kind is LabelKind.POLYGON:
        return (
            tuple(number * scale for point in value["points"] for number, scale in zip(point, (across, down), strict=True)),
            kind,
            is_share,
        )
    x, y = value["x"] * across, value["y"] * down
    if kind is LabelKind.POINTS:
        return (x, y), kind, is_share
    sides = (value["width"] * across, value["height"] * down)
    degrees = float(value.get("rotation") or 0.0)
    if not degrees:
        return (x, y, *sides), kind, is_share
    centre = turned_about(x + sides[0] / 2, y + sides[1] / 2, x, y, degrees)
    return None if is_share else ((*centre, *sides, degrees % 360.0), LabelKind.ROTATED, False)


def _annotation(task: LabelTask, number: int, labels: list[Drawn], losses: Counter[str]) -> dict[str, Any]:
    made = max((label.made_us for label in labels), default=0)
    results = [result for label in labels if label.kind is not LabelKind.NOTHING for result in _results(task, label, losses)]
    document: dict[str, Any] = {"id": number, "result": results}
    if labels and labels[0].author:
        document["completed_by"] = {"email": labels[0].author}
    if made:
        document["created_at"] = datetime.fromtimestamp(made / 1e6, UTC).isoformat()
    return document


def _results(task: LabelTask, label: Drawn, losses: Counter[str]) -> Iterable[dict[str, Any]]:
    kind = _TYPES[label.kind]
    fixed: dict[str, Any] = {"type": kind, "from_name": kind, "to_name": "image"}
    if label.kind is not LabelKind.CLASS:
        fixed |= {"original_width": task.width, "original_height": task.height, "image_rotation": 0}
    fixed |= {"meta": label.attributes} if label.attributes else {}
    parts = [label.geometry]
    if label.kind is LabelKind.POINTS:
        parts = [label.geometry[at : at + 2] for at in range(0, len(label.geometry), 2)]
        losses["labels of several points: each point becomes a label"] += len(parts) > 1
    return [fixed | {"value": {**_value(task, label.kind, part), kind: [label.value]}} for part in parts]


def _value(task: LabelTask, kind: LabelKind, numbers: tuple[float, ...]) -> dict[str, Any]:
    if kind is LabelKind.CLASS:
        return {}
    if kind is LabelKind.MASK:
        return {"format": "rle", "rle": brush_of(mask_of(numbers))}
    across, down = 100 / task.width, 100 / task.height
    if kind is LabelKind.POLYGON:
        return {"points": [(x * across, y * down) for x, y in zip(numbers[::2], numbers[1::2], strict=True)], "closed": True}
    if kind is LabelKind.POINTS:
        return {"x": numbers[0] * across, "y": numbers[1] * down, "width": 0.5}
    if kind is LabelKind.BOX:
        x, y, width, height = numbers
        return {"x": x * across, "y": y * down, "width": width * across, "height": height * down, "rotation": 0}
    x, y, width, height, degrees = numbers
    left, top = turned_about(x - width / 2, y - height / 2, x, y, degrees)
    return {"x": left * across, "y": top * down, "width": width * across, "height": height * down, "rotation": degrees}
