"""Refuse a TIFF whose headers would take too much: chains, counts of tags, tiles that are too many, too large or shared.

Nothing is decoded here. The bytes come from outside: a header costs nothing to invent, so counts are checked before use.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import UnreadableImageError
from pipelines.imaging.choice import Layer
from pipelines.imaging.tiling import TileGrid

MAX_SEGMENT_BYTES = 256 * 1024 * 1024
MAX_IFDS = 10_000
MAX_SHARED_TILES = 8
MAX_RATIO = 2_000
MAX_SHARED_RATIO = 10_000
_MAX_SEGMENTS = 50_000_000
_MAX_TAGS = 4_096
_HARMLESS_BYTES = 64 * 1024 * 1024
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes of an open file that are the image; pread keeps no position, so threads may share it."""

    descriptor: int
    offset: int
    length: int

    def read(self, start: int, size: int) -> bytes:
        """Bytes of the image; fewer at its end."""
        return os.pread(self.descriptor, max(0, min(size, self.length - start)), self.offset + start)


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


def check_tiles(layers: Sequence[Layer], tiles: TileGrid, segment_bytes: int, length: int) -> frozenset[int]:
    """Refuse tiles that are too many, too large, shared without being blank, or more pixels than such a file can have.

    Scanners and writers of sparse files name one blank tile for all places without content; that is decoded once, and
    takes little. Other tiles that are named again and again are an attack, or the file is damaged.

    Args:
        layers: of all planes.
        tiles: the tiles of one layer.
        segment_bytes: pixels of one tile.
        length: bytes of the file.

    Returns:
        Where tiles begin that are named more than once and must be blank.

    Raises:
        UnreadableImageError: with that reason.
    """
    counts = {len(layer.offsets) for layer in layers}
    if segment_bytes > MAX_SEGMENT_BYTES:
        raise UnreadableImageError(f"one tile or strip is {segment_bytes} bytes, above {MAX_SEGMENT_BYTES}")
    if counts != {tiles.count} or tiles.count * len(layers) > _MAX_SEGMENTS:
        raise UnreadableImageError(f"{max(counts)} tiles where the size needs {tiles.count}")
    starts, sizes = (np.concatenate(parts) for parts in zip(*((one.offsets, one.sizes) for one in layers), strict=True))
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    if len(starts) and (starts.min() < 0 or (starts + sizes).max() > length):
        raise UnreadableImageError("a tile lies outside the image's own bytes")
    distinct, named = np.unique(np.stack([starts, sizes]), axis=1, return_counts=True)
    begins, ends = distinct[0], distinct.sum(axis=0)
    overlapping = int(np.count_nonzero(begins[1:] < ends[:-1]))
    repeated = int((named - 1).sum())
    words = f"{repeated + 1} of {len(starts)} tiles are the same bytes or overlap"
    if overlapping >= MAX_SHARED_TILES:
        raise UnreadableImageError(f"{overlapping + 1} of {len(starts)} tiles overlap; up to {MAX_SHARED_TILES} may")
    _check_ratio(len(begins) * segment_bytes, int(distinct[1].sum()), MAX_RATIO, "in the tiles")
    if repeated:
        _check_ratio(len(starts) * segment_bytes, length, MAX_SHARED_RATIO, f"in the file; {words}")
    return frozenset(begins[named > 1].tolist()) if repeated >= MAX_SHARED_TILES else frozenset()


def _check_ratio(pixel_bytes: int, stored_bytes: int, most: int, where: str) -> None:
    if pixel_bytes > _HARMLESS_BYTES and pixel_bytes > most * max(stored_bytes, 1):
        raise UnreadableImageError(f"{pixel_bytes} bytes of pixels in {stored_bytes} stored ones {where}, above {most} to 1")
