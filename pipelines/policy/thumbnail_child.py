"""The target of the process that decodes pictures for a contact sheet. See `catchment.runtime.worker.child`.

Stands alone because the limited process imports it and nothing more.
"""

from collections.abc import Callable
from typing import Any

from pipelines.imaging.picture_loader import shrink

SIDE_PX = 240
MAX_PIXELS = 400_000_000
AS_JPEG, AS_TILE = b"jpeg", b"tile"


def open_thumbnailer(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Make pictures small.

    Args:
        options: `AS_JPEG`: a JPEG of at most SIDE_PX a side; `AS_TILE`: SIDE_PX x SIDE_PX pixels of RGB, padded with white.
    """

    def thumbnail(body: bytes) -> bytes:
        small: Any = shrink(body, SIDE_PX, SIDE_PX, MAX_PIXELS, size="down")
        small = small.colourspace("srgb")
        if small.hasalpha():
            small = small.flatten(background=255)
        if options == AS_JPEG:
            return bytes(small.jpegsave_buffer(Q=80, keep="none"))
        small = small.cast("uchar")
        small = small if small.bands == 3 else small[0].bandjoin([small[0], small[0]])
        return bytes(small.gravity("centre", SIDE_PX, SIDE_PX, extend="white").write_to_memory())

    return thumbnail
