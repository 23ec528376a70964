"""Decode one tile or strip of a TIFF, strictly: what is damaged, cut short or of another size than the header says is refused.

Codecs that trust a size in their own data are asked for that size first: they take the memory for it.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pyvips

from pipelines.errors import UnreadableImageError
from pipelines.imaging import picture_loader as _only_some_loaders  # noqa: F401  # blocks those that were not made for this

Samples = npt.NDArray[Any]
JPEG = 7
APERIO_YCBCR, APERIO_RGB, JPEG_2000, WEBP, LERC = 33003, 33005, 34712, 50001, 34887
_JPEG_XL = (50002, 52546)
_JPEG_2000 = frozenset({APERIO_YCBCR, APERIO_RGB, JPEG_2000})
CODECS = {
    1: "none", 5: "LZW", JPEG: "JPEG", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 34925: "LZMA", 50000: "Zstandard",
    APERIO_YCBCR: "JPEG 2000", APERIO_RGB: "JPEG 2000", JPEG_2000: "JPEG 2000", WEBP: "WebP", LERC: "LERC",
    50002: "JPEG XL", 52546: "JPEG XL", 2: "CCITT", 3: "CCITT", 4: "CCITT",
}  # fmt: skip
COLOUR_CODECS = frozenset({JPEG, APERIO_YCBCR, APERIO_RGB, JPEG_2000, WEBP, *_JPEG_XL})
"""Those that know colours themselves."""
MAX_SCANS = 100
SLACK_BYTES = 64 * 1024
_START_OF_SCAN = 0xDA
_FRAME_HEADS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_IS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x80\x00\x00\x00\x00"  # APP14: the transform is none
_LERC_PARAMETERS = 50674
_LERC_HEAD = b"Lerc2 "


def is_lossy_codec(codec: int) -> bool:
    """Whether pixels of this codec are of a lossy kind, as JPEG's are; others may be exact and are kept so."""
    return codec in (JPEG, APERIO_YCBCR, APERIO_RGB)


def decode_segment(page: Any, body: bytes, index: int, samples: int, *, is_rgb: bool) -> Samples:
    """One stored tile or strip as (rows, columns, samples), with its padding.

    Args:
        page: tells how it is stored.
        body: its bytes.
        index: its number in the page.
        samples: how many it must have.
        is_rgb: whether JPEG holds red, green and blue.

    Raises:
        UnreadableImageError: it is damaged, cut short, or of another size or kind than the header says.
    """
    codec = int(page.compression)
    if codec == JPEG:
        found = _decode_jpeg(page, body, index, samples, is_rgb=is_rgb)
    else:
        claimed = _CLAIMS.get(codec, _no_claim)(body)
        if claimed is not None and (claimed[0] > _down(page) or claimed[1] > _across(page)):
            raise UnreadableImageError(f"tile {index} claims another size than the header says")
        found = _decode_other(page, body, index, codec)
    if found.ndim != 3 or found.shape[2] != samples:
        raise UnreadableImageError(f"tile {index} has {found.shape[-1]} channels where the header says {samples}")
    if page.dtype == np.bool_ and found.dtype == np.uint8:  # fax codecs give bytes
        found = found != 0
    if found.dtype != page.dtype:
        raise UnreadableImageError(f"tile {index} has {found.dtype} samples where the header says {page.dtype}")
    return found


def _across(page: Any) -> int:
    return int(page.tilewidth if page.is_tiled else page.imagewidth)


def _down(page: Any) -> int:
    return int(page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength))


def _decode_other(page: Any, body: bytes, index: int, codec: int) -> Samples:
    if codec == LERC:
        return _decode_lerc(page, body)
    if codec == APERIO_YCBCR:
        return _ycbcr_to_rgb(np.asarray(imagecodecs.jpeg2k_decode(body)))
    pixels, _place, _ = page.decode(body, index)
    found: Samples = np.asarray(pixels)[0]
    return found


