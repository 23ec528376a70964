"""Decide from a TIFF's headers which of its images is the slide, and refuse what would take too much or come out wrong.

Nothing is decoded here. The bytes come from outside: a header costs nothing to invent, so counts are checked before use.
"""

import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.errors import UnreadableImageError

JPEG = 7
MAX_SEGMENT_BYTES = 256 * 1024 * 1024
MAX_IFDS = 10_000
MAX_SHARED_TILES = 8
MAX_RATIO = 2_000
_CODECS = frozenset({1, 5, JPEG, 8, 32773, 32946, 34925, 50000})  # none, LZW, JPEG, Deflate, PackBits, Deflate, LZMA, Zstandard
_GRAY, _RGB, _YCBCR = 1, 2, 6
_GRAY_BITS = frozenset({1, 2, 4, 8})
_MAX_SEGMENTS = 50_000_000
_MAX_TAGS = 4_096
_MASK, _REDUCED = 4, 1
_NO_SLIDE = frozenset({"Label", "Macro", "Thumbnail"})
_HARMLESS_BYTES = 64 * 1024 * 1024
_SIMILAR = 4
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_GDAL_NODATA = 42113
_WHITE = 255


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes of an open file that are the image; pread keeps no position, so threads may share it."""

    descriptor: int
    offset: int
    length: int

    def read(self, start: int, size: int) -> bytes:
        """Bytes of the image; fewer at its end."""
        return os.pread(self.descriptor, max(0, min(size, self.length - start)), self.offset + start)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the header says of one level.

    Attributes:
        lossy: whether its pixels went through a lossy codec already.
        fill: value of the pixels of a tile that the file leaves out.
        scale: what gray values of fewer than 8 bits are multiplied by.
        is_rgb: whether JPEG tiles hold red, green and blue, which most decoders cannot know.
        left_out: the other images of the file, by name and size; none of them is cut.
    """

    width: int
    height: int
    channels: int
    lossy: bool
    fill: int = 0
    scale: int = 1
    is_rgb: bool = False
    left_out: str = ""


