"""GeoJSON as QuPath reads and writes it: one file a picture, named like it, shapes in pixels, classes as `classification`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.geometry import corners_of_rotated, joined_rings, rotated_of_corners
from pipelines.labels.drawn import NOTHING_TAG, Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.formats.reading import files_of, read_json, shapes_of

_ENDING = ".geojson"
_Shape: TypeAlias = tuple[LabelKind, tuple[float, ...]]
_SIMPLE = {"LineString": LabelKind.POLYLINE, "MultiPoint": LabelKind.POINTS}
_KINDS = (
    LabelKind.BOX, LabelKind.ROTATED, LabelKind.POLYGON, LabelKind.POLYLINE, LabelKind.POINTS, LabelKind.CLASS, LabelKind.NOTHING,
)  # fmt: skip


class _Classification(msgspec.Struct, frozen=True):
    name: str = ""


class _Ours(msgspec.Struct, frozen=True, omit_defaults=True):
    kind: str = ""
    author: str = ""
    attributes: dict[str, Any] = {}


class _Properties(msgspec.Struct, frozen=True, rename={"object_type": "objectType"}, omit_defaults=True):
    object_type: str = ""
    name: str | None = None
    classification: _Classification | str | None = None
    catchment: _Ours = _Ours()


class _Geometry(msgspec.Struct, frozen=True):
    type: str
    coordinates: Any = None


class _Feature(msgspec.Struct, frozen=True):
    geometry: _Geometry | None = None
    properties: _Properties | None = None
    id: str | int = ""
    type: str = "Feature"


class _Collection(msgspec.Struct, frozen=True):
    features: tuple[_Feature, ...]
    type: str = "FeatureCollection"
    crs: Any = None
    catchment: dict[str, str] = {}


_DOCUMENT: Any = _Collection | tuple[_Feature, ...]  # QuPath writes either


def read(path: Path) -> ForeignFile:
    """Read a file or a folder of `*.geojson` files. Raises as `read_json`.

    Raises:
        RefusedError: coordinates of a map instead of pixels, or a shape lacks a number.
    """
    found = ForeignFile("qupath")
    for file in files_of(path, _ENDING):
        document: _Collection | tuple[_Feature, ...] = read_json(file, _DOCUMENT)
        collection = document if isinstance(document, _Collection) else _Collection(document)
        if collection.crs is not None:
            raise RefusedError(f"{file}: has coordinates of a map (crs); export it in pixels of the picture")
        sample, sha256 = (collection.catchment.get(name, "") for name in ("sample", "sha256"))
        about = Drawn(file.name, LabelKind.NOTHING, sample=sample, sha256=sha256, source=str(file))
        for at, feature in enumerate(collection.features):
            found.labels += _labels(file, about, feature, at, found.losses)
        if not collection.features:
            found.empty.append(about)
    return found


def write(path: Path, tasks: list[LabelTask]) -> Counter[str]:
    """Write a file for each sample; what they cannot say is counted."""
    losses: Counter[str] = Counter()
    path.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        features = tuple(_feature(label) for label in shapes_of(task, _KINDS, losses))
        collection = _Collection(features, catchment={"sample": task.sample, "sha256": task.sha256})
        plain = msgspec.to_builtins(collection)
        del plain["crs"]
        write_atomic(path / f"{task.name.rsplit('.', 1)[0]}{_ENDING}", msgspec.json.encode(plain), mode=0o644)
    return losses


def _labels(file: Path, about: Drawn, feature: _Feature, at: int, losses: Counter[str]) -> Iterator[Drawn]:
    properties = feature.properties or _Properties()
    ours = properties.catchment
    named = properties.classification
    value = named if isinstance(named, str) else named.name if named else properties.name or ""
    try:
        shapes = list(_shapes(feature.geometry, losses))
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{file}: feature {at + 1} has coordinates of another shape: {error}") from error
    for number, (kind, numbers) in enumerate(shapes):
        stated, geometry = _stated(kind, numbers, ours.kind)
        is_nothing = stated is LabelKind.CLASS and value == NOTHING_TAG
        yield msgspec.structs.replace(
            about, kind=LabelKind.NOTHING if is_nothing else stated, value="" if is_nothing else value, geometry=geometry,
            tool_id=f"{feature.id or at}.{number}", author=ours.author, attributes=ours.attributes,
        )  # fmt: skip


def _stated(kind: LabelKind, numbers: tuple[float, ...], ours: str) -> _Shape:
    """A polygon that was written for a box is a box again; QuPath itself knows no such difference."""
    if kind is LabelKind.POLYGON and len(numbers) == 8:
        if ours == LabelKind.ROTATED:
            return LabelKind.ROTATED, rotated_of_corners(numbers)
        left, top, right, bottom = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
        if ours == LabelKind.BOX:
            return LabelKind.BOX, (left, top, right - left, bottom - top)
    return kind, numbers


def _shapes(geometry: _Geometry | None, losses: Counter[str]) -> Iterator[_Shape]:
    if geometry is None:
        yield LabelKind.CLASS, ()
    elif geometry.type in ("Polygon", "MultiPolygon"):
        parts = [geometry.coordinates] if geometry.type == "Polygon" else geometry.coordinates
        losses.update(["shapes of several parts: each part becomes a polygon"] if len(parts) > 1 else [])
        for rings in parts:
            yield LabelKind.POLYGON, joined_rings(rings)
    elif geometry.type == "Point":
        yield LabelKind.POINTS, _flat([geometry.coordinates])
    elif geometry.type in _SIMPLE:
        yield _SIMPLE[geometry.type], _flat(geometry.coordinates)
    else:
        losses[f"shapes of type {geometry.type[:40]}"] += 1


def _flat(points: Any) -> tuple[float, ...]:
    return tuple(float(number) for point in points for number in point[:2])


def _feature(label: Drawn) -> _Feature:
    value = NOTHING_TAG if label.kind is LabelKind.NOTHING else label.value
    kind = label.kind if label.kind in (LabelKind.BOX, LabelKind.ROTATED) else ""
    ours = _Ours(kind, label.author, label.attributes)
    return _Feature(_geometry(label), _Properties("annotation", None, _Classification(value), ours))


def _geometry(label: Drawn) -> _Geometry | None:
    numbers = label.geometry
    if label.kind in (LabelKind.CLASS, LabelKind.NOTHING):
        return None
    if label.kind is LabelKind.BOX:
        x, y, width, height = numbers
        numbers = (x, y, x + width, y, x + width, y + height, x, y + height)
    elif label.kind is LabelKind.ROTATED:
        numbers = corners_of_rotated(numbers)
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    if label.kind is LabelKind.POLYLINE:
        return _Geometry("LineString", points)
    if label.kind is LabelKind.POINTS:
        return _Geometry("MultiPoint", points)
    return _Geometry("Polygon", [[*points, points[0]]])
