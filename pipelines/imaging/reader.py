"""Open an image, and read tiles or strips out of a huge TIFF, each by itself. tifffile parses; `codecs` decodes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import tifffile

from pipelines.errors import UnreadableImageError
from pipelines.imaging.choice import Choice, Layer, choose_image
from pipelines.imaging.codecs import SLACK_BYTES, Samples, decode_segment
from pipelines.imaging.describe import image_facts, scaling_of
from pipelines.imaging.facts import ImageFacts, nearest_level
from pipelines.imaging.header import Source, check_chain, check_tiles
from pipelines.imaging.pictures import PictureLevel, open_picture, picture_kind
from pipelines.imaging.tiling import TileGrid
from schemas.contract import ChipSpec

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD_BYTES = 16
_BLANK_RANGE = 4


class TiffLevel:
    """One pyramid level of an open TIFF, with all its planes. Threads may share it.

    Args:
        facts: what the header says.
        layers: of each plane.
        source: the file.
        mask: its internal mask, a level of one plane; None without one.
    """

    is_sequential = False

    def __init__(
        self, facts: ImageFacts, layers: Sequence[Sequence[Layer]], source: Source, mask: "TiffLevel | None" = None
    ) -> None:
        page = layers[0][0].page
        self.facts = facts
        self.mask = mask
        self.tiles = _tile_grid(page)
        self.page = page
        self._layers = layers
        self._source = source
        self._samples = facts.channels // len(layers[0])
        self._segment_bytes = self.tiles.tile_width * self.tiles.tile_height * self._samples * page.dtype.itemsize
        every = [layer for plane in layers for layer in plane]
        self._shared = check_tiles(every, self.tiles, self._segment_bytes, source.length)
        self._blank: dict[int, Samples] = {}

    def decode(self, tile: int, plane: int = 0) -> Samples:
        """One tile or strip as an array (rows, columns, channels), without the padding beyond the image's edge.

        A tile that the file leaves out, or names for many places, takes no memory.

        Raises:
            UnreadableImageError: it is damaged, cut off, or of another size than the header says.
        """
        with _reasons(f"tile {tile}: pixels cannot be decoded"):
            parts = [self._layer(layer, tile) for layer in self._layers[plane]]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def stored(self, tile: int, plane: int = 0) -> bytes | None:
        """The bytes of a tile as they lie in the file; None for one that the file leaves out, or of several layers."""
        layers = self._layers[plane]
        if len(layers) != 1 or not layers[0].sizes[tile]:
            return None
        size = int(layers[0].sizes[tile])
        body = self._source.read(int(layers[0].offsets[tile]), size)
        return body if len(body) == size else None

    def _layer(self, layer: Layer, tile: int) -> Samples:
        box, facts = self.tiles.box(tile), self.facts
        start, size = int(layer.offsets[tile]), int(layer.sizes[tile])
        if not size:
            return np.broadcast_to(np.asarray(facts.fill, facts.dtype), (box.height, box.width, self._samples))
        known = self._blank.get(start)
        if known is not None:
            return np.broadcast_to(known, (box.height, box.width, self._samples))
        if size > self._segment_bytes * 2 + SLACK_BYTES:
            raise UnreadableImageError(f"tile {tile} of {size} bytes is larger than its pixels")
        body = self._source.read(start, size)
        if len(body) != size:
            raise UnreadableImageError(f"tile {tile} lies outside the image's own bytes")
        found = decode_segment(layer.page, body, layer.first + tile, self._samples, is_rgb=facts.is_rgb)
        found = self._turned(found[: box.height, : box.width])
        if found.shape[:2] != (box.height, box.width):
            raise UnreadableImageError(f"tile {tile} has fewer pixels than the header says")
        return self._shared_once(found, start, tile) if start in self._shared else found

    def _shared_once(self, found: Samples, start: int, tile: int) -> Samples:
        """A tile that is named for many places is one colour, or the file is damaged or an attack."""
        spread = found.max(axis=(0, 1)).astype(np.float64) - found.min(axis=(0, 1))
        if not (spread <= _BLANK_RANGE).all():
            raise UnreadableImageError(f"tile {tile} is not blank, and its bytes are those of other tiles too")
        if not spread.any():
            self._blank[start] = found[0, 0].copy()
            return np.broadcast_to(self._blank[start], found.shape)
        return found

    def _turned(self, found: Samples) -> Samples:
        """Gray of few bits covers black to white; white that is zero becomes the largest value."""
        facts = self.facts
        if found.dtype == np.bool_:
            found = found.astype(np.uint8)
        if facts.scale > 1:
            found = np.multiply(found, facts.scale, dtype=np.uint8)
        return np.iinfo(found.dtype).max - found if facts.is_inverted else found


ImageLevel: TypeAlias = TiffLevel | PictureLevel


@contextmanager
def open_level(file: BinaryIO, offset: int, length: int, spec: ChipSpec, max_pixels: int) -> Iterator[ImageLevel]:
    """Open the level that `spec` names of the image in bytes `offset`..`offset + length` of an open file, which is closed after.

    Raises:
        UnreadableImageError: not an image of a supported kind, no such level, or above a limit.
    """
    with file:
        source = Source(file.fileno(), offset, length)
        head = source.read(0, _HEAD_BYTES)
        kind = picture_kind(head)
        if kind:
            with _reasons(f"not a {kind.upper()} that can be read"):
                picture = open_picture(kind, source, spec, max_pixels)
            yield picture
            return
        if head[:4] not in _TIFF_HEADS:
            raise UnreadableImageError("not a TIFF, PNG, JPEG, WebP, JPEG 2000, JPEG XL or AVIF; others are not cut")
        with _reasons("header cannot be read"):
            check_chain(source)
            tiff = tifffile.TiffFile(file, offset=offset, size=length, _multifile=False)
        with tiff:
            with _reasons("header cannot be read"):
                choice = choose_image(tiff, spec.level)
                if spec.factor or spec.mpp:
                    widths = [width for width, _ in choice.levels]
                    choice = choose_image(tiff, nearest_level(scaling_of(tiff, choice), widths, spec.factor, spec.mpp))
                facts = image_facts(tiff, choice, max_pixels)
                opened = TiffLevel(facts, choice.layers, source, _mask(choice, source))
            yield opened


def _mask(choice: Choice, source: Source) -> TiffLevel | None:
    page = choice.mask
    if page is None:
        return None
    if int(page.samplesperpixel) != 1 or str(page.dtype) not in ("bool", "uint8"):
        raise UnreadableImageError(f"a transparency mask of {page.samplesperpixel} channels ({page.dtype})")
    layer = Layer(page, 0, np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64))
    return TiffLevel(ImageFacts(int(page.imagewidth), int(page.imagelength), 1), ((layer,),), source)


def _tile_grid(page: Any) -> TileGrid:
    width, height = int(page.imagewidth), int(page.imagelength)
    if page.is_tiled:
        return TileGrid(width, height, int(page.tilewidth), int(page.tilelength))
    return TileGrid(width, height, width, min(int(page.rowsperstrip), height))


@contextmanager
def _reasons(what: str) -> Iterator[None]:
    """A parser that meets hostile bytes raises anything; each is a reason to refuse this image, none to stop."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(f"{what}: {type(error).__name__}: {error}"[:400]) from error
