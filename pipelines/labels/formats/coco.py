"""COCO instances JSON: boxes, polygons and masks. Classes of whole pictures and "nothing" go into an extension key."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import read_json
from pipelines.labels.run_lengths import counts_of_text

_SHAPES = (LabelKind.BOX, LabelKind.POLYGON, LabelKind.MASK)


class _Ours(msgspec.Struct, frozen=True):
    sample: str = ""
    sha256: str = ""
    nothing: bool = False
    classes: tuple[str, ...] = ()
    author: str = ""


class _Image(msgspec.Struct, frozen=True):
    id: int
    file_name: str
    width: int = 0
    height: int = 0
    catchment: _Ours = _Ours()


class _Annotation(msgspec.Struct, frozen=True):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, ...] = ()
    segmentation: Any = None
    iscrowd: int = 0
    attributes: dict[str, Any] = {}
    catchment: _Ours = _Ours()


class _Category(msgspec.Struct, frozen=True):
    id: int
    name: str


class _Document(msgspec.Struct, frozen=True):
    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...] = ()
    categories: tuple[_Category, ...] = ()


def read(path: Path) -> ForeignFile:
    """Read one file. Raises as `read_json`."""
    document = read_json(path, _Document)
    found = ForeignFile("coco")
    images = {image.id: image for image in document.images}
    names = {category.id: category.name for category in document.categories}
    labelled: set[int] = set()
    for annotation in document.annotations:
        image, value = images.get(annotation.image_id), names.get(annotation.category_id)
        if image is None or value is None:
            found.losses["annotations of an image or a category that the file does not have"] += 1
            continue
        labelled.add(image.id)
        found.labels += _shapes(annotation, image, value, found.losses)
    for image in document.images:
        ours = [(LabelKind.CLASS, name) for name in image.catchment.classes]
        ours += [(LabelKind.NOTHING, "")] if image.catchment.nothing else []
        found.labels += [_drawn(image, kind, value) for kind, value in ours]
        if not ours and image.id not in labelled:
            found.empty.append(_drawn(image, LabelKind.NOTHING, ""))
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write one file; what it cannot say is counted."""
    losses: Counter[str] = Counter()
    names = sorted({label.value for task in tasks for label in task.labels if label.kind in _SHAPES})
    number = {name: at for at, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for at, task in enumerate(tasks, 1):
        classes = tuple(label.value for label in task.labels if label.kind is LabelKind.CLASS)
        nothing = any(label.kind is LabelKind.NOTHING for label in task.labels)
        ours = _Ours(task.sample, task.sha256, nothing, classes)
        images.append(msgspec.to_builtins(_Image(at, task.name, task.width, task.height, ours)))
        for label in task.labels:
            if label.kind in _SHAPES:
                annotations.append(_annotation(label, len(annotations) + 1, at, number[label.value]))
            elif label.kind not in (LabelKind.CLASS, LabelKind.NOTHING):
                losses[f"{label.kind} labels, which the format does not know"] += 1
            if label.author and label.kind not in _SHAPES:
                losses["authors of classes"] += 1
    categories = [{"id": at, "name": name} for name, at in number.items()]
    body = msgspec.json.encode({"images": images, "annotations": annotations, "categories": categories})
    write_atomic(path, body, mode=0o644)
    return losses


def _drawn(image: _Image, kind: LabelKind, value: str, **more: Any) -> Drawn:
    return Drawn(image.file_name, kind, value, sample=image.catchment.sample, sha256=image.catchment.sha256, **more)


def _shapes(annotation: _Annotation, image: _Image, value: str, losses: Counter[str]) -> list[Drawn]:
    more = {
        "tool_id": str(annotation.id),
        "author": annotation.catchment.author,
        "attributes": annotation.attributes | ({"iscrowd": 1} if annotation.iscrowd else {}),
    }
    shape = annotation.segmentation
    if isinstance(shape, dict) and "counts" in shape:
        counts = shape["counts"] if isinstance(shape["counts"], list) else counts_of_text(str(shape["counts"]))
        return [_drawn(image, LabelKind.MASK, value, geometry=(*map(float, shape["size"]), *map(float, counts)), **more)]
    if isinstance(shape, list) and shape:
        if len(shape) > 1:
            losses["annotations of several parts: each part becomes a polygon"] += 1
        return [
            _drawn(
                image, LabelKind.POLYGON, value, geometry=tuple(map(float, part)), **{**more, "tool_id": f"{annotation.id}.{at}"}
            )
            for at, part in enumerate(shape)
        ]
    if len(annotation.bbox) == 4:
        return [_drawn(image, LabelKind.BOX, value, geometry=annotation.bbox, **more)]
    losses["annotations without a shape"] += 1
    return []


def _annotation(label: Drawn, number: int, image: int, category: int) -> dict[str, Any]:
    made: dict[str, Any] = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
    if label.kind is LabelKind.BOX:
        made |= {"bbox": label.geometry, "area": label.geometry[2] * label.geometry[3]}
    elif label.kind is LabelKind.POLYGON:
        xs, ys = label.geometry[::2], label.geometry[1::2]
        made |= {"segmentation": [label.geometry], "bbox": (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))}
    else:
        height, width, *counts = map(int, label.geometry)
        made["segmentation"] = {"size": [height, width], "counts": counts}
    attributes = {key: value for key, value in label.attributes.items() if key != "iscrowd"}
    made |= {"attributes": attributes} if attributes else {}
    made |= {"iscrowd": 1} if label.attributes.get("iscrowd") else {}
    return made | ({"catchment": {"author": label.author}} if label.author else {})
