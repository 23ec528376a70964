"""Make regions of a picture unreadable, by pillow (the `redact` extra).

Of its metadata only which side is up is kept: the rest may hold a place or a thumbnail.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image, ImageFilter

from edge_agent.errors import UnredactableError
from edge_agent.pictures.child import as_errors
from schemas.contract import ImageRedact

# Which pixels of a picture must not be seen: shares, pixel boxes and labelme's shapes, made into whole pixel boxes. Pure.
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


MAX_PIXELS = 64 * 1024 * 1024
MAX_FILE_BYTES = 128 * 1024 * 1024
_FORMATS = ("JPEG", "PNG")
_QUALITY = 92
_ORIENTATION = 0x0112
_BLOCKS = 8  # a blurred region keeps at most 8 x 8 values: no face, no plate comes back out of that


class PictureRedactor:
    """Redacts pictures as the contract says.

    Args:
        redact: what the contract says.
    """

    def __init__(self, redact: ImageRedact) -> None:
        self._redact = redact

    def redact(self, payload: bytes | Path, regions: object) -> bytes:
        """The picture, encoded again, without what must not be seen.

        Args:
            payload: JPEG or PNG.
            regions: text of the contract's column that names this picture's regions.

        Raises:
            UnredactableError: it is no such picture, too large, or its regions are missing or malformed.
        """
        try:
            with as_errors():
                return self._redacted(payload, regions)
        except UnredactableError:
            raise
        except Exception as error:
            raise UnredactableError(f"the picture cannot be decoded ({type(error).__name__})") from error

    def _redacted(self, payload: bytes | Path, regions: object) -> bytes:
        with Image.open(io.BytesIO(_content(payload)), formats=_FORMATS) as opened:
            kind = str(opened.format)
            if opened.width * opened.height > MAX_PIXELS:
                raise UnredactableError(f"the picture has more than {MAX_PIXELS} pixels")
            if getattr(opened, "n_frames", 1) > 1:
                raise UnredactableError("the picture has more than one frame")
            upright = Image.Exif()
            upright[_ORIENTATION] = opened.getexif().get(_ORIENTATION, 1)
            boxes = self._boxes(regions, opened.width, opened.height)
            picture: Image.Image = opened.convert("RGB" if opened.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") else opened.mode)
        for box in boxes:
            _hide(picture, box, self._redact.how)
        # A new picture of the same pixels: nothing the old one carried next to them (place, thumbnail, comment) comes along.
        bare = Image.new(picture.mode, picture.size)
        bare.paste(picture)
        out = io.BytesIO()
        bare.save(out, kind, **({"quality": _QUALITY, "subsampling": 0, "exif": upright} if kind == "JPEG" else {}))
        return out.getvalue()

    def _boxes(self, regions: object, width: int, height: int) -> Sequence[Box]:
        boxes = fixed_boxes(self._redact.boxes, width, height)
        return [*boxes, *parse_boxes(regions, width, height)] if self._redact.column else boxes


def _content(payload: bytes | Path) -> bytes:
    if isinstance(payload, bytes):
        return payload
    if payload.stat().st_size > MAX_FILE_BYTES:
        raise UnredactableError(f"the picture has more than {MAX_FILE_BYTES} bytes")
    return payload.read_bytes()


def _hide(picture: Image.Image, box: Box, how: str) -> None:
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return
    if how == "fill":
        picture.paste(Image.new(picture.mode, (right - left, bottom - top)), box)
        return
    region = picture.crop(box)
    small = region.resize((min(_BLOCKS, region.width), min(_BLOCKS, region.height)), Image.Resampling.BOX)
    coarse = small.resize(region.size, Image.Resampling.BILINEAR)
    picture.paste(coarse.filter(ImageFilter.BoxBlur(max(1, min(region.size) // _BLOCKS))), box)
