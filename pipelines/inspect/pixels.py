"""Pictures as arrays of a bounded size. What is too large is refused by its header, before a pixel is decoded."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips

from pipelines.errors import UnreadableImageError
from pipelines.imaging.picture_loader import open_header, shrink
from pipelines.inspect.errors import UninspectableError

Pixels = npt.NDArray[np.uint8]
MAX_PIXELS = 400_000_000


def decoded(body: bytes, width: int, height: int, size: str = "down", bands: int = 3) -> tuple[Pixels, int, int]:
    """A picture no larger than `width` x `height` px as rows x columns x bands, and the size it has in full.

    Args:
        body: JPEG, PNG, TIFF, WebP or GIF.
        width: px.
        height: px.
        size: "down" keeps the proportions and never enlarges; "force" gives exactly this size.
        bands: 3 for sRGB, 1 for grey.

    Raises:
        UninspectableError: not a picture, or one too large.
    """
    try:
        head = open_header(body, MAX_PIXELS)
        small: Any = shrink(body, width, height, MAX_PIXELS, size=size, no_rotate=True)
        if small.hasalpha():
            small = small.flatten(background=0)
        wanted = "srgb" if bands == 3 else "b-w"
        if small.interpretation != wanted or small.format != "uchar":
            small = small.colourspace(wanted).cast("uchar")
        raw = small.write_to_memory()
    except UnreadableImageError as error:
        raise UninspectableError(str(error)) from error
    except pyvips.Error as error:
        raise UninspectableError(f"not a picture: {' '.join(str(error).split())[:120]}") from error
    return np.ndarray(buffer=raw, dtype=np.uint8, shape=(small.height, small.width, small.bands)), head.width, head.height


def fields(body: bytes) -> dict[str, str]:
    """What the header of a picture tells, by libvips' names; nothing is decoded.

    Raises:
        UninspectableError: not a picture.
    """
    try:
        head = open_header(body, MAX_PIXELS)
        names = [name for name in head.get_fields() if name.startswith("exif-ifd")]
        return {name: str(head.get(name)) for name in names}
    except UnreadableImageError as error:
        raise UninspectableError(str(error)) from error
    except pyvips.Error as error:
        raise UninspectableError(f"not a picture: {' '.join(str(error).split())[:120]}") from error
