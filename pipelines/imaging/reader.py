"""Read tiles or strips out of a huge TIFF, each by itself.

tifffile parses; libvips decodes JPEG, strictly, and imagecodecs the rest. No other image format is tried.

The size that a JPEG claims is read from its markers alone: a decoder believes it, and takes the memory for it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyvips
import tifffile

from pipelines.errors import UnreadableImageError
from pipelines.imaging import picture_loader as _only_some_loaders  # noqa: F401  # blocks those that were not made for this
from pipelines.imaging.header import ImageFacts, Source, check_chain, check_tiles, image_facts, slide_level
from pipelines.imaging.tiling import TileGrid

Pixels = npt.NDArray[np.uint8]
MAX_SCANS = 100
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SLACK_BYTES = 64 * 1024
_START_OF_SCAN = 0xDA
_FRAME_HEADS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_IS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x80\x00\x00\x00\x00"  # APP14: the transform is none


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
            UnreadableImageError: it is damaged, cut off, or larger than the header says.
        """
        with _reasons(f"tile {tile}: pixels cannot be decoded"):
            return self._decode(tile)

    def _decode(self, tile: int) -> Pixels:
        page, box, facts = self._page, self.tiles.box(tile), self.facts
        start, size = page.dataoffsets[tile], page.databytecounts[tile]
        if size > int(np.prod(page.chunks)) * 2 + _SLACK_BYTES:
            raise UnreadableImageError(f"tile {tile} of {size} bytes is larger than its pixels")
        if not size:
            return np.full((box.height, box.width, facts.channels), facts.fill, np.uint8)
        body = self._source.read(start, size)
        if len(body) != size:
            raise UnreadableImageError(f"tile {tile} lies outside the image's own bytes")
        if facts.lossy:
            found = self._decode_jpeg(tile, body)[: box.height, : box.width]
        else:
            pixels, _place, _ = page.decode(body, tile)
            found = np.asarray(pixels[0, : box.height, : box.width], np.uint8)
        if found.shape[:2] != (box.height, box.width):
            raise UnreadableImageError(f"tile {tile} has fewer pixels than the header says")
        return found if facts.lossy or facts.scale == 1 else np.multiply(found, facts.scale, dtype=np.uint8)

    def _decode_jpeg(self, tile: int, body: bytes) -> Pixels:
        """Decode strictly: data that is cut short or damaged is only a warning to most decoders, and comes out gray."""
        scans = body.count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise UnreadableImageError(f"tile {tile} has {scans} scans, above {MAX_SCANS}")
        if not self._modest(body):
            raise UnreadableImageError(f"tile {tile} claims another size than the header says")
        if not body.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise UnreadableImageError(f"tile {tile}: pixels cannot be decoded: its JPEG data has no end")
        tables = self._page.jpegtables or b""
        is_bare = b"JFIF" not in body[:64] and b"Adobe" not in body[:64] and b"Adobe" not in tables
        marker = _IS_RGB if self.facts.is_rgb and self.facts.channels > 1 and is_bare else b""
        whole = body[:2] + marker + tables[2:-2] + body[2:]
        strict = pyvips.Image.jpegload_buffer(whole, fail_on="warning")
        found: Pixels = np.ndarray((strict.height, strict.width, strict.bands), np.uint8, strict.write_to_memory())
        if self.facts.is_rgb and not is_bare:  # what the tile says of its colours may be wrong, and the header is right
            pixels, _, _ = self._page.decode(body, tile, jpegtables=self._page.jpegtables, jpegheader=self._page.jpegheader)
            found = np.asarray(pixels[0], np.uint8)
        if found.shape[2] != self.facts.channels:
            raise UnreadableImageError(f"tile {tile} has {found.shape[2]} channels where the header says {self.facts.channels}")
        return found

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
            check_chain(source)
            tiff = tifffile.TiffFile(file, offset=offset, size=length, _multifile=False)
        with tiff:
            with _reasons("header cannot be read"):
                page, left_out = slide_level(tiff, level)
                facts = image_facts(tiff, page, max_pixels, left_out)
                check_tiles(page, facts, length)
            yield TiffLevel(page, facts, source)


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
