"""Statistics and the perceptual hash of a picture, by pillow and numpy (the `infer` extra): what the core computes.

Up to 512 px a side the values are the core's own. Above, both shrink the picture first, by two libraries whose rounding is
not quite the same. What pillow reads otherwise than the core does (transparent, 16 bits, CMYK) is left to the core.
"""

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_agent.errors import UninspectableError
from edge_agent.pictures.child import as_errors
from schemas.inspectors import SIDE_PX

MAX_PIXELS = 64 * 1024 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
_FORMATS = ("JPEG", "PNG")
_MODES = ("1", "L", "P", "RGB")
_HASH_SIDE, _SAMPLED = 8, 32
_Floats = npt.NDArray[np.float32]
_FREQUENCIES, _PLACES = np.arange(_HASH_SIDE)[:, None], np.arange(_SAMPLED)[None, :]
_COSINES = np.cos(np.pi * _FREQUENCIES * (2 * _PLACES + 1) / (2 * _SAMPLED))


def picture_facts(payload: bytes | Path) -> tuple[int, int, float, float, float, float, float, str]:
    """The values of `schemas.inspectors.PICTURE_COLUMNS`, in order.

    Raises:
        UninspectableError: no JPEG or PNG, too large, or of a colour model that is left to the core.
    """
    pixels, width, height = _decoded(payload)
    colours = pixels.astype(np.float32)
    planes = [np.ascontiguousarray(colours[:, :, band]) for band in range(colours.shape[2])]
    red, green, blue = planes if len(planes) == 3 else (planes[0],) * 3
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    mean, variance = _moments(luma)
    sharpness, colourfulness = _sharpness(luma), _colourfulness(red, green, blue)
    return width, height, mean, variance**0.5, sharpness, _entropy(luma), colourfulness, _hash(luma)


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


def _hash(luma: _Floats) -> str:
    low = (_COSINES @ _averaged(luma) @ _COSINES.T).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean says nothing of the picture's shapes
    return np.packbits(bits).tobytes().hex()


def _averaged(luma: _Floats) -> npt.NDArray[np.float64]:
    rows, columns = (_cells(length) for length in luma.shape)
    sums = np.add.reduceat(np.add.reduceat(luma, rows, axis=0, dtype=np.float64), columns, axis=1)
    sizes = np.diff(rows, append=luma.shape[0])[:, None] * np.diff(columns, append=luma.shape[1])[None, :]
    return np.asarray(sums / np.maximum(sizes, 1))


@lru_cache(maxsize=256)
def _cells(length: int) -> npt.NDArray[np.int64]:
    return np.minimum(np.linspace(0, length, _SAMPLED, endpoint=False).astype(np.int64), length - 1)


def _moments(values: _Floats) -> tuple[float, float]:
    mean = float(values.mean(dtype=np.float64))
    centred = (values - np.float32(mean)).ravel()
    return mean, float(np.einsum("i,i->", centred, centred)) / centred.size


def _sharpness(luma: _Floats) -> float:
    if min(luma.shape) < 3:
        return 0.0
    edges = 4 * luma[1:-1, 1:-1]
    edges -= luma[:-2, 1:-1]
    edges -= luma[2:, 1:-1]
    edges -= luma[1:-1, :-2]
    edges -= luma[1:-1, 2:]
    return _moments(edges)[1]


def _entropy(luma: _Floats) -> float:
    counts = np.bincount(luma.astype(np.uint8).ravel(), minlength=256)
    shares = counts[counts > 0] / luma.size
    return abs(float(-(shares * np.log2(shares)).sum()))


def _colourfulness(red: _Floats, green: _Floats, blue: _Floats) -> float:
    one, other = red - green, np.float32(0.5) * (red + green) - blue
    (mean_one, var_one), (mean_other, var_other) = _moments(one), _moments(other)
    return float((var_one + var_other) ** 0.5 + 0.3 * (mean_one**2 + mean_other**2) ** 0.5)
