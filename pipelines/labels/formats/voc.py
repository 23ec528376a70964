"""Pascal VOC: one XML file a picture, boxes whose corners count from 1 and belong to the box."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import files_of, read_xml, shapes_of

_FLAGS = ("pose", "truncated", "difficult", "occluded")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read(path: Path) -> ForeignFile:
    """Read a file or a folder of `*.xml` files.

    Raises:
        NotFoundError: there are none.
        RefusedError: a box lacks a corner.
    """
    found = ForeignFile("pascal-voc")
    for file in files_of(path, ".xml"):
        root = read_xml(file)
        name = root.findtext("filename") or f"{file.stem}.jpg"
        sample, sha256 = (root.findtext(f"source/{name}") or "" for name in ("sample", "sha256"))
        objects = root.findall("object")
        for at, item in enumerate(objects):
            if item.find("polygon") is not None:
                found.losses["polygons next to boxes, which VOC readers skip"] += 1
            attributes = {flag: text for flag in _FLAGS if (text := item.findtext(flag)) not in (None, "", "0", "Unspecified")}
            value = item.findtext("name") or ""
            found.labels.append(
                Drawn(
                    name, LabelKind.BOX, value, _box(file, item), sample=sample, sha256=sha256, source=str(file), tool_id=str(at),
                    attributes=attributes,
                )
            )  # fmt: skip
        if not objects:
            found.empty.append(Drawn(name, LabelKind.NOTHING, sample=sample, sha256=sha256, source=str(file)))
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write a file for each sample; what they cannot say is counted."""
    losses: Counter[str] = Counter()
    path.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = task.name
        source = ET.SubElement(root, "source")
        ET.SubElement(source, "sample").text = task.sample
        ET.SubElement(source, "sha256").text = task.sha256
        size = ET.SubElement(root, "size")
        for name, number in (("width", task.width), ("height", task.height), ("depth", 3)):
            ET.SubElement(size, name).text = str(number)
        boxes = shapes_of(task, (LabelKind.BOX,), losses)
        losses.update("authors" for label in boxes if label.author)
        for label in boxes:
            _add(root, label, losses)
        write_atomic(path / f"{task.name.rsplit('.', 1)[0]}.xml", ET.tostring(root), mode=0o644)
    return losses


def _add(root: ET.Element, label: Drawn, losses: Counter[str]) -> None:
    item = ET.SubElement(root, "object")
    ET.SubElement(item, "name").text = label.value
    for flag, text in label.attributes.items():
        if flag in _FLAGS:
            ET.SubElement(item, flag).text = str(text)
        else:
            losses["attributes"] += 1
    x, y, width, height = label.geometry
    box = ET.SubElement(item, "bndbox")
    for name, value in zip(_CORNERS, (x + 1, y + 1, x + width, y + height), strict=True):
        ET.SubElement(box, name).text = f"{value!r}".removesuffix(".0")


def _box(file: Path, item: ET.Element) -> tuple[float, ...]:
    try:
        left, top, right, bottom = (float(item.findtext(f"bndbox/{name}") or "") for name in _CORNERS)
    except ValueError as error:
        raise RefusedError(f"{file}: a box of {item.findtext('name')!r} lacks a corner: {error}") from error
    return (left - 1, top - 1, right - left + 1, bottom - top + 1)
