"""Media type, width and height of a picture, not decoded, from its first bytes: JPEG, PNG, TIFF, BigTIFF, GIF, BMP, WebP."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

_MAX_SEGMENTS = 4096
_MAX_TAGS = 4096
_BMP_BYTES = 26
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
        return _plain(magic + file.read(16))
    except (struct.error, OverflowError):
        return ImageHeader(_media_type(magic))


def _plain(head: bytes) -> ImageHeader | None:
    """Formats that tell their size where they begin."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ImageHeader("image/gif", *struct.unpack_from("<HH", head, 6))
    if head.startswith(b"BM") and len(head) >= _BMP_BYTES:
        width, height = struct.unpack_from("<ii", head, 18)
        return ImageHeader("image/bmp", width, abs(height))  # below 0: the first row is the topmost
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ImageHeader("image/webp", *_webp_size(head))
    return None


def _webp_size(head: bytes) -> tuple[int | None, int | None]:
    match head[12:16]:
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None, None


def _media_type(magic: bytes) -> str:
    known = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"GI": "gif", b"RI": "webp"}
    return f"image/{known.get(magic[:2], 'tiff')}"


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
