"""Folders of masks: a grey PNG a picture, each value a class by classes.txt (line 1 is value 0, which means no class).

Stands alone because each format is one module.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pyvips

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import files_of, read_body, shapes_of
from pipelines.labels.run_lengths import MAX_PIXELS, mask_of, runs_of

NAMES = "classes.txt"
_MAX_CLASSES = 255


def read(path: Path) -> ForeignFile:
    """Read a folder of `*.png` files and its `classes.txt`.

    Raises:
        NotFoundError: there are none.
        RefusedError: a mask is not grey, or has a value without a name.
    """
    names = [line.strip() for line in read_body(path / NAMES).decode("utf-8", "replace").splitlines()]
    found = ForeignFile("masks")
    for file in files_of(path, ".png"):
        mask = _pixels(file)
        values = [int(value) for value in np.unique(mask) if value]
        if values and values[-1] >= len(names):
            raise RefusedError(f"{file}: value {values[-1]} has no line in {NAMES}")
        for value in values:
            found.labels.append(
                Drawn(file.name, LabelKind.MASK, names[value], runs_of(mask == value), tool_id=str(value), source=str(file))
            )
        if not values:
            found.empty.append(Drawn(file.name, LabelKind.NOTHING, source=str(file)))
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write a mask for each sample; what it cannot say is counted."""
    losses: Counter[str] = Counter()
    path.mkdir(parents=True, exist_ok=True)
    names = ["background", *sorted({label.value for task in tasks for label in task.labels if label.kind is LabelKind.MASK})]
    if len(names) > _MAX_CLASSES:
        raise RefusedError(f"{len(names):,} classes are too many for grey masks; export as coco")
    write_atomic(path / NAMES, "".join(f"{name}\n" for name in names).encode(), mode=0o644)
    for task in tasks:
        masks = shapes_of(task, (LabelKind.MASK,), losses)
        losses.update("authors" for label in masks if label.author)
        size = (int(masks[0].geometry[0]), int(masks[0].geometry[1])) if masks else (task.height, task.width)
        pixels = np.zeros(size, np.uint8)
        for label in masks:
            area = mask_of(label.geometry)
            losses["pixels under two masks: the later one stays"] += int((pixels[area] != 0).sum())
            pixels[area] = names.index(label.value)
        if pixels.size:
            body: bytes = pyvips.Image.new_from_array(pixels).pngsave_buffer()
            write_atomic(path / f"{task.name.rsplit('.', 1)[0]}.png", body, mode=0o644)
    return +losses


def _pixels(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    body = read_body(file)
    try:
        image = pyvips.Image.new_from_buffer(body, "")
        if image.width * image.height > MAX_PIXELS:
            raise RefusedError(f"{file}: {image.width} x {image.height} pixels are too many")
        if image.bands != 1 or image.format != "uchar":
            raise RefusedError(f"{file}: has {image.bands} bands of {image.format}; a mask is grey with 8 bits")
        return np.asarray(image.numpy(), np.uint8).reshape(image.height, image.width)
    except pyvips.Error as error:
        raise RefusedError(f"{file}: not a PNG: {' '.join(str(error).split())[:120]}") from error
