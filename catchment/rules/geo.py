"""Distances and polygons on the globe, in + - * / and square root alone.

Sine and arcsine of one C library differ from another's in the last digit, and a verdict may hang on it. Here both are
written out in operations whose result IEEE 754 fixes, so that a device and the core get the same distance to the bit.
The same text runs over floats (`PLAIN`) and, in the core, over whole numpy columns.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

Numbers: TypeAlias = Any  # a float, or a numpy column of floats
MAX_POLYGON_POINTS = 100
_NAN = float("nan")
_DEGREE = math.pi / 180
_EARTH_RADIUS_M = 6_371_008.8  # mean radius, IUGG
_SINE = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(12))
# arcsin(x) = x + x * P(x²) / Q(x²) for |x| <= 1/2: the coefficients of fdlibm.
_P = (
    1.66666666666666657415e-01, -3.25565818622400915405e-01, 2.01212532134862925881e-01, -4.00555345006794114027e-02,
    7.91534994289814532176e-04, 3.47933107596021167570e-05,
)  # fmt: skip
_Q = (1.0, -2.40339491173441421878e00, 2.02094576023350569471e00, -6.88283971605453293030e-01, 7.70381505559019352791e-02)
_POLYGON = re.compile(r"POLYGON\s*\(\(\s*([^()]+?)\s*\)\)", re.ASCII)
_POINT = re.compile(r"(-?\d{1,3}(?:\.\d{1,15})?)\s+(-?\d{1,3}(?:\.\d{1,15})?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations that differ between one number and a column of them: the square root, and a choice by a condition."""

    sqrt: Callable[[Numbers], Numbers]
    choose: Callable[[Numbers, Numbers, Numbers], Numbers]


PLAIN = Operations(math.sqrt, lambda condition, yes, no: yes if condition else no)


class PolygonError(ValueError):
    """A text is not a polygon of the language."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One side of a polygon that is not level: from latitude `low` at `start_deg` of longitude, `slope` degrees per degree."""

    first: float
    second: float
    start: float
    slope: float


def distance_m(use: Operations, lat_1: Numbers, lon_1: Numbers, lat_2: Numbers, lon_2: Numbers) -> Numbers:
    """Metres along the great circle between two places in degrees; NaN for a place that is not on the globe."""
    half_lon = abs(lon_2 - lon_1) * 0.5
    half_lon = use.choose(half_lon > 90.0, 180.0 - half_lon, half_lon)
    of_lat, of_lon = _sine(abs(lat_2 - lat_1) * 0.5), _sine(half_lon)
    square = of_lat * of_lat + _sine(90.0 - abs(lat_1)) * _sine(90.0 - abs(lat_2)) * (of_lon * of_lon)
    square = use.choose(square > 1.0, 1.0, use.choose(square > 0.0, square, 0.0))
    sine = use.sqrt(square)
    is_near = sine <= 0.5
    # Above one half: arcsin(x) = pi/2 - 2 arcsin(sqrt((1 - x) / 2)).
    rest = use.choose(is_near, square, (1.0 - sine) * 0.5)
    rest = use.choose(rest > 0.0, rest, 0.0)
    part = _arcsine(use.sqrt(rest), rest)
    arc = use.choose(is_near, part, math.pi / 2 - 2.0 * part)
    valid = _is_place(lat_1, lon_1) & _is_place(lat_2, lon_2)
    return use.choose(valid, arc * (2.0 * _EARTH_RADIUS_M), _NAN)


def inside(use: Operations, lat: Numbers, lon: Numbers, polygon: str) -> Numbers:
    """1.0 where the place is inside the polygon, 0.0 where not, NaN for a place that is not on the globe.

    Straight lines in degrees, even-odd rule; a polygon must not cross the 180th meridian.

    Raises:
        PolygonError: not a polygon.
    """
    is_odd = lat < -math.inf
    for edge in read_polygon(polygon):
        is_crossed = ((edge.first > lat) != (edge.second > lat)) & (lon < edge.slope * (lat - edge.first) + edge.start)
        is_odd = is_odd != is_crossed
    return use.choose(_is_place(lat, lon), use.choose(is_odd, 1.0, 0.0), _NAN)


@lru_cache(maxsize=256)
def read_polygon(text: str) -> tuple[Edge, ...]:
    """The sides of a polygon in well-known text: `POLYGON((lon lat, lon lat, …))`, 3 to 100 corners, one ring.

    Raises:
        PolygonError: not such a text; the message says why.
    """
    found = _POLYGON.fullmatch(text.strip())
    if found is None:
        raise PolygonError("a polygon is written as 'POLYGON((lon lat, lon lat, lon lat))', one ring, in degrees")
    corners = [_corner(part.strip()) for part in found.group(1).split(",")]
    if corners[0] == corners[-1]:
        corners.pop()
    if not 3 <= len(corners) <= MAX_POLYGON_POINTS:
        raise PolygonError(f"a polygon has 3 to {MAX_POLYGON_POINTS} corners, not {len(corners)}")
    sides = zip(corners, corners[1:] + corners[:1], strict=True)
    return tuple(
        Edge(lat_1, lat_2, lon_1, (lon_2 - lon_1) / (lat_2 - lat_1)) for (lon_1, lat_1), (lon_2, lat_2) in sides if lat_1 != lat_2
    )


def _corner(text: str) -> tuple[float, float]:
    found = _POINT.fullmatch(text)
    if found is None:
        raise PolygonError(f"a corner is written as 'lon lat' in degrees, not {text[:40]!r}")
    lon, lat = float(found.group(1)), float(found.group(2))
    if not _is_place(lat, lon):
        raise PolygonError(f"the corner {text!r} is not on the globe: longitude -180 to 180 first, then latitude -90 to 90")
    return lon, lat


def _is_place(lat: Numbers, lon: Numbers) -> Numbers:
    return (lat >= -90.0) & (lat <= 90.0) & (lon >= -180.0) & (lon <= 180.0)


def _sine(degrees: Numbers) -> Numbers:
    """Of 0 to 90 degrees."""
    angle = degrees * _DEGREE
    return angle * _polynomial(_SINE, angle * angle)


def _arcsine(value: Numbers, square: Numbers) -> Numbers:
    """Of 0 to 1/2, given with its square."""
    return value + value * (square * _polynomial(_P, square) / _polynomial(_Q, square))


def _polynomial(coefficients: tuple[float, ...], at: Numbers) -> Numbers:
    result: Numbers = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        result = result * at + coefficient
    return result
