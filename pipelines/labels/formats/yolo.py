"""YOLO: a text file a picture, a line a shape, as shares of the picture's size; names of classes in data.yaml or classes.txt.

Three dialects: boxes (detect), polygons (segment) and turned boxes by their four corners (obb). A line of nine words may be a
polygon or a turned box, so it is the reader who says which.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import NotFoundError, RefusedError
from pipelines.geometry import corners_of_rotated
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import files_of, read_body, shapes_of

_NAME_FILES = ("data.yaml", "classes.txt", "obj.names")
_DIGITS = 6
_AS_TURNED = "boxes, written as turned by 0 degrees"


def read_shapes(kind: LabelKind, path: Path) -> ForeignFile:
    """Read a folder of `*.txt` files whose shapes are of one kind; lines of five words are boxes in each dialect.

    Raises:
        NotFoundError: there are none.
        RefusedError: there are no names of classes, or a line is not a shape.
    """
    names = _names(path)
    found = ForeignFile("yolo")
    for file in files_of(path, ".txt"):
        if file.name in _NAME_FILES:
            continue
        lines = [line.split() for line in read_body(file).decode("utf-8", "replace").splitlines() if line.strip()]
        for at, words in enumerate(lines):
            fits = (
                len(words) == 5
                or (kind is LabelKind.POLYGON and len(words) >= 7)
                or (kind is LabelKind.ROTATED and len(words) == 9)
            )
            if not fits:
                found.losses["lines that are not shapes of this dialect (detect, segment or obb)"] += 1
                continue
            found.labels.append(_shape(file, at, words, names, LabelKind.BOX if len(words) == 5 else kind))
        if not lines:
            found.empty.append(Drawn(file.name, LabelKind.NOTHING, source=str(file)))
    return found


def write_shapes(kind: LabelKind, path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write `data.yaml` and `labels/*.txt` with shapes of one kind; what they cannot say is counted."""
    losses: Counter[str] = Counter()
    kinds = (LabelKind.ROTATED, LabelKind.BOX) if kind is LabelKind.ROTATED else (kind,)
    names = sorted({label.value for task in tasks for label in task.labels if label.kind in kinds})
    (path / "labels").mkdir(parents=True, exist_ok=True)
    document = yaml.safe_dump({"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}, sort_keys=False)
    write_atomic(path / "data.yaml", document.encode(), mode=0o644)
    for task in tasks:
        shapes = shapes_of(task, kinds, losses)
        if shapes and not (task.width and task.height):
            losses["shapes of samples without width and height"] += len(shapes)
            continue
        losses.update("authors" for label in shapes if label.author)
        losses.update("attributes" for label in shapes if label.attributes)
        losses.update(_AS_TURNED for label in shapes if label.kind is LabelKind.BOX and kind is LabelKind.ROTATED)
        lines = "".join(f"{names.index(label.value)} {_shares(label, kind, task)}\n" for label in shapes)
        write_atomic(path / "labels" / f"{task.name.rsplit('.', 1)[0]}.txt", lines.encode(), mode=0o644)
    return losses


Reader = Callable[[Path], ForeignFile]
Writer = Callable[[Path, list[LabelTask]], Counter[str]]
DIALECTS: dict[str, tuple[Reader, Writer]] = {
    name: (partial(read_shapes, kind), partial(write_shapes, kind))
    for name, kind in (("yolo", LabelKind.BOX), ("yolo-seg", LabelKind.POLYGON), ("yolo-obb", LabelKind.ROTATED))
}


def _names(path: Path) -> dict[int, str]:
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder; give an existing one")
    folder = path if path.is_dir() else path.parent
    for name in _NAME_FILES:
        if not (folder / name).is_file():
            continue
        text = read_body(folder / name).decode("utf-8", "replace")
        if name != "data.yaml":
            return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
        try:
            listed: Any = (yaml.safe_load(text) or {}).get("names")
        except (yaml.YAMLError, AttributeError) as error:
            raise RefusedError(f"{folder / name}: not YAML with names: {error}") from error
        if isinstance(listed, list | dict):
            return {int(at): str(value) for at, value in (enumerate(listed) if isinstance(listed, list) else listed.items())}
    raise RefusedError(f"{folder}: no names of classes; put data.yaml or classes.txt there")


def _shape(file: Path, at: int, words: list[str], names: dict[int, str], kind: LabelKind) -> Drawn:
    try:
        value, numbers = names[int(words[0])], tuple(map(float, words[1:]))
    except (ValueError, KeyError) as error:
        raise RefusedError(f"{file}:{at + 1}: not a class of the names and shares: {error}") from error
    if len(numbers) % 2:
        raise RefusedError(f"{file}:{at + 1}: an odd number of shares; a point is two")
    if kind is LabelKind.BOX:
        x, y, width, height = numbers
        numbers = (x - width / 2, y - height / 2, width, height)
    return Drawn(file.name, kind, value, numbers, tool_id=str(at), is_share=True, source=str(file))


def _shares(label: Drawn, kind: LabelKind, task: LabelTask) -> str:
    """The numbers of a line; a box is its centre and its sides, all others are points."""
    numbers: Sequence[float] = label.geometry
    if label.kind is LabelKind.BOX:
        x, y, width, height = numbers
        numbers = (x + width / 2, y + height / 2, width, height)
        if kind is LabelKind.ROTATED:
            numbers = corners_of_rotated((*numbers, 0.0))
    elif kind is LabelKind.ROTATED:
        numbers = corners_of_rotated(numbers)
    sizes = (task.width, task.height) * (len(numbers) // 2)
    return " ".join(f"{number / size:.{_DIGITS}f}" for number, size in zip(numbers, sizes, strict=True))
