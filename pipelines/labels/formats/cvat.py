"""CVAT's XML for images, version 1.1: boxes and turned boxes, polygons, lines, points, masks, and tags of whole pictures."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.labels.drawn import NOTHING_TAG, Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import read_xml, shapes_of
from pipelines.labels.run_lengths import mask_of, part_of, runs_of, whole_of

_KINDS = {
    "box": LabelKind.BOX, "polygon": LabelKind.POLYGON, "polyline": LabelKind.POLYLINE, "points": LabelKind.POINTS,
    "mask": LabelKind.MASK, "tag": LabelKind.CLASS,
}  # fmt: skip
_TAGS = {kind: name for name, kind in _KINDS.items()} | {LabelKind.ROTATED: "box", LabelKind.NOTHING: "tag"}


def read(path: Path) -> ForeignFile:
    """Read one `annotations.xml`. Raises as `read_xml`.

    Raises:
        RefusedError: a shape lacks a number.
    """
    root = read_xml(path)
    if root.tag != "annotations":
        raise RefusedError(f"{path}: its root is {root.tag[:40]!r}, not annotations; name another format (--as)")
    found = ForeignFile("cvat")
    tracks = len(root.findall("track"))
    if tracks:
        found.losses["tracks of videos: export the task as CVAT for images"] += tracks
    for image in root.iter("image"):
        name = image.get("name", "")
        about = Drawn(name, LabelKind.NOTHING, sample=image.get("sample", ""), sha256=image.get("sha256", ""))
        drawn = False
        for at, item in enumerate(image):
            if item.tag not in _KINDS:
                found.losses[f"shapes of type {item.tag[:40]}"] += 1
                continue
            drawn = True
            found.labels.append(_label(path, about, image, item, at))
        if not drawn:
            found.empty.append(about)
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write one file; what it cannot say is counted."""
    losses: Counter[str] = Counter()
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    for at, task in enumerate(tasks):
        image = ET.SubElement(root, "image", id=str(at), name=task.name, width=str(task.width), height=str(task.height))
        image.set("sample", task.sample)
        image.set("sha256", task.sha256)
        labels = shapes_of(task, tuple(_TAGS), losses)
        losses.update("authors" for label in labels if label.author)
        for label in labels:
            _add(image, label)
    write_atomic(path, ET.tostring(root, xml_declaration=True, encoding="utf-8"), mode=0o644)
    return losses


def _label(path: Path, about: Drawn, image: ET.Element, item: ET.Element, at: int) -> Drawn:
    value = item.get("label", "")
    kind = _KINDS[item.tag]
    if kind is LabelKind.CLASS and value == NOTHING_TAG:
        return Drawn(about.image, LabelKind.NOTHING, sample=about.sample, sha256=about.sha256, tool_id=str(at))
    try:
        geometry = _geometry(image, item, kind)
    except ValueError as error:
        raise RefusedError(f"{path}: a {item.tag} of {about.image} lacks a number: {error}") from error
    if kind is LabelKind.BOX and len(geometry) == 5:
        kind = LabelKind.ROTATED
    attributes = {each.get("name", ""): each.text or "" for each in item.findall("attribute")}
    attributes |= {"occluded": "1"} if item.get("occluded") == "1" else {}
    return Drawn(
        about.image, kind, value, geometry, sample=about.sample, sha256=about.sha256, tool_id=str(at), attributes=attributes
    )


def _geometry(image: ET.Element, item: ET.Element, kind: LabelKind) -> tuple[float, ...]:
    """Numbers of a shape; of a turned box centre, sides and degrees, because CVAT turns about the centre."""
    if kind is LabelKind.CLASS:
        return ()
    if kind is LabelKind.BOX:
        left, top, right, bottom = (float(item.get(name) or "") for name in ("xtl", "ytl", "xbr", "ybr"))
        degrees = float(item.get("rotation") or 0.0)
        if degrees:
            return ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, degrees % 360.0)
        return (left, top, right - left, bottom - top)
    if kind is LabelKind.MASK:
        left, top, width, height = (int(item.get(name) or "") for name in ("left", "top", "width", "height"))
        size = (int(image.get("height") or ""), int(image.get("width") or ""))
        runs = [int(run) for run in (item.get("rle") or "").split(",") if run.strip()]
        return runs_of(whole_of((left, top, width, height), runs, size))
    return tuple(float(number) for point in (item.get("points") or "").split(";") for number in point.split(","))


def _add(image: ET.Element, label: Drawn) -> None:
    value = NOTHING_TAG if label.kind is LabelKind.NOTHING else label.value
    item = ET.SubElement(image, _TAGS[label.kind], label=value, source="manual")
    for name, text in _numbers(label):
        item.set(name, text)
    for name, given in label.attributes.items():
        if name == "occluded" and str(given) == "1":
            item.set("occluded", "1")
        else:
            ET.SubElement(item, "attribute", name=name).text = str(given)


def _numbers(label: Drawn) -> Iterator[tuple[str, str]]:
    if label.kind in (LabelKind.BOX, LabelKind.ROTATED):
        x, y, width, height = label.geometry[:4]
        if label.kind is LabelKind.ROTATED:
            x, y = x - width / 2, y - height / 2
            yield "rotation", _text(label.geometry[4])
        for name, number in (("xtl", x), ("ytl", y), ("xbr", x + width), ("ybr", y + height)):
            yield name, _text(number)
    elif label.kind is LabelKind.MASK:
        left, top, width, height, runs = part_of(mask_of(label.geometry))
        yield "rle", ", ".join(map(str, runs))
        yield from zip(("left", "top", "width", "height"), map(str, (left, top, width, height)), strict=True)
    elif label.geometry:
        pairs = zip(label.geometry[::2], label.geometry[1::2], strict=True)
        yield "points", ";".join(f"{_text(x)},{_text(y)}" for x, y in pairs)


def _text(number: float) -> str:
    return f"{number!r}".removesuffix(".0")
