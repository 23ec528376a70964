"""Read a band of rows out of a huge TIFF, decoding each tile or strip of the band once.

tifffile parses, imagecodecs decodes, on a few threads. Sizes are checked before anything is decoded: the bytes come from
outside, and a header costs nothing to invent. No other image format is tried.

The size that a JPEG claims, read from its markers alone: a decoder believes it, and takes the memory for it.

Cut a band of pixels into chips: arrays, how much of each is background, and encoded pictures.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from pipelines.errors import UnreadableImageError
from pipelines.imaging.tiling import Band, Grid

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


NEAR_WHITE = 235
NEAR_BLACK = 20
_JPEG_QUALITY = 90
_PNG_LEVEL = 3
Floats = npt.NDArray[np.float32]


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
    """One pyramid level of an open TIFF."""

    def __init__(self, page: Any, facts: ImageFacts, source: Source, threads: int) -> None:
        self.facts = facts
        self._page = page
        self._source = source
        self._threads = threads

    def rows(self, low: int, high: int) -> Pixels:
        """Rows `low` up to `high` (exclusive) as an array (rows, width, channels).

        Raises:
            UnreadableImageError: a tile or strip is damaged, cut off, or larger than the header says.
        """
        band: Pixels = np.zeros((high - low, self.facts.width, self.facts.channels), np.uint8)
        with _reasons("pixels cannot be decoded"), ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(lambda segment: self._place(segment, band, low), self._segments(low, high)):
                pass
        return band

    def _segments(self, low: int, high: int) -> Iterator[int]:
        down, across = self._page.chunks[:2]
        columns = -(-self.facts.width // across)
        yield from range((low // down) * columns, -(-high // down) * columns)

    def _place(self, segment: int, band: Pixels, low: int) -> None:
        page = self._page
        start, size = page.dataoffsets[segment], page.databytecounts[segment]
        if size > int(np.prod(page.chunks)) * 2 + _SLACK_BYTES:
            raise UnreadableImageError(f"tile {segment} of {size} bytes is larger than its pixels")
        if start < 0 or start + size > self._source.length:
            raise UnreadableImageError(f"tile {segment} lies outside the image's own bytes")
        body = os.pread(self._source.descriptor, size, self._source.offset + start) if size else None
        if body is not None and self.facts.lossy and not self._modest(body):
            raise UnreadableImageError(f"tile {segment} claims another size than the header says")
        pixels, place, _ = page.decode(body, segment, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        if pixels is None:
            return
        top, left = place[2], place[3]
        first, last = max(top, low), min(top + pixels.shape[1], low + len(band))
        right = min(left + pixels.shape[2], self.facts.width)
        band[first - low : last - low, left:right] = pixels[0, first - top : last - top, : right - left]

    def _modest(self, body: bytes) -> bool:
        """Whether a JPEG is no larger than its tile; a decoder takes the memory for whatever it claims."""
        claimed = jpeg_size(body)
        return claimed is not None and claimed[0] <= self._page.chunks[0] and claimed[1] <= self._page.chunks[1]


@contextmanager
def open_level(file: BinaryIO, offset: int, length: int, level: int, max_pixels: int, threads: int = 0) -> Iterator[TiffLevel]:
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
            yield TiffLevel(page, facts, source, threads or min(4, os.cpu_count() or 1))


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


@dataclass(frozen=True, slots=True)
class Chips:
    """The chips of a band: pixels (n, size, size, channels), background shares (n), encoded pictures (n)."""

    first_index: int
    pixels: Pixels
    background: Floats
    encoded: tuple[bytes, ...]


def media_type(lossy: bool) -> str:
    """Pixels that went through a lossy codec become JPEG; exact ones stay exact, as PNG."""
    return "image/jpeg" if lossy else "image/png"


def cut_band(rows: Pixels, grid: Grid, band: Band, lossy: bool, threads: int = 0) -> Chips:
    """Cut a band's rows into its chips.

    Args:
        rows: image rows `band.y_low` to `band.y_high`, as (rows, width, channels).
        grid: where the chips lie.
        band: which of them.
        lossy: whether the pixels were lossy before.
        threads: for encoding; 0 for as many as there are cores, at most 4.
    """
    low, high = band.row_low * grid.columns, band.row_high * grid.columns
    pixels: Pixels = np.zeros((high - low, grid.size, grid.size, rows.shape[2]), np.uint8)
    background = np.zeros(high - low, np.float32)

    def one(index: int) -> bytes:
        """Everything that is done to one chip, while it lies in the processor's cache."""
        window, at = grid.window(index), index - low
        top = window.y - band.y_low
        pixels[at, : window.height, : window.width] = rows[top : top + window.height, window.x : window.x + window.width]
        background[at] = background_share(pixels[at, : window.height, : window.width])
        return _jpeg(pixels[at]) if lossy else _png(pixels[at])

    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        encoded = tuple(pool.map(one, range(low, high)))
    return Chips(low, pixels, background, encoded)


def background_share(pixels: Pixels) -> float:
    """The share of pixels whose channels are all near white, or all near black; every second pixel each way is looked at."""
    looked_at = pixels[::2, ::2]
    white, black = looked_at >= NEAR_WHITE, looked_at <= NEAR_BLACK
    all_white, all_black = white[..., 0], black[..., 0]
    for channel in range(1, pixels.shape[2]):  # a reduction over so short an axis takes five times as long
        all_white, all_black = all_white & white[..., channel], all_black & black[..., channel]
    plain = int(np.count_nonzero(all_white | all_black))
    return plain / all_white.size


def _jpeg(chip: Pixels) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(_squeezed(chip), level=_JPEG_QUALITY, subsampling="444"))


def _png(chip: Pixels) -> bytes:
    return bytes(imagecodecs.png_encode(_squeezed(chip), level=_PNG_LEVEL))


def _squeezed(chip: Pixels) -> Pixels:
    return chip[:, :, 0] if chip.shape[2] == 1 else chip
