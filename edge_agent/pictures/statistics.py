"""Statistics and the perceptual hash of a picture, by pillow and numpy (the `infer` extra): what the core computes.

Up to 512 px a side the values are the core's own. Above, both shrink the picture first, by two libraries whose rounding is
not quite the same. What pillow reads otherwise than the core does (transparent, 16 bits, CMYK) is left to the core.

Stands alone because it loads NumPy and Pillow, which a process that only hides regions of pictures does not need.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from catchment.picture_statistics import picture_statistics
from edge_agent.errors import UninspectableError
from edge_agent.pictures.child import as_errors
from schemas.inspectors import SIDE_PX

MAX_PIXELS = 64 * 1024 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
_FORMATS = ("JPEG", "PNG")
_MODES = ("1", "L", "P", "RGB")


def picture_facts(payload: bytes | Path) -> tuple[int, int, float, float, float, float, float, str]:
    """The values of `schemas.inspectors.PICTURE_COLUMNS`, in order.

    Raises:
        UninspectableError: no JPEG or PNG, too large, or of a colour model that is left to the core.
    """
    pixels, width, height = _decoded(payload)
    return width, height, *picture_statistics(pixels)


def _decoded(payload: bytes | Path) -> tuple[npt.NDArray[np.uint8], int, int]:
    try:
        with as_errors():
            return _pixels(_content(payload))
    except UninspectableError:
        raise
    except Exception as error:
        raise UninspectableError(f"the picture cannot be decoded ({type(error).__name__})") from error


def _pixels(body: bytes) -> tuple[npt.NDArray[np.uint8], int, int]:
    with Image.open(io.BytesIO(body), formats=_FORMATS) as opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise UninspectableError(f"a picture of {width} x {height} px is too large for a device")
        if opened.mode not in _MODES or "transparency" in opened.info:
            raise UninspectableError(f"a transparent picture, or one of mode {opened.mode}, is left to the core")
        wanted = _size(width, height)
        if wanted != (width, height):
            opened.draft(None, (2 * wanted[0], 2 * wanted[1]))
        picture: Image.Image = opened.convert("RGB")
    if picture.size != wanted:
        picture = picture.resize(wanted, Image.Resampling.LANCZOS, reducing_gap=2.0)
    found: Any = np.asarray(picture, np.uint8)
    return found.reshape(found.shape[0], found.shape[1], -1), width, height


def _size(width: int, height: int) -> tuple[int, int]:
    """Inside the square, the proportions kept, never enlarged."""
    factor = min(1.0, SIDE_PX / width, SIDE_PX / height)
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def _content(payload: bytes | Path) -> bytes:
    if isinstance(payload, bytes):
        return payload
    if payload.stat().st_size > MAX_FILE_BYTES:
        raise UninspectableError(f"a picture of more than {MAX_FILE_BYTES} bytes is too large for a device")
    return payload.read_bytes()
