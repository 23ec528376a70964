"""Media type, width and height of a picture from its first bytes, without decoding it: JPEG, PNG, TIFF and BigTIFF."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

_MAX_SEGMENTS = 4096
_MAX_TAGS = 4096
_WIDTH_TAG, _HEIGHT_TAG = 256, 257
# Start-of-frame markers: C0..CF without C4 (Huffman tables), C8 (reserved) and CC (arithmetic tables).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes say; width and height in px are None where they cannot be read."""

    media_type: str
    width: int | None = None
    height: int | None = None


def read_image_header(file: BinaryIO) -> ImageHeader | None:
    """Look at a file that stands at its start; None if it is none of the known kinds. Never raises on bad content."""
    magic = file.read(16)
    try:
        if magic.startswith(b"\xff\xd8\xff"):
            return ImageHeader("image/jpeg", *_jpeg_size(file))
        if magic.startswith(b"\x89PNG\r\n\x1a\n"):
            return ImageHeader("image/png", *_png_size(file))
        if magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return ImageHeader("image/tiff", *_tiff_size(file, magic))
    except (struct.error, OverflowError):
        return ImageHeader(_media_type(magic))
    return None


def _media_type(magic: bytes) -> str:
    if magic.startswith(b"\xff\xd8"):
        return "image/jpeg"
    return "image/png" if magic.startswith(b"\x89PNG") else "image/tiff"


def _png_size(file: BinaryIO) -> tuple[int | None, int | None]:
    file.seek(12)
    kind, width, height = struct.unpack(">4sII", file.read(12))
    return (width, height) if kind == b"IHDR" else (None, None)


def _jpeg_size(file: BinaryIO) -> tuple[int | None, int | None]:
    file.seek(2)
    for _ in range(_MAX_SEGMENTS):
        marker = _next_marker(file)
        if marker in _BARE_MARKERS:
            continue
        if marker is None or marker == 0xDA:  # the picture's data begin: no frame header came
            return None, None
        (length,) = struct.unpack(">H", file.read(2))
        if marker in _FRAME_MARKERS:
            _precision, height, width = struct.unpack(">BHH", file.read(5))
            return width, height
        file.seek(length - 2, 1)
    return None, None


def _next_marker(file: BinaryIO) -> int | None:
    if file.read(1) != b"\xff":
        return None
    byte = b"\xff"
    while byte == b"\xff":  # any number of fill bytes may stand before the marker
        byte = file.read(1)
    return byte[0] if byte else None


def _tiff_size(file: BinaryIO, magic: bytes) -> tuple[int | None, int | None]:
    order = "<" if magic[:2] == b"II" else ">"
    big = magic[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack(order + ("Q" if big else "I"), magic[8:16] if big else magic[4:8])
    file.seek(first)
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    sizes: dict[int, int | None] = {}
    for _ in range(min(count, _MAX_TAGS)):
        tag, kind, _values, raw = entry.unpack(file.read(entry.size))
        if tag in (_WIDTH_TAG, _HEIGHT_TAG):
            sizes[tag] = _number(order, kind, raw)
    return sizes.get(_WIDTH_TAG), sizes.get(_HEIGHT_TAG)


def _number(order: str, kind: int, raw: bytes) -> int | None:
    form = {3: "H", 4: "I", 16: "Q"}.get(kind)  # SHORT, LONG, LONG8
    if form is None:
        return None
    (value,) = struct.unpack_from(order + form, raw)
    return int(value)
