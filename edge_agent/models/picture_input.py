"""A picture's bytes as a model's input tensor, in the model's process. It needs the `infer` extra."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, UnreadablePictureError
from schemas.model import ImageInput
from schemas.picture_format import HEAD_BYTES, PictureFormat, picture_format

try:
    import numpy as np
    from PIL import Image
except ImportError as error:  # pragma: no cover  # the bare install
    raise ConfigError(f"a model is configured, but {error.name} is missing; install catchment[infer]") from error

MAX_PICTURE_PIXELS = 100_000_000


@dataclass(frozen=True, slots=True)
class InputPlacement:
    """Where a picture, or a crop of it, lies in a model's input.

    Attributes:
        scale_x: pixels of the input for one of the picture, across.
        scale_y: likewise, down.
        pad_x: pixels of the input left of the picture.
        pad_y: pixels of the input above it.
        left: x of the crop in the picture, px.
        top: y of the crop.
        width: of the crop, px.
        height: of the crop.
    """

    scale_x: float
    scale_y: float
    pad_x: int
    pad_y: int
    left: float
    top: float
    width: float
    height: float


def read_tensors(
    payload: bytes | Path, wanted: ImageInput, crops: Sequence[Sequence[float]], *, is_coarse: bool = False
) -> list[tuple[Any, InputPlacement]]:
    """The picture as the model takes it, or each of its crops.

    Args:
        payload: an encoded picture, or the path of a file with it.
        wanted: the model's input.
        crops: x, y, width and height of each, px; empty: the whole picture.
        is_coarse: whether a JPEG may be decoded at half its size or less, which saves time and moves edges by a pixel.

    Raises:
        UnreadablePictureError: the picture cannot be decoded.
    """
    try:
        return _read(payload, wanted, crops, is_coarse=is_coarse)
    except UnreadablePictureError:
        raise
    except (Exception, MemoryError) as error:
        # A decoder that meets hostile bytes raises anything, and one that meets a large picture takes what it claims.
        raise UnreadablePictureError(f"a picture cannot be decoded: {type(error).__name__}: {error}") from error


def _read(
    payload: bytes | Path, wanted: ImageInput, crops: Sequence[Sequence[float]], *, is_coarse: bool
) -> list[tuple[Any, InputPlacement]]:
    with io.BytesIO(payload) if isinstance(payload, bytes) else payload.open("rb") as file:
        kind = picture_format(file.read(HEAD_BYTES))
        if kind is None:
            raise UnreadablePictureError(f"not a picture; {', '.join(PictureFormat)} are read")
        file.seek(0)
        with Image.open(file, formats=(kind.upper(),)) as picture:
            width, height = picture.size
            if width * height > MAX_PICTURE_PIXELS:
                raise UnreadablePictureError(f"a picture of {width} x {height} px is too large for the model")
            mode = "L" if wanted.colour == "grey" else "RGB"
            if is_coarse and not crops:
                picture.draft(mode, (wanted.width, wanted.height))
            # Converting to the mode it has already would copy the whole picture.
            plain: Image.Image = picture if picture.mode == mode else picture.convert(mode)
            if not crops:
                return [_placed(plain, wanted, (0.0, 0.0, float(width), float(height)))]
            plain.load()
            return [_cropped(plain, wanted, crop) for crop in crops]


def _cropped(picture: "Image.Image", wanted: ImageInput, crop: Sequence[float]) -> tuple[Any, InputPlacement]:
    x, y, width, height = crop
    left, top = max(0, int(x)), max(0, int(y))
    right, bottom = min(picture.width, max(left + 1, round(x + width))), min(picture.height, max(top + 1, round(y + height)))
    if right <= left or bottom <= top:
        raise UnreadablePictureError(f"a crop at {x:.0f}, {y:.0f} lies outside the picture")
    part = picture.crop((left, top, right, bottom))
    return _placed(part, wanted, (float(left), float(top), float(right - left), float(bottom - top)))


def _placed(picture: "Image.Image", wanted: ImageInput, area: tuple[float, float, float, float]) -> tuple[Any, InputPlacement]:
    """Fit a picture into the input. `area` is what it shows, px; its own size may be smaller where it was read coarsely."""
    left, top, width, height = area
    inner_width, inner_height, pad_x, pad_y = wanted.width, wanted.height, 0, 0
    if wanted.fit == "letterbox":
        ratio = min(wanted.width / width, wanted.height / height)
        inner_width, inner_height = max(1, round(width * ratio)), max(1, round(height * ratio))
        pad_x, pad_y = (wanted.width - inner_width) // 2, (wanted.height - inner_height) // 2
    small = picture.resize((inner_width, inner_height), Image.Resampling.BILINEAR)
    if (inner_width, inner_height) != (wanted.width, wanted.height):
        filler = wanted.pad if small.mode == "L" else (wanted.pad,) * 3
        whole = Image.new(small.mode, (wanted.width, wanted.height), filler)
        whole.paste(small, (pad_x, pad_y))
        small = whole
    tensor = as_tensor(np.asarray(small, dtype=np.float32), wanted)
    return tensor, InputPlacement(inner_width / width, inner_height / height, pad_x, pad_y, left, top, width, height)


def as_tensor(pixels: Any, wanted: ImageInput) -> Any:
    """Pixels (height, width[, 3]) of 0..255 as the input tensor of one picture."""
    planes = pixels.reshape(wanted.height, wanted.width, wanted.channels)
    if wanted.colour == "bgr":
        planes = planes[:, :, ::-1]
    planes = planes * np.float32(wanted.scale)
    if wanted.mean:
        planes = planes - np.asarray(wanted.mean, dtype=np.float32)
    if wanted.std:
        planes = planes / np.asarray(wanted.std, dtype=np.float32)
    if wanted.layout == "nchw":
        planes = planes.transpose(2, 0, 1)
    return np.ascontiguousarray(planes).reshape(wanted.shape)
