"""Copy stored tiles into chips where chip and tile are the same: no loss, and next to no work.

A tile of JPEG in a TIFF lacks its tables, and a decoder that does not see the TIFF cannot know its colours. Both are put in.
The first tile of a level is decoded as any program would decode it; unless that is what the TIFF says, nothing is passed.
"""

from dataclasses import dataclass

import imagecodecs
import numpy as np

from pipelines.imaging.codecs import APERIO_RGB, JPEG, JPEG_2000, MAX_SCANS, Samples, jp2_size, jpeg_frame, jpeg_picture
from pipelines.imaging.encoding import JP2
from pipelines.imaging.encoding import JPEG as JPEG_TYPE
from pipelines.imaging.facts import Colours
from pipelines.imaging.reader import ImageLevel, TiffLevel
from pipelines.imaging.tiling import Grid
from schemas.contract import ChipCodec, ChipSpec

_TRIED = 64
_BROWSER_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_EIGHT_BITS = 8


@dataclass(frozen=True, slots=True)
class PassThrough:
    """The pictures of tiles that are chips.

    Attributes:
        level: whose tiles.
        media_type: of the pictures.
    """

    level: TiffLevel
    media_type: str

    def picture(self, tile: int, plane: int) -> bytes | None:
        """A tile as a picture of its own; None where the file leaves it out, or its data is not what a decoder expects."""
        body = self.level.stored(tile, plane)
        if body is None:
            return None
        tiles = self.level.tiles
        if self.media_type == JP2:
            return body if jp2_size(body) == (tiles.tile_height, tiles.tile_width) else None
        if self.level.facts.is_rgb and b"JFIF" in body[:64]:  # the tile and the header contradict each other
            return None
        frame = jpeg_frame(body)
        is_good = (
            frame is not None
            and frame.marker in _BROWSER_FRAMES
            and frame.bits == _EIGHT_BITS
            and (frame.height, frame.width) == (tiles.tile_height, tiles.tile_width)
            and body.count(b"\xff\xda") <= MAX_SCANS
            and body.rstrip(b"\0").endswith(b"\xff\xd9")
        )
        return jpeg_picture(self.level.page, body, is_rgb=self.level.facts.is_rgb) if is_good else None


def pass_through(level: ImageLevel, grid: Grid, spec: ChipSpec) -> PassThrough | None:
    """What copies tiles where they are the chips of `grid`; None where chips must be encoded.

    Raises:
        UnreadableImageError: the tile that was tried cannot be decoded.
    """
    if not isinstance(level, TiffLevel) or spec.codec is not ChipCodec.AUTO or spec.channels:
        return None
    tiles, facts, codec = level.tiles, level.facts, int(level.page.compression)
    is_same = (grid.size, grid.tall) == (tiles.tile_width, tiles.tile_height)
    is_same = is_same and not (grid.overlap or grid.left or grid.top)
    is_plain = facts.colours in (Colours.RGB, Colours.GRAY) and facts.dtype == "uint8" and not facts.has_alpha
    if (
        not is_same
        or not is_plain
        or grid.count > tiles.count
        or facts.scale != 1
        or facts.is_inverted
        or not level.page.is_tiled
    ):
        return None
    if grid.columns != tiles.columns or codec not in (JPEG, JPEG_2000, APERIO_RGB):
        return None
    passing = PassThrough(level, JPEG_TYPE if codec == JPEG else JP2)
    return passing if _is_right(passing) else None


def _is_right(passing: PassThrough) -> bool:
    """Whether a program that sees the picture alone decodes the first stored tile to what the TIFF says."""
    level = passing.level
    for tile in range(min(_TRIED, level.tiles.count)):
        body = passing.picture(tile, 0)
        if body is not None:
            box = level.tiles.box(tile)
            found = _plainly_decoded(body, passing.media_type)[: box.height, : box.width]
            expected = level.decode(tile)
            return found.shape == expected.shape and bool((found == expected).all())
    return False


def _plainly_decoded(body: bytes, media_type: str) -> Samples:
    pixels = np.asarray(imagecodecs.jpeg8_decode(body) if media_type == JPEG_TYPE else imagecodecs.jpeg2k_decode(body))
    return pixels if pixels.ndim == 3 else pixels[..., None]
