"""Whole pictures as slides: PNG, JPEG and WebP read from top to bottom, JPEG 2000, JPEG XL and AVIF decoded at once.

A picture has no tiles. It is dealt out as strips of full width, so that chips are cut as from a striped TIFF.
"""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pyvips

from pipelines.errors import UnreadableImageError
from pipelines.imaging import picture_loader as _only_some_loaders  # noqa: F401  # blocks those that were not made for this
from pipelines.imaging.codecs import MAX_SCANS, Samples, jp2_size
from pipelines.imaging.facts import Colours, ImageFacts, ImageScale, nearest_level
from pipelines.imaging.header import Source
from pipelines.imaging.place import resolution_mpp
from pipelines.imaging.tiling import TileGrid
from schemas.contract import ChipSpec

MAX_FILE_BYTES = 512 * 1024 * 1024
MAX_WHOLE_BYTES = 512 * 1024 * 1024
_STRIP_BYTES = 4 * 1024 * 1024
_COLOURS = {"b-w": Colours.GRAY, "grey16": Colours.GRAY, "srgb": Colours.RGB, "rgb16": Colours.RGB}
_DTYPES = {"uchar": "uint8", "ushort": "uint16"}
_SEQUENTIAL = {"jpeg": "warning", "png": "error", "webp": "error"}  # libpng warns of colour profiles that are in wide use
_MILLIMETRE = "mm"