def check_chain(source: Source) -> None:
    """Refuse a chain of headers that is too long, comes back to itself, or has more values than the file has bytes.

    Raises:
        UnreadableImageError: with that reason.
    """
    head = source.read(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = struct.unpack(f"{order}H", head[2:4])[0] == 43  # BigTIFF
    entry_bytes, number = (20, "Q") if is_big else (12, "I")
    count_form, head_bytes = ("Q", 8) if is_big else ("H", 2)
    at = struct.unpack_from(f"{order}{number}", head, 8 if is_big else 4)[0]
    seen: set[int] = set()
    while at:
        if at in seen:
            raise UnreadableImageError("the chain of its headers (IFDs) comes back to itself")
        seen.add(at)
        if len(seen) > MAX_IFDS:
            raise UnreadableImageError(f"more than {MAX_IFDS} headers (IFDs) in a chain")
        start = source.read(at, head_bytes)
        if len(start) < head_bytes:
            return  # whether enough of it is there is for the parser to say
        count = struct.unpack(f"{order}{count_form}", start)[0]
        if count > _MAX_TAGS:
            raise UnreadableImageError(f"a header (IFD) of {count} tags, above {_MAX_TAGS}")
        body = source.read(at + head_bytes, count * entry_bytes + struct.calcsize(number))
        _check_tags(body, count, entry_bytes, f"{order}HH{number}", source.length)
        if len(body) < count * entry_bytes + struct.calcsize(number):
            return
        at = struct.unpack_from(f"{order}{number}", body, count * entry_bytes)[0]


def _check_tags(body: bytes, count: int, entry_bytes: int, form: str, length: int) -> None:
    for place in range(min(count, len(body) // entry_bytes)):
        tag, kind, values = struct.unpack_from(form, body, place * entry_bytes)
        if values * _TYPE_BYTES.get(kind, 1) > length:
            raise UnreadableImageError(f"tag {tag} claims {values} values, which is more than the file")


def slide_level(tiff: Any, level: int) -> tuple[Any, str]:
    """The page of one level of the file's largest image, and what the file has next to that image.

    Raises:
        UnreadableImageError: it is a stack, has a mask, has two images that may be the slide, or has no such level.
    """
    masks = [page.index for page in tiff.pages if int(getattr(page, "subfiletype", 0) or 0) & _MASK]
    if masks:
        raise UnreadableImageError(f"has a transparency mask (page {masks[0]}), which chips do not carry")
    images = sorted(tiff.series, key=_rank, reverse=True)
    if not images:
        raise UnreadableImageError("header cannot be read: there is no image in it")
    if _rank(images[0]) == 0:
        raise UnreadableImageError("no image in it, but labels, thumbnails or reduced ones")
    series, others = images[0], images[1:]
    planes = int(np.prod([size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"]))
    if planes > 1:
        raise UnreadableImageError(f"a stack of {planes} planes ({series.axes}); only single images are cut")
    if others and _rank(others[0]) * _SIMILAR > _rank(series):
        raise UnreadableImageError(
            f"{1 + len(others)} images, of which two may be the slide: {_named(series)} and {_named(others[0])}; give each a file"
        )
    if level >= len(series.levels):
        raise UnreadableImageError(f"no level {level}; this image has {len(series.levels)}")
    return series.levels[level].keyframe, "; ".join(map(_named, others))


def _rank(series: Any) -> int:
    """Pixels of an image; 0 of one that the file itself calls no slide."""
    page = series.keyframe
    is_small = series.name in _NO_SLIDE or int(page.subfiletype or 0) & _REDUCED
    return 0 if is_small else int(page.imagewidth) * int(page.imagelength)


def _named(series: Any) -> str:
    page = series.keyframe
    return f"{series.name or 'image'} of {page.imagewidth} x {page.imagelength} px"


def image_facts(tiff: Any, page: Any, max_pixels: int, left_out: str) -> ImageFacts:
    """What is to be known of a page before it is decoded.

    Raises:
        UnreadableImageError: it would not fit, or its pixels would not come out as 8 bits of gray or RGB.
    """
    width, height, channels = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel)
    photometric, bits = int(page.photometric), page.bitspersample
    is_gray = channels == 1 and photometric == _GRAY
    has_good_bits = str(page.dtype) in ("uint8", "bool") and (bits == 8 or (is_gray and bits in _GRAY_BITS))  # bits
    checks: tuple[tuple[bool, str], ...] = (
        (width < 1 or height < 1, f"{width} x {height} px is no image"),
        (width * height > max_pixels, f"{width} x {height} px is above the limit of {max_pixels} pixels"),
        (not has_good_bits, f"{bits}-bit samples ({page.dtype}); 8-bit ones and gray of 1, 2 or 4 bits are cut"),
        (channels not in (1, 3), f"{channels} channels; 1 or 3 are cut"),
        (int(page.compression) not in _CODECS, f"compressed as {page.compression!s}; JPEG and the exact codecs are cut"),
        (photometric not in (_GRAY, _RGB, _YCBCR), f"colours are {page.photometric!s}; gray, RGB and YCbCr are cut"),
        (channels > 1 and int(page.planarconfig) != 1, "channels are stored apart; only interleaved ones are cut"),
        (int(page.imagedepth) != 1 or len(page.chunks) not in (2, 3), "a volume; only flat images are cut"),
    )
    for is_wrong, reason in checks:
        if is_wrong:
            raise UnreadableImageError(reason)
    scale = _WHITE // (2 ** int(bits) - 1)
    fill = int(page.nodata) if _GDAL_NODATA in page.tags else _missing_value(tiff)
    is_jpeg = int(page.compression) == JPEG
    return ImageFacts(width, height, channels, is_jpeg, min(_WHITE, fill * scale), scale, photometric == _RGB, left_out)


def _missing_value(tiff: Any) -> int:
    """A scanner leaves out the tiles without tissue; elsewhere a tile that is left out is zeros."""
    return _WHITE if tiff.is_svs or tiff.is_philips or tiff.is_ndpi or tiff.is_scn or tiff.is_bif else 0


def check_tiles(page: Any, facts: ImageFacts, length: int) -> None:
    """Refuse tiles that are too many, too large, shared, or more pixels than such a file can have.

    Raises:
        UnreadableImageError: with that reason.
    """
    down, across, count = int(page.chunks[0]), int(page.chunks[1]), len(page.dataoffsets)
    segment_bytes = down * across * facts.channels
    needed = -(-facts.width // across) * -(-facts.height // down) if min(down, across) > 0 else -1
    if segment_bytes > MAX_SEGMENT_BYTES:
        raise UnreadableImageError(f"one tile or strip is {segment_bytes} bytes, above {MAX_SEGMENT_BYTES}")
    if count > _MAX_SEGMENTS or count != needed or len(page.databytecounts) != count:
        raise UnreadableImageError(f"{count} tiles where the size needs {needed}")
    starts, sizes = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    stored = sizes > 0
    order = np.argsort(starts[stored], kind="stable")
    starts, ends = starts[stored][order], (starts[stored] + sizes[stored])[order]
    if len(ends) and (starts[0] < 0 or ends.max() > length):
        raise UnreadableImageError("a tile lies outside the image's own bytes")
    shared = int(np.count_nonzero(starts[1:] < ends[:-1]))
    if shared >= MAX_SHARED_TILES:
        raise UnreadableImageError(f"{shared + 1} of {count} tiles are the same bytes or overlap; up to {MAX_SHARED_TILES} may")
    pixels, stored_bytes = facts.width * facts.height * facts.channels, int(sizes.sum())
    if pixels > _HARMLESS_BYTES and pixels > MAX_RATIO * max(stored_bytes, 1):
        raise UnreadableImageError(f"{pixels} bytes of pixels in {stored_bytes} stored ones, above {MAX_RATIO} to 1")
