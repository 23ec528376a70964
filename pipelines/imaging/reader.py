"""Read tiles or strips out of a huge TIFF, each by itself.

tifffile parses, imagecodecs decodes. Sizes are checked before anything is decoded: the bytes come from outside, and a header
costs nothing to invent. No other image format is tried.

The size that a JPEG claims is read from its markers alone: a decoder believes it, and takes the memory for it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from pipelines.errors import UnreadableImageError
from pipelines.imaging.tiling import TileGrid

Pixels = npt.NDArray[np.uint8]
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG = 7
_CODECS = frozenset({1, 5, _JPEG, 8, 32773, 32946, 34925, 50000})  # none, LZW, JPEG, Deflate, PackBits, Deflate, LZMA, Zstandard
_GRAY_OR_RGB = frozenset({1, 2, 6})  # minisblack, rgb, ycbcr
MAX_SEGMENT_BYTES = 256 * 1024 * 1024
_MAX_SEGMENTS = 50_000_000
_SLACK_BYTES = 64 * 1024


_START_OF_SCAN = 0xDA
_FRAME_HEADS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the header tells of one level. `lossy`: its pixels went through a lossy codec already."""

    width: int
    height: int
    channels: int
    lossy: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes of an open file that are the image; pread keeps no position, so threads may share it."""

    descriptor: int
    offset: int
    length: int


class TiffLevel:
    """One pyramid level of an open TIFF. Threads may share it."""

    def __init__(self, page: Any, facts: ImageFacts, source: Source) -> None:
        self.facts = facts
        self.tiles = TileGrid(facts.width, facts.height, int(page.chunks[1]), int(page.chunks[0]))
        self._page = page
        self._source = source

    def decode(self, tile: int) -> Pixels:
        """One tile or strip as an array (rows, columns, channels), without the padding beyond the image's edge.

        Raises:
            UnreadableImageError: it is damaged, cut off, or larger than the header tells.
        """
        with _reasons(f"tile {tile}: pixels cannot be decoded"):
            return self._decode(tile)

    def _decode(self, tile: int) -> Pixels:
        page, box = self._page, self.tiles.box(tile)
        start, size = page.dataoffsets[tile], page.databytecounts[tile]
        if size > int(np.prod(page.chunks)) * 2 + _SLACK_BYTES:
            raise UnreadableImageError(f"tile {tile} of {size} bytes is larger than its pixels")
        if start < 0 or start + size > self._source.length:
            raise UnreadableImageError(f"tile {tile} lies outside the image's own bytes")
        body = os.pread(self._source.descriptor, size, self._source.offset + start) if size else None
        if body is not None and self.facts.lossy and not self._modest(body):
            raise UnreadableImageError(f"tile {tile} claims another size than the header tells")
        pixels, _place, _ = page.decode(body, tile, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        if pixels is None:
            return np.zeros((box.height, box.width, self.facts.channels), np.uint8)
        return np.asarray(pixels[0, : box.height, : box.width], np.uint8)

    def _modest(self, body: bytes) -> bool:
        """Whether a JPEG is no larger than its tile; a decoder takes the memory for whatever it claims."""
        claimed = jpeg_size(body)
        return claimed is not None and claimed[0] <= self._page.chunks[0] and claimed[1] <= self._page.chunks[1]


@contextmanager
def open_level(file: BinaryIO, offset: int, length: int, level: int, max_pixels: int) -> Iterator[TiffLevel]:
    """Open one level of the TIFF in bytes `offset`..`offset + length` of an open file, which is closed afterwards.

    Raises:
        UnreadableImageError: not a TIFF of a supported kind, no such level, or above a limit.
    """
    with file:
        source = Source(file.fileno(), offset, length)
        if os.pread(source.descriptor, min(4, length), offset) not in _TIFF_HEADS:
            raise UnreadableImageError("not a TIFF; only tiled or striped TIFF (SVS, COG and their like) is cut")
        with _reasons("header cannot be read"):
            tiff = tifffile.TiffFile(file, offset=offset, size=length, _multifile=False)
        with tiff:
            with _reasons("header cannot be read"):
                page = _page_of(tiff, level)
                facts = _checked(page, max_pixels)
            yield TiffLevel(page, facts, source)


def _page_of(tiff: Any, level: int) -> Any:
    levels = tiff.series[0].levels
    if level >= len(levels):
        raise UnreadableImageError(f"no level {level}; this image has {len(levels)}")
    return levels[level].keyframe


def _checked(page: Any, max_pixels: int) -> ImageFacts:
    """Refuse what would not fit or would not mean pixels of 8 bits."""
    width, height, channels = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel)
    down, across, segments = page.chunks[0], page.chunks[1], len(page.dataoffsets)
    segment_bytes = int(down) * int(across) * channels
    needed = -(-width // across) * -(-height // down) if min(down, across) > 0 else -1
    strange_count = segments > _MAX_SEGMENTS or segments != needed or len(page.databytecounts) != segments
    checks: tuple[tuple[bool, str], ...] = (
        (width < 1 or height < 1, f"{width} x {height} px is no image"),
        (width * height > max_pixels, f"{width} x {height} px is above the limit of {max_pixels} pixels"),
        (str(page.dtype) != "uint8", f"{page.bitspersample}-bit samples ({page.dtype}); only 8-bit is cut"),
        (channels not in (1, 3), f"{channels} channels; 1 or 3 are cut"),
        (int(page.compression) not in _CODECS, f"compressed as {page.compression!s}; JPEG and the exact codecs are cut"),
        (int(page.photometric) not in _GRAY_OR_RGB, f"colours are {page.photometric!s}; gray, RGB and YCbCr are cut"),
        (channels > 1 and int(page.planarconfig) != 1, "channels are stored apart; only interleaved ones are cut"),
        (int(page.imagedepth) != 1 or len(page.chunks) not in (2, 3), "a volume; only flat images are cut"),
        (segment_bytes > MAX_SEGMENT_BYTES, f"one tile or strip is {segment_bytes} bytes, above {MAX_SEGMENT_BYTES}"),
        (strange_count, f"{segments} tiles where the size needs {needed}"),
    )
    for wrong, reason in checks:
        if wrong:
            raise UnreadableImageError(reason)
    return ImageFacts(width, height, channels, int(page.compression) == _JPEG)


@contextmanager
def _reasons(what: str) -> Iterator[None]:
    """A parser that meets hostile bytes raises anything; each is a reason to refuse this image, none to stop."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(f"{what}: {type(error).__name__}: {error}"[:400]) from error


def jpeg_size(body: bytes) -> tuple[int, int] | None:
    """Height and width in the frame header; None where there is none before the picture's data begins."""
    at = 2
    while at + 4 <= len(body) and body[at] == 0xFF:
        marker = body[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            return None
        if marker in _FRAME_HEADS:
            head = body[at + 5 : at + 9]
            return (int.from_bytes(head[:2], "big"), int.from_bytes(head[2:], "big")) if len(head) == 4 else None
        at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return None
