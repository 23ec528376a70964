"""Formats of pictures with boxes: COCO's one JSON of annotations, YOLO's text file for each picture."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pyvips
import yaml

from pipelines.errors import RefusedError, UnreadableImageError
from pipelines.imaging.picture_loader import open_header
from pipelines.training.export.samples import ExportSample, ExportSource, finish_file

_MAX_PIXELS = 1_000_000_000
_SIDES = ("x", "y", "width", "height")


def write_coco(source: ExportSource, folder: Path, boxes: str) -> int:
    """Write `<split>/` with the pictures and `annotations/instances_<split>.json`. Returns the rows.

    Args:
        source: the set.
        folder: where to.
        boxes: the column of boxes: a list of structs of x, y, width, height (px) and label.

    Raises:
        RefusedError: there is no such column, or a payload is no picture.
    """
    classes = _classes(source, boxes, "coco")
    (folder / "annotations").mkdir()
    total = 0
    for split in source.splits:
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for sample in source.samples(split):
            name, (width, height) = _write_picture(folder / split, sample), _size(sample)
            images.append({"id": sample.number + 1, "file_name": name, "width": width, "height": height})
            for box in sample.columns[boxes] or ():
                sides = [float(box[side]) for side in _SIDES]
                annotations.append({
                    "id": len(annotations) + 1,
                    "image_id": sample.number + 1,
                    "category_id": classes.index(box["label"]) + 1,
                    "bbox": sides,
                    "area": sides[2] * sides[3],
                    "iscrowd": 0,
                })  # fmt: skip
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        finish_file(path)
        total += len(images)
    return total


def write_yolo(source: ExportSource, folder: Path, boxes: str) -> int:
    """Write `images/<split>/`, `labels/<split>/` and data.yaml. Returns the rows. Args and errors are those of COCO."""
    classes = _classes(source, boxes, "yolo")
    total = 0
    for split in source.splits:
        pictures, labels = folder / "images" / split, folder / "labels" / split
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        for sample in source.samples(split):
            name, (width, height) = _write_picture(pictures, sample), _size(sample)
            lines = []
            for box in sample.columns[boxes] or ():
                x, y, wide, high = (float(box[side]) for side in _SIDES)
                centre = ((x + wide / 2) / width, (y + high / 2) / height, wide / width, high / height)
                lines.append(f"{classes.index(box['label'])} {' '.join(f'{side:.6f}' for side in centre)}\n")
            path = labels / f"{Path(name).stem}.txt"
            path.write_text("".join(lines))
            finish_file(path)
            total += 1
    data = {"path": ".", **{split: f"images/{split}" for split in source.splits}, "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    finish_file(folder / "data.yaml")
    return total


def _classes(source: ExportSource, boxes: str, form: str) -> list[str]:
    """The labels of all boxes, in order."""
    source.refuse_without_payload(form)
    if boxes not in source.columns:
        raise RefusedError(f"{form}: name the column of boxes (--boxes); there are {', '.join(source.columns)}")
    labels: set[str] = set()
    for split in source.splits:
        for sample in source.samples(split):
            for box in sample.columns[boxes] or ():
                labels.add(_checked(box, sample.number, boxes))
    return sorted(labels)


def _checked(box: Any, number: int, boxes: str) -> str:
    try:
        sides = [float(box[side]) for side in _SIDES]
        label = msgspec.convert(box["label"], str)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(
            f"sample {number}: {boxes} holds no boxes of x, y, width, height and label ({error}); derive such a column"
        ) from error
    if not all(math.isfinite(side) for side in sides) or sides[2] <= 0 or sides[3] <= 0:
        raise RefusedError(f"sample {number}: a box of {sides[2]:g} x {sides[3]:g} px; correct it, or leave the row out")
    return label


def _write_picture(folder: Path, sample: ExportSample) -> str:
    name = f"{sample.number:09d}.{sample.extension}"
    (folder / name).write_bytes(sample.payload or b"")
    finish_file(folder / name)
    return name


def _size(sample: ExportSample) -> tuple[int, int]:
    try:
        head = open_header(sample.payload or b"", _MAX_PIXELS)
    except (UnreadableImageError, pyvips.Error) as error:
        raise RefusedError(f"sample {sample.number}: {error}; leave it out (--where)") from error
    return head.width, head.height