def _ycbcr_to_rgb(pixels: Samples) -> Samples:
    """Aperio's JPEG 2000 of kind 33003 holds YCbCr of full range, which nothing in its data says."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UnreadableImageError("JPEG 2000 of kind 33003 without three channels of 8 bits")
    y, blue, red = (pixels[..., k].astype(np.float32) for k in range(3))
    blue, red = blue - 128, red - 128
    turned = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return np.asarray(np.clip(np.rint(turned), 0, 255), np.uint8)


def _decode_lerc(page: Any, body: bytes) -> Samples:
    """LERC, also within Deflate or Zstandard; pixels that its own mask leaves out are NaN in floats, as GDAL has them."""
    kind = (page.tags.valueof(_LERC_PARAMETERS) or (0, 0))[1]
    most = _down(page) * _across(page) * int(page.samplesperpixel) * page.dtype.itemsize * 2 + SLACK_BYTES
    if kind == 1:
        body = zlib.decompressobj().decompress(body, most)
    elif kind == 2:
        body = bytes(imagecodecs.zstd_decode(body, out=most))
    size = _lerc_size(body)
    if size is None or size[0] > _down(page) or size[1] > _across(page):
        raise UnreadableImageError("a LERC tile claims another size than the header says")
    both: tuple[Any, Any] = imagecodecs.lerc_decode(body, masks=True)
    found = np.asarray(both[0])
    if both[1] is not None and np.issubdtype(found.dtype, np.floating):
        valid = np.asarray(both[1], bool)
        found = np.where(valid[..., None] if valid.ndim < found.ndim else valid, found, np.nan).astype(found.dtype)
    return found if found.ndim == 3 else found[..., None]


def _decode_jpeg(page: Any, body: bytes, index: int, samples: int, *, is_rgb: bool) -> Samples:
    """Decode strictly: data that is cut short or damaged is only a warning to most decoders, and comes out gray."""
    scans = body.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise UnreadableImageError(f"tile {index} has {scans} scans, above {MAX_SCANS}")
    claimed = jpeg_size(body)
    if claimed is None or claimed[0] > _down(page) or claimed[1] > _across(page):
        raise UnreadableImageError(f"tile {index} claims another size than the header says")
    if not body.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise UnreadableImageError(f"tile {index}: pixels cannot be decoded: its JPEG data has no end")
    picture = jpeg_picture(page, body, is_rgb=is_rgb and samples == 3)
    strict = pyvips.Image.jpegload_buffer(picture, fail_on="warning")
    found: Samples = np.ndarray((strict.height, strict.width, strict.bands), np.uint8, strict.write_to_memory())
    if samples > 3 or (
        is_rgb and not _is_bare(page, body)
    ):  # what the tile says of its colours may be wrong, and the header is right
        pixels, _, _ = page.decode(body, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        found = np.asarray(pixels)[0]
    return found


def _is_bare(page: Any, body: bytes) -> bool:
    """Whether nothing in the data of a tile says what its colours are."""
    return b"JFIF" not in body[:64] and b"Adobe" not in body[:64] and b"Adobe" not in (page.jpegtables or b"")


def jpeg_picture(page: Any, body: bytes, *, is_rgb: bool) -> bytes:
    """A JPEG tile as a picture of its own: with the tables of its page, and a marker of colours that nothing else tells."""
    marker = _IS_RGB if is_rgb and int(page.samplesperpixel) == 3 and _is_bare(page, body) else b""
    return body[:2] + marker + (page.jpegtables or b"")[2:-2] + body[2:]


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """The frame header of a JPEG."""

    marker: int
    bits: int
    height: int
    width: int


def jpeg_size(body: bytes) -> tuple[int, int] | None:
    """Height and width in the frame header; None where there is none before the picture's data begins."""
    frame = jpeg_frame(body)
    return None if frame is None else (frame.height, frame.width)


def jpeg_frame(body: bytes) -> JpegFrame | None:
    """The frame header; None where there is none before the picture's data begins."""
    at = 2
    while at + 4 <= len(body) and body[at] == 0xFF:
        marker = body[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            return None
        if marker in _FRAME_HEADS:
            head = body[at + 4 : at + 9]
            sizes = (int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:], "big"))
            return JpegFrame(marker, head[0], *sizes) if len(head) == 5 else None
        at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return None


def jp2_size(body: bytes) -> tuple[int, int] | None:
    """Height and width of JPEG 2000 data, in a box or bare; None where there is no size."""
    at = body.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 24 > len(body):
        return None
    right, lower, left, top = struct.unpack_from(">4I", body, at + 8)
    return lower - top, right - left


def webp_size(body: bytes) -> tuple[int, int] | None:
    """Height and width of WebP data; None where there is no size."""
    kind, data = body[12:16], body[20:30]
    if len(data) < 10:
        return None
    if kind == b"VP8 ":
        return int.from_bytes(data[8:10], "little") & 0x3FFF, int.from_bytes(data[6:8], "little") & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(data[7:10], "little") + 1, int.from_bytes(data[4:7], "little") + 1
    return None


def _lerc_size(body: bytes) -> tuple[int, int] | None:
    """Height and width of LERC 2 data; version 1 is not read."""
    if body[:6] != _LERC_HEAD or len(body) < 24:
        return None
    version = struct.unpack_from("<i", body, 6)[0]
    rows, columns = struct.unpack_from("<2i", body, 14 if version >= 3 else 10)
    return (rows, columns) if rows > 0 and columns > 0 else None


def _no_claim(_body: bytes) -> tuple[int, int] | None:
    return None


def _needed(read: Callable[[bytes], tuple[int, int] | None]) -> Callable[[bytes], tuple[int, int]]:
    """A size that must be there."""

    def claim(body: bytes) -> tuple[int, int]:
        found = read(body)
        if found is None:
            raise UnreadableImageError("pixels cannot be decoded: its data has no size")
        return found

    return claim


_CLAIMS: dict[int, Callable[[bytes], tuple[int, int] | None]] = {
    **dict.fromkeys(_JPEG_2000, _needed(jp2_size)),
    WEBP: _needed(webp_size),
}
