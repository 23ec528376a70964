"""Datumaro's JSON: items with annotations in pixels; a turned box is a box with the attribute `rotation`, as CVAT writes it."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import read_json, shapes_of
from pipelines.labels.run_lengths import counts_of_text, text_of_counts

_KINDS = {
    "label": LabelKind.CLASS, "bbox": LabelKind.BOX, "polygon": LabelKind.POLYGON, "polyline": LabelKind.POLYLINE,
    "points": LabelKind.POINTS, "mask": LabelKind.MASK,
}  # fmt: skip
_TYPES = {kind: name for name, kind in _KINDS.items()} | {LabelKind.ROTATED: "bbox"}
_ROTATION = "rotation"
_NOTHING = "catchment_nothing"


class _Label(msgspec.Struct, frozen=True):
    name: str


class _Labels(msgspec.Struct, frozen=True):
    labels: tuple[_Label, ...] = ()


class _Categories(msgspec.Struct, frozen=True):
    label: _Labels = _Labels()


class _Annotation(msgspec.Struct, frozen=True):
    type: str
    id: int = 0
    label_id: int | None = None
    attributes: dict[str, Any] = {}
    bbox: tuple[float, ...] = ()
    points: tuple[float, ...] = ()
    rle: dict[str, Any] = {}


class _Image(msgspec.Struct, frozen=True):
    path: str | None = None


class _Item(msgspec.Struct, frozen=True):
    id: str
    annotations: tuple[_Annotation, ...] = ()
    attr: dict[str, Any] = {}
    image: _Image = _Image()


class _Document(msgspec.Struct, frozen=True):
    items: tuple[_Item, ...]
    categories: _Categories = _Categories()


def read(path: Path) -> ForeignFile:
    """Read one file of `annotations/`. Raises as `read_json`.

    Raises:
        RefusedError: a shape lacks a number.
    """
    document = read_json(path, _Document)
    names = [label.name for label in document.categories.label.labels]
    found = ForeignFile("datumaro")
    for item in document.items:
        sample, sha256 = (str(item.attr.get(name) or "") for name in ("sample", "sha256"))
        about = Drawn(item.image.path or item.id, LabelKind.NOTHING, sample=sample, sha256=sha256)
        if item.attr.get(_NOTHING):
            found.labels.append(about)
        elif not item.annotations:
            found.empty.append(about)
        for at, annotation in enumerate(item.annotations):
            kind = _KINDS.get(annotation.type)
            if kind is None:
                found.losses[f"annotations of type {annotation.type[:40]}"] += 1
            elif annotation.label_id is None or not 0 <= annotation.label_id < len(names):
                found.losses["annotations without a category"] += 1
            else:
                found.labels.append(_label(path, about, annotation, kind, names[annotation.label_id], at))
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write one file; what it cannot say is counted."""
    losses: Counter[str] = Counter()
    names = sorted({label.value for task in tasks for label in task.labels if label.kind in _TYPES})
    number = {name: at for at, name in enumerate(names)}
    items = []
    for task in tasks:
        labels = shapes_of(task, (*_TYPES, LabelKind.NOTHING), losses)
        losses.update("authors" for label in labels if label.author)
        attributes: dict[str, Any] = {"sample": task.sample, "sha256": task.sha256}
        attributes |= {_NOTHING: True} if any(label.kind is LabelKind.NOTHING for label in labels) else {}
        drawn = [label for label in labels if label.kind is not LabelKind.NOTHING]
        items.append(
            {
                "id": task.name.rsplit(".", 1)[0],
                "annotations": [_annotation(label, at, number[label.value]) for at, label in enumerate(drawn, 1)],
                "attr": attributes,
                "image": {"path": task.name, **({"size": [task.height, task.width]} if task.width and task.height else {})},
            }
        )
    categories = {"label": {"labels": [{"name": name, "parent": "", "attributes": []} for name in names], "attributes": []}}
    document = {"dm_format_version": "1.0", "media_type": 2, "infos": {}, "categories": categories, "items": items}
    write_atomic(path, msgspec.json.encode(document), mode=0o644)
    return losses


def _label(path: Path, about: Drawn, annotation: _Annotation, kind: LabelKind, value: str, at: int) -> Drawn:
    attributes = dict(annotation.attributes)
    try:
        geometry = _geometry(annotation, kind)
        degrees = float(attributes.pop(_ROTATION, 0.0) or 0.0) if kind is LabelKind.BOX else 0.0
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{path}: a {annotation.type} of {about.image} lacks a number: {error}") from error
    if degrees:
        x, y, width, height = geometry
        kind, geometry = LabelKind.ROTATED, (x + width / 2, y + height / 2, width, height, degrees % 360.0)
    return msgspec.structs.replace(
        about, kind=kind, value=value, geometry=geometry, tool_id=str(annotation.id or f"at {at}"), attributes=attributes
    )


def _geometry(annotation: _Annotation, kind: LabelKind) -> tuple[float, ...]:
    if kind is LabelKind.MASK:
        counts = annotation.rle["counts"]
        numbers = counts_of_text(counts) if isinstance(counts, str) else counts
        return (*map(float, annotation.rle["size"]), *map(float, numbers))
    if kind is LabelKind.BOX:
        x, y, width, height = annotation.bbox
        return (x, y, width, height)
    return () if kind is LabelKind.CLASS else annotation.points


def _annotation(label: Drawn, number: int, category: int) -> dict[str, Any]:
    made: dict[str, Any] = {"id": number, "type": _TYPES[label.kind], "attributes": dict(label.attributes), "group": 0}
    made["label_id"] = category
    if label.kind is LabelKind.BOX:
        made["bbox"] = label.geometry
    elif label.kind is LabelKind.ROTATED:
        x, y, width, height, degrees = label.geometry
        made |= {"bbox": (x - width / 2, y - height / 2, width, height)}
        made["attributes"][_ROTATION] = degrees
    elif label.kind is LabelKind.MASK:
        height, width, *counts = map(int, label.geometry)
        made["rle"] = {"counts": text_of_counts(counts), "size": [height, width]}
    elif label.kind is not LabelKind.CLASS:
        made["points"] = label.geometry
        if label.kind is LabelKind.POINTS:
            made["visibility"] = [2] * (len(label.geometry) // 2)
    if label.kind is not LabelKind.CLASS:
        made["z_order"] = 0
    return made
