"""YOLO detection: one text file a picture, a line a box, as shares of the picture's size; names in data.yaml or classes.txt."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import files_of, read_body, shapes_of

_NAME_FILES = ("data.yaml", "classes.txt", "obj.names")
_DIGITS = 6


def read(path: Path) -> ForeignFile:
    """Read a folder of `*.txt` files.

    Raises:
        NotFoundError: there are none.
        RefusedError: there are no names of classes, or a line is not a box.
    """
    names = _names(path)
    found = ForeignFile("yolo")
    for file in files_of(path, ".txt"):
        if file.name in _NAME_FILES:
            continue
        lines = [line.split() for line in read_body(file).decode("utf-8", "replace").splitlines() if line.strip()]
        for at, words in enumerate(lines):
            if len(words) != 5:
                found.losses["lines that are not boxes (segments or oriented boxes)"] += 1
                continue
            found.labels.append(_box(file, at, words, names))
        if not lines:
            found.empty.append(Drawn(file.name, LabelKind.NOTHING, source=str(file)))
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write `data.yaml` and `labels/*.txt`; what they cannot say is counted."""
    losses: Counter[str] = Counter()
    names = sorted({label.value for task in tasks for label in task.labels if label.kind is LabelKind.BOX})
    (path / "labels").mkdir(parents=True, exist_ok=True)
    document = yaml.safe_dump({"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}, sort_keys=False)
    write_atomic(path / "data.yaml", document.encode(), mode=0o644)
    for task in tasks:
        boxes = shapes_of(task, (LabelKind.BOX,), losses)
        if boxes and not (task.width and task.height):
            losses["boxes of samples without width and height"] += len(boxes)
            continue
        losses.update("authors" for label in boxes if label.author)
        losses.update("attributes" for label in boxes if label.attributes)
        lines = "".join(f"{names.index(label.value)} {_shares(label, task)}\n" for label in boxes)
        write_atomic(path / "labels" / f"{task.name.rsplit('.', 1)[0]}.txt", lines.encode(), mode=0o644)
    return losses


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


def _box(file: Path, at: int, words: list[str], names: dict[int, str]) -> Drawn:
    try:
        kind, x, y, width, height = int(words[0]), *map(float, words[1:])
        value = names[kind]
    except (ValueError, KeyError) as error:
        raise RefusedError(f"{file}:{at + 1}: not a class of the names and four shares: {error}") from error
    geometry = (x - width / 2, y - height / 2, width, height)
    return Drawn(file.name, LabelKind.BOX, value, geometry, tool_id=str(at), is_share=True, source=str(file))


def _shares(label: Drawn, task: LabelTask) -> str:
    x, y, width, height = label.geometry
    shares = ((x + width / 2) / task.width, (y + height / 2) / task.height, width / task.width, height / task.height)
    return " ".join(f"{share:.{_DIGITS}f}" for share in shares)
