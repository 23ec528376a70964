"""Where the pixels of an image are in the world: six-number transforms, footprints, GeoTIFF keys, micrometres per pixel."""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PROJECTED, _GEOGRAPHIC, _RASTER_TYPE = 3072, 2048, 1025
_CITATIONS = (3073, 1026, 2049)
_IS_POINT = 2
_USER_DEFINED = 32767
_KEYS, _DOUBLES, _ASCII = 34735, 34736, 34737
_PIXEL_SCALE, _TIE_POINTS, _MATRIX = 33550, 33922, 34264
_MAX_MPP = 100.0
_INCH_UM, _CM_UM = 25_400.0, 10_000.0
_UNITS_UM = {
    "pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "mm": 1e3,
    "cm": 1e4, "m": 1e6, "inch": _INCH_UM, "in": _INCH_UM, "\\u00b5m": 1.0, "å": 1e-4,
}  # fmt: skip
_APERIO_MPP = re.compile(r"\bMPP\s*=\s*([0-9.]+)")
_OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)>")
_OME_SIZE = re.compile(r'\bPhysicalSize([XY])(Unit)?\s*=\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Affine:
    """Pixel (column, row) to coordinates: `x = a * column + b * row + c`, `y = d * column + e * row + f`.

    The order of the numbers is that of rasterio and `affine`; (0, 0) is the outer corner of the first pixel.
    """

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def at(self, column: float, row: float) -> tuple[float, float]:
        """The coordinates of a place in the image."""
        return self.a * column + self.b * row + self.c, self.d * column + self.e * row + self.f

    def moved(self, column: float, row: float) -> "Affine":
        """The transform of a part of the image that begins at this place."""
        x, y = self.at(column, row)
        return Affine(self.a, self.b, x, self.d, self.e, y)

    def scaled(self, across: float, down: float) -> "Affine":
        """The transform of the same image with pixels `across` times as wide and `down` times as high."""
        return Affine(self.a * across, self.b * down, self.c, self.d * across, self.e * down, self.f)

    def numbers(self) -> list[float]:
        """The six numbers."""
        return [self.a, self.b, self.c, self.d, self.e, self.f]


def footprint(transform: Affine, width: float, height: float) -> bytes:
    """The outline of an image of this size as a polygon in WKB; all four corners, because the transform may turn it."""
    corners = [transform.at(x, y) for x, y in ((0, 0), (0, height), (width, height), (width, 0), (0, 0))]
    return struct.pack("<BIII", 1, 3, 1, 5) + struct.pack("<10d", *(value for corner in corners for value in corner))


def georeference(tags: Mapping[int, Any]) -> tuple[Affine | None, str | None]:
    """Transform and coordinate system of a GeoTIFF; both None without georeference.

    Follows GDAL: the pixel scale goes before the matrix, and pixels that are points lie half a pixel up and left of the tie
    point. Several tie points (ground control) make no transform.

    Args:
        tags: tag number to value.
    """
    keys = _geo_keys(tags)
    scale, points, matrix = (_numbers(tags.get(tag)) for tag in (_PIXEL_SCALE, _TIE_POINTS, _MATRIX))
    found: Affine | None = None
    if len(scale) >= 2 and all(scale[:2]) and len(points) == 6:
        column, row, _, x, y, _ = points
        across, down = scale[0], -abs(scale[1])
        found = Affine(across, 0.0, x - column * across, 0.0, down, y - row * down)
    elif len(matrix) == 16:
        found = Affine(matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    if found is None or not all(map(math.isfinite, found.numbers())):
        return None, None
    if keys.get(_RASTER_TYPE) == _IS_POINT:
        found = found.moved(-0.5, -0.5)
    return found, _coordinate_system(keys)


def _coordinate_system(keys: Mapping[int, Any]) -> str | None:
    code = keys.get(_PROJECTED) or keys.get(_GEOGRAPHIC)
    if isinstance(code, int) and 0 < code < _USER_DEFINED:
        return f"EPSG:{code}"
    citation = next((keys[key] for key in _CITATIONS if isinstance(keys.get(key), str)), None)
    return f"user-defined: {citation}"[:200] if citation else None


def _geo_keys(tags: Mapping[int, Any]) -> dict[int, Any]:
    directory = tags.get(_KEYS)
    if not isinstance(directory, Sequence) or len(directory) < 4:
        return {}
    found: dict[int, Any] = {}
    for at in range(4, min(len(directory) - 3, 4 + 4 * int(directory[3])), 4):
        key, place, count, value = directory[at : at + 4]
        if place == 0:
            found[key] = int(value)
        elif place == _ASCII and isinstance(tags.get(_ASCII), str):
            found[key] = tags[_ASCII][value : value + count].rstrip("|\0")
    return found


def _numbers(value: Any) -> list[float]:
    return [float(one) for one in value] if isinstance(value, (tuple, list)) else []


def aperio_mpp(description: str) -> tuple[float, float] | None:
    """Micrometres per pixel as Aperio writes them into the description."""
    found = _APERIO_MPP.search(description)
    return _checked(float(found[1]), float(found[1])) if found else None


def ome_mpp(xml: str) -> tuple[float, float] | None:
    """Micrometres per pixel of the first image of an OME-XML; the unit is micrometres unless it names another."""
    pixels = _OME_PIXELS.search(xml)
    if pixels is None:
        return None
    stated = {(axis, is_unit): value for axis, is_unit, value in _OME_SIZE.findall(pixels[1])}
    sizes = []
    for axis in "XY":
        try:
            sizes.append(float(stated[axis, ""]) * _UNITS_UM[stated.get((axis, "Unit"), "µm").lower()])
        except (KeyError, ValueError):
            return None
    return _checked(*sizes)


def resolution_mpp(x: Any, y: Any, unit: object) -> tuple[float, float] | None:
    """Micrometres per pixel from the resolution tags; None above 100, which is a default of a printer or a screen.

    Args:
        x: pixels per unit as numerator and denominator.
        y: as `x`.
        unit: 2 for an inch, 3 for a centimetre, or the name of a unit, as ImageJ has it.
    """
    size_um = {2: _INCH_UM, 3: _CM_UM}.get(unit) if isinstance(unit, int) else _UNITS_UM.get(str(unit).lower())
    if size_um is None:
        return None
    try:
        return _checked(size_um * x[1] / x[0], size_um * y[1] / y[0])
    except (TypeError, ZeroDivisionError, IndexError):
        return None


def _checked(x: float, y: float) -> tuple[float, float] | None:
    return (x, y) if all(math.isfinite(one) and 0 < one <= _MAX_MPP for one in (x, y)) else None
