"""Pictures as arrays of a bounded size. What is too large is refused by its header, before a pixel is decoded."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips

from pipelines.inspect.errors import UninspectableError

Pixels = npt.NDArray[np.uint8]
MAX_PIXELS = 400_000_000


def decoded(body: bytes, width: int, height: int, size: str = "down", bands: int = 3) -> tuple[Pixels, int, int]:
    """A picture no larger than `width` x `height` px as rows x columns x bands, and the size it has in full.

    Args:
        body: JPEG, PNG, TIFF, WebP or what else libvips reads.
        width: px.
        height: px.
        size: "down" keeps the proportions and never enlarges; "force" gives exactly this size.
        bands: 3 for sRGB, 1 for grey.

    Raises:
        UninspectableError: not a picture, or one too large.
    """
    try:
        head: Any = pyvips.Image.new_from_buffer(body, "", access="sequential")
        if head.width * head.height > MAX_PIXELS:
            raise UninspectableError(f"a picture of {head.width} x {head.height} px is too large")
        small: Any = pyvips.Image.thumbnail_buffer(body, width, height=height, size=size, no_rotate=True)
        if small.hasalpha():
            small = small.flatten(background=0)
        wanted = "srgb" if bands == 3 else "b-w"
        if small.interpretation != wanted or small.format != "uchar":
            small = small.colourspace(wanted).cast("uchar")
        raw = small.write_to_memory()
    except pyvips.Error as error:
        raise UninspectableError(_why(error)) from error
    return np.ndarray(buffer=raw, dtype=np.uint8, shape=(small.height, small.width, small.bands)), head.width, head.height


def fields(body: bytes) -> dict[str, str]:
    """What the header of a picture tells, by libvips' names; nothing is decoded.

    Raises:
        UninspectableError: not a picture.
    """
    try:
        head: Any = pyvips.Image.new_from_buffer(body, "", access="sequential")
        names = [name for name in head.get_fields() if name.startswith("exif-ifd")]
        return {name: str(head.get(name)) for name in names}
    except pyvips.Error as error:
        raise UninspectableError(_why(error)) from error


def _why(error: Exception) -> str:
    return f"not a picture: {' '.join(str(error).split())[:120]}"
