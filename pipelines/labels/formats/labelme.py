"""labelme: one JSON file a picture, shapes in pixels, flags as classes of the whole picture."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import files_of, read_json, shapes_of

_KINDS = {
    "polygon": LabelKind.POLYGON, "linestrip": LabelKind.POLYLINE, "line": LabelKind.POLYLINE,
    "point": LabelKind.POINTS, "points": LabelKind.POINTS, "rectangle": LabelKind.BOX,
}  # fmt: skip
_TYPES = {LabelKind.POLYGON: "polygon", LabelKind.POLYLINE: "linestrip", LabelKind.POINTS: "points", LabelKind.BOX: "rectangle"}


class _Shape(msgspec.Struct, frozen=True):
    label: str
    points: tuple[tuple[float, float], ...]
    shape_type: str = "polygon"
    flags: dict[str, Any] = {}


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    image_path: str
    shapes: tuple[_Shape, ...] = ()
    flags: dict[str, Any] = {}
    catchment: dict[str, str] = {}


def read(path: Path) -> ForeignFile:
    """Read a file or a folder of `*.json` files. Raises as `read_json`."""
    found = ForeignFile("labelme")
    for file in files_of(path, ".json"):
        document = read_json(file, _Document)
        sample, sha256 = (document.catchment.get(name, "") for name in ("sample", "sha256"))
        for at, shape in enumerate(document.shapes):
            kind = _KINDS.get(shape.shape_type)
            if kind is None or not shape.points:
                found.losses[f"shapes of type {shape.shape_type[:40]}"] += 1
                continue
            geometry = _geometry(kind, shape.points)
            found.labels.append(
                Drawn(
                    document.image_path, kind, shape.label, geometry, sample=sample, sha256=sha256, source=str(file),
                    tool_id=str(at), attributes=shape.flags,
                )
            )  # fmt: skip
        classes = [name for name, is_set in document.flags.items() if is_set is True]
        found.labels += [
            Drawn(
                document.image_path, LabelKind.CLASS, name, sample=sample, sha256=sha256, source=str(file), tool_id=f"flag {name}"
            )
            for name in classes
        ]
        if not document.shapes and not classes:
            found.empty.append(Drawn(document.image_path, LabelKind.NOTHING, sample=sample, sha256=sha256, source=str(file)))
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write a file for each sample; what they cannot say is counted."""
    losses: Counter[str] = Counter()
    path.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        labels = shapes_of(task, (*_TYPES, LabelKind.CLASS), losses)
        losses.update("authors" for label in labels if label.author)
        document = {
            "version": "5.0.0",
            "flags": {label.value: True for label in labels if label.kind is LabelKind.CLASS},
            "shapes": [
                {"label": label.value, "points": _points(label), "shape_type": _TYPES[label.kind], "flags": label.attributes}
                for label in labels if label.kind in _TYPES
            ],
            "imagePath": task.name, "imageData": None, "imageHeight": task.height, "imageWidth": task.width,
            "catchment": {"sample": task.sample, "sha256": task.sha256},
        }  # fmt: skip
        write_atomic(path / f"{task.name.rsplit('.', 1)[0]}.json", msgspec.json.encode(document), mode=0o644)
    return losses


def _geometry(kind: LabelKind, points: tuple[tuple[float, float], ...]) -> tuple[float, ...]:
    if kind is not LabelKind.BOX:
        return tuple(number for point in points for number in point)
    xs, ys = zip(*points, strict=True)
    return (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))


def _points(label: Drawn) -> list[tuple[float, float]]:
    if label.kind is LabelKind.BOX:
        x, y, width, height = label.geometry
        return [(x, y), (x + width, y + height)]
    return list(zip(label.geometry[::2], label.geometry[1::2], strict=True))