class PictureLevel:
    """A picture whose strips are decoded in rising order, or that is decoded already. It has one plane, and no mask."""

    is_sequential = True
    mask = None

    def __init__(self, facts: ImageFacts, read: Callable[[int, int], Samples]) -> None:
        """Keep `read`, which gives rows from `top` on, so many as `rows`."""
        row_bytes = facts.width * facts.channels * np.dtype(facts.dtype).itemsize
        self.facts = facts
        self.tiles = TileGrid(facts.width, facts.height, facts.width, min(facts.height, max(16, _STRIP_BYTES // row_bytes)))
        self._read = read

    def decode(self, tile: int, _plane: int = 0) -> Samples:
        """One strip as (rows, columns, channels).

        Raises:
            UnreadableImageError: it is damaged or cut short.
        """
        box = self.tiles.box(tile)
        try:
            return self._read(box.y, box.height)
        except pyvips.Error as error:
            reason = " ".join(str(error).split())[:200]
            raise UnreadableImageError(f"rows from {box.y}: pixels cannot be decoded: {reason}") from error


def picture_kind(head: bytes) -> str:
    """The kind of a picture that begins with these bytes; empty for a TIFF and for everything that is none."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return "avif" if head[8:12] in (b"avif", b"avis") else "heic" if head[8:12] in (b"heic", b"heix", b"mif1") else ""
    return next((kind for magic, kind in _HEADS if head.startswith(magic)), "")


_HEADS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jxl"),
    (b"\xff\x0a", "jxl"),
    (b"GIF8", "gif"),
)


def open_picture(kind: str, source: Source, spec: ChipSpec, max_pixels: int) -> PictureLevel:
    """Open a picture of a kind that `picture_kind` named.

    Raises:
        UnreadableImageError: it is not cut, is damaged, or above a limit.
    """
    if spec.level:
        raise UnreadableImageError(f"no level {spec.level}; a {kind.upper()} has one")
    if source.length > MAX_FILE_BYTES:
        raise UnreadableImageError(
            f"a {kind.upper()} of {source.length} bytes, above {MAX_FILE_BYTES}; convert it to a tiled TIFF"
        )
    body = source.read(0, source.length)
    if kind in _SEQUENTIAL or kind in _WHOLE:
        picture = (_sequential if kind in _SEQUENTIAL else _whole)(kind, body, max_pixels)
        if spec.factor or spec.mpp:
            nearest_level(picture.facts.scaling, [picture.facts.width], spec.factor, spec.mpp)
        return picture
    raise UnreadableImageError(f"a picture of the kind {kind}, which is not cut; convert it to PNG or a tiled TIFF")


def _sequential(kind: str, body: bytes, max_pixels: int) -> PictureLevel:
    if kind == "jpeg" and body.count(b"\xff\xda") > MAX_SCANS:
        raise UnreadableImageError(f"a JPEG of more than {MAX_SCANS} scans")
    load = getattr(pyvips.Image, f"{kind}load_buffer")
    image: Any = load(body, access="sequential", fail_on=_SEQUENTIAL[kind])
    colours, dtype = _COLOURS.get(str(image.interpretation)), _DTYPES.get(str(image.format))
    extra = image.bands - (3 if colours is Colours.RGB else 1)
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    if colours is None or dtype is None or extra not in (0, 1):
        raise UnreadableImageError(
            f"{image.bands} channels of {image.interpretation}; gray and RGB, with or without alpha, are cut"
        )
    if pages > 1:
        raise UnreadableImageError(f"an animation of {pages} pictures; only single ones are cut")
    facts = ImageFacts(
        image.width, image.height, image.bands, dtype, colours,
        lossy=kind == "jpeg", has_alpha=bool(extra), scaling=_scaling(image), notes=_notes(image),
        icc=bytes(image.get("icc-profile-data")) if image.get_typeof("icc-profile-data") else b"",
        orientation=image.get("orientation") if image.get_typeof("orientation") else 1,
    )  # fmt: skip
    _check_size(facts, max_pixels)
    region = pyvips.Region.new(image)

    def read(top: int, rows: int) -> Samples:
        pixels = region.fetch(0, top, facts.width, rows)
        return np.ndarray((rows, facts.width, facts.channels), facts.dtype, pixels)

    return PictureLevel(facts, read)


def _notes(image: Any) -> str:
    """What libvips makes of pixels of few bits: palettes become RGB, gray covers black to white."""
    if image.get_typeof("palette"):
        return "palette expanded to RGB"
    bits = image.get("bits-per-sample") if image.get_typeof("bits-per-sample") else 8
    return f"gray of {bits} bits scaled to 8" if bits < 8 else ""


def _scaling(image: Any) -> ImageScale:
    mpp = resolution_mpp((image.xres, 1), (image.yres, 1), _MILLIMETRE)
    return ImageScale(image.width, image.height, *(mpp or (None, None)))


def _whole(kind: str, body: bytes, max_pixels: int) -> PictureLevel:
    """Decode at once; a size that the data claim is checked first, where it can be read without a decoder."""
    claimed = _SIZES[kind](body)
    if claimed is not None and claimed[0] * claimed[1] > min(max_pixels, MAX_WHOLE_BYTES):
        raise UnreadableImageError(
            f"a {kind.upper()} of {claimed[1]} x {claimed[0]} px, above {min(max_pixels, MAX_WHOLE_BYTES)}"
        )
    pixels = np.asarray(_WHOLE[kind](body))
    whole = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.ndim not in (2, 3) or whole.shape[2] > 4 or str(whole.dtype) not in _DTYPES.values():
        raise UnreadableImageError(
            f"a {kind.upper()} of shape {pixels.shape} ({pixels.dtype}); gray and RGB of 8 or 16 bits are cut"
        )
    channels = whole.shape[2]
    facts = ImageFacts(
        whole.shape[1], whole.shape[0], channels, str(whole.dtype), Colours.RGB if channels > 2 else Colours.GRAY,
        has_alpha=channels in (2, 4), scaling=ImageScale(whole.shape[1], whole.shape[0]),
    )  # fmt: skip
    _check_size(facts, max_pixels)
    return PictureLevel(facts, lambda top, rows: whole[top : top + rows])


def _avif_size(body: bytes) -> tuple[int, int]:
    """Height and width of the largest picture in an AVIF."""
    sizes = []
    at = body.find(b"ispe")
    while at >= 0 and at + 16 <= len(body):
        sizes.append((int.from_bytes(body[at + 12 : at + 16], "big"), int.from_bytes(body[at + 8 : at + 12], "big")))
        at = body.find(b"ispe", at + 4)
    if not sizes:
        raise UnreadableImageError("an AVIF without a size")
    return max(sizes)


def _no_size(_body: bytes) -> None:
    """The size of JPEG XL is told by its decoder; what it takes is limited by the process."""


_WHOLE: dict[str, Callable[[bytes], Any]] = {
    "jp2": imagecodecs.jpeg2k_decode,
    "jxl": imagecodecs.jpegxl_decode,
    "avif": imagecodecs.avif_decode,
}
_SIZES: dict[str, Callable[[bytes], tuple[int, int] | None]] = {"jp2": jp2_size, "jxl": _no_size, "avif": _avif_size}


def _check_size(facts: ImageFacts, max_pixels: int) -> None:
    if facts.width * facts.height > max_pixels:
        raise UnreadableImageError(f"{facts.width} x {facts.height} px is above the limit of {max_pixels} pixels")
