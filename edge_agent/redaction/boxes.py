"""Which pixels of a picture must not be seen: shares, pixel boxes and labelme's shapes, made into whole pixel boxes. Pure."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from edge_agent.redaction.cells import UnredactableError

MAX_BOXES = 4_096
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside


def fixed_boxes(shares: Sequence[tuple[float, float, float, float]], width: int, height: int) -> list[Box]:
    """Boxes given as shares of the picture, rounded outwards."""
    return [_outward((x * width, y * height, (x + w) * width, (y + h) * height), width, height) for x, y, w, h in shares]


def parse_boxes(text: object, width: int, height: int) -> list[Box]:
    """Boxes that a column tells: a JSON list of [x, y, width, height] in pixels, or labelme's object with shapes.

    Raises:
        UnredactableError: it says nothing, or what it says is not understood.
    """
    if not isinstance(text, str):
        raise UnredactableError("nothing is told about the regions")
    try:
        found = msgspec.json.decode(text)
        corners = _of_shapes(found["shapes"]) if isinstance(found, dict) else [_corners(box) for box in found]
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise UnredactableError("the regions told are not understood") from error
    if len(corners) > MAX_BOXES:
        raise UnredactableError(f"more than {MAX_BOXES} regions")
    return [_outward(box, width, height) for box in corners]


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = (float(number) for number in box)
    if not all(map(math.isfinite, (x, y, width, height))) or width < 0 or height < 0:
        raise ValueError("not a box")
    return x, y, x + width, y + height


def _of_shapes(shapes: Sequence[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    found = []
    for shape in shapes:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        if shape.get("shape_type") == "circle":
            (x, y), (edge_x, edge_y) = points
            radius = math.hypot(edge_x - x, edge_y - y)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        if len(points) < 2 or not all(math.isfinite(number) for point in points for number in point):
            raise ValueError("a region needs two points at least")
        across, down = zip(*points, strict=True)
        found.append((min(across), min(down), max(across), max(down)))
    return found


def _outward(box: tuple[float, float, float, float], width: int, height: int) -> Box:
    left, top, right, bottom = box
    return (
        min(width, max(0, math.floor(left))),
        min(height, max(0, math.floor(top))),
        min(width, max(0, math.ceil(right))),
        min(height, max(0, math.ceil(bottom))),
    )
