"""Shapes in pixels: corners of rotated boxes, overlap of shapes, clipping to a window. One meaning for labels, chips and imports.

x goes right, y goes down, and (0, 0) is the outer corner of the first pixel: the centre of that pixel is (0.5, 0.5). No function
here moves a coordinate by half a pixel. Degrees turn clockwise on the screen.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = tuple[float, ...]
_Floats: TypeAlias = npt.NDArray[np.float64]


def corners_of_rotated(box: Sequence[float]) -> Numbers:
    """The four corners (x, y, x, y, ...) of a box given as centre x, centre y, width, height and degrees.

    The first corner is the one at the top left before the turn; the others follow clockwise.
    """
    x, y, width, height, degrees = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    halves = ((-width, -height), (width, -height), (width, height), (-width, height))
    return tuple(
        value for across, down in halves for value in (x + (cos * across - sin * down) / 2, y + (sin * across + cos * down) / 2)
    )


def rotated_of_corners(corners: Sequence[float]) -> Numbers:
    """Centre x, centre y, width, height and degrees (0 to 360) of a box whose four corners follow each other.

    Corners that are not quite a box, such as rounded ones, give the box with their mean sides and the turn of the first side.
    """
    x, y, width, height, degrees = rotated_of_corner_rows(np.array([corners], np.float64))[0].tolist()
    return x, y, width, height, degrees


def rotated_of_corner_rows(corners: _Floats) -> _Floats:
    """The same for many boxes at once: rows of eight numbers in, rows of five out."""
    points = corners.reshape(-1, 4, 2)
    sides = np.roll(points, -1, axis=1) - points
    lengths = np.hypot(sides[:, :, 0], sides[:, :, 1])
    degrees = np.degrees(np.arctan2(sides[:, 0, 1], sides[:, 0, 0])) % 360.0
    middle = points.mean(axis=1)
    rows: _Floats = np.column_stack([middle, lengths[:, ::2].mean(axis=1), lengths[:, 1::2].mean(axis=1), degrees])
    return rows


def turned_about(x: float, y: float, pivot_x: float, pivot_y: float, degrees: float) -> tuple[float, float]:
    """A point turned clockwise about another."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = x - pivot_x, y - pivot_y
    return pivot_x + cos * across - sin * down, pivot_y + sin * across + cos * down


def area_shape(kind: str, geometry: Sequence[float]) -> Any:
    """The shapely polygon of a "box" (x, y, width, height), a "rotated" box or a "polygon"; a self-crossing one is made valid.

    Raises:
        ValueError: another kind, or too few numbers.
    """
    # Imported here: GEOS takes 0.1 s to load, and most commands draw and compare nothing.
    import shapely  # noqa: PLC0415

    if kind == "box" and len(geometry) == 4:
        x, y, width, height = geometry
        return shapely.box(x, y, x + width, y + height)
    corners = corners_of_rotated(geometry) if kind == "rotated" and len(geometry) == 5 else geometry
    if kind not in ("rotated", "polygon") or len(corners) < 6 or len(corners) % 2:
        raise ValueError(f"{len(geometry)} numbers are no {kind} with an area")
    return shapely.make_valid(shapely.Polygon(np.array(corners, np.float64).reshape(-1, 2)))


def polygonal(shape: Any) -> Any:
    """What of a shape has an area; lines and points that made it valid are dropped."""
    import shapely  # noqa: PLC0415 - see above

    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    return shapely.union_all([part for part in shapely.get_parts(shape) if part.geom_type in ("Polygon", "MultiPolygon")])


def joined_rings(rings: Sequence[Sequence[Sequence[float]]]) -> Numbers:
    """An outline and its holes as one outline (x, y, x, y, ...): the holes are joined to its first point by lines of no width.

    The holes run the other way round, so a program that fills by direction and one that counts crossings draw the same. A polygon
    made valid of it has the holes again.

    Args:
        rings: the outline first; each closed or not.
    """
    opened = [[*map(tuple, ring)][: -1 if len(ring) > 1 and tuple(ring[0]) == tuple(ring[-1]) else None] for ring in rings]
    outline, *holes = opened
    points = [*outline]
    for hole in holes:
        turned = hole if _signed_area(hole) * _signed_area(outline) < 0 else hole[::-1]
        points += [outline[0], *turned, turned[0]] if turned else []
    return tuple(float(number) for point in points for number in point[:2])


def polygon_numbers(polygon: Any) -> Numbers:
    """A shapely polygon as x, y, x, y, ...; its holes as `joined_rings` joins them."""
    return joined_rings([ring.coords[:] for ring in (polygon.exterior, *polygon.interiors)])


def _signed_area(ring: Sequence[Sequence[float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, [*ring[1:], *ring[:1]], strict=True)) / 2


def overlaps(first: Sequence[Any], second: Sequence[Any]) -> _Floats:
    """Intersection over union of each shape of the first list with each of the second: a matrix of 0 to 1."""
    import shapely  # noqa: PLC0415 - see above

    left, right = np.array(first, dtype=object)[:, None], np.array(second, dtype=object)[None, :]
    if not left.size or not right.size:
        return np.zeros((len(first), len(second)))
    both = shapely.area(shapely.intersection(left, right))
    either = shapely.area(left) + shapely.area(right) - both
    shares: _Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    return shares


def matched_pairs(shares: _Floats, least: float) -> list[tuple[int, int]]:
    """Rows and columns of a matrix of overlaps that belong together: the greatest overlap first, each row and column once."""
    order = np.argsort(-shares, axis=None, kind="stable")
    rows: set[int] = set()
    columns: set[int] = set()
    pairs = []
    for place in order:
        row, column = divmod(int(place), shares.shape[1])
        if shares[row, column] < least:
            break
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            pairs.append((row, column))
    return pairs
