"""A chip as a picture that any tool opens: JPEG of lossy sources, PNG of exact gray and RGB, TIFF of everything else."""

import io
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import tifffile

from pipelines.errors import UnreadableImageError
from pipelines.imaging.codecs import Samples
from pipelines.imaging.facts import Colours, ImageFacts
from schemas.contract import ChipCodec

JPEG, PNG, TIFF, JP2 = "image/jpeg", "image/png", "image/tiff", "image/jp2"
_PNG_LEVEL = 3
_TIFF_LEVEL = 1
_PNG_HEAD_END = 33
_COLOUR_TYPE_AT = 25
_PALETTE_TYPE = 3
_PNG_COLOURS = frozenset({Colours.GRAY, Colours.RGB})
_EXACT_SAMPLES = frozenset({"uint8", "uint16"})
_PREDICTED = 2


def media_type(facts: ImageFacts, codec: ChipCodec = ChipCodec.AUTO) -> str:
    """The media type of a chip by a codec.

    By `auto`, pixels that went through a lossy codec become JPEG; exact ones stay exact, as PNG where it can hold them, or TIFF.

    Raises:
        UnreadableImageError: this codec cannot hold such pixels.
    """
    is_plain = facts.colours in _PNG_COLOURS
    can_be_jpeg = is_plain and facts.dtype == "uint8" and not facts.has_alpha
    can_be_png = facts.colours is Colours.PALETTE or (is_plain and facts.dtype in _EXACT_SAMPLES)
    if (codec is ChipCodec.JPEG and not can_be_jpeg) or (codec is ChipCodec.PNG and not can_be_png):
        raise UnreadableImageError(f"{facts.channels} channels ({facts.colours}, {facts.dtype}) cannot become {codec}; use auto")
    if codec is ChipCodec.JPEG or (codec is ChipCodec.AUTO and facts.lossy and can_be_jpeg):
        return JPEG
    return PNG if can_be_png and codec is not ChipCodec.TIFF else TIFF


def encoder(facts: ImageFacts, codec: ChipCodec = ChipCodec.AUTO, quality: int = 90) -> Callable[[Samples], bytes]:
    """What turns a chip (rows, columns, channels) into the bytes of a picture of `media_type(facts, codec)`."""
    kind = media_type(facts, codec)
    if kind == JPEG:
        return lambda chip: bytes(imagecodecs.jpeg8_encode(_squeezed(chip), level=quality, subsampling="444"))
    if facts.colours is Colours.PALETTE and kind == PNG:
        return lambda chip: _with_palette(_png(chip), facts.palette)
    return _png if kind == PNG else lambda chip: _tiff(chip, facts)


def mask_png(valid: Samples) -> bytes:
    """Which pixels hold something, as a gray PNG: 255 where they do, 0 where not."""
    return bytes(imagecodecs.png_encode(np.multiply(valid, 255, dtype=np.uint8), level=_PNG_LEVEL))


def _png(chip: Samples) -> bytes:
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(_squeezed(chip)), level=_PNG_LEVEL))


def _with_palette(png: bytes, palette: bytes) -> bytes:
    """A gray PNG of indices, with the colour table that they point into; the indices are the same."""
    head = bytearray(png[:_PNG_HEAD_END])
    head[_COLOUR_TYPE_AT] = _PALETTE_TYPE
    head[-4:] = struct.pack(">I", zlib.crc32(bytes(head[12:-4])))
    table = b"PLTE" + palette
    return bytes(head) + struct.pack(">I", len(palette)) + table + struct.pack(">I", zlib.crc32(table)) + png[_PNG_HEAD_END:]


def _tiff(chip: Samples, facts: ImageFacts) -> bytes:
    buffer = io.BytesIO()
    is_cmyk = facts.colours is Colours.CMYK
    tifffile.imwrite(
        buffer,
        _squeezed(chip),
        photometric="separated" if is_cmyk else "rgb" if facts.colours is Colours.RGB else "minisblack",
        planarconfig="contig" if chip.shape[2] > 1 else None,
        compression="zlib",
        compressionargs={"level": _TIFF_LEVEL},
        predictor=_PREDICTED if np.issubdtype(chip.dtype, np.integer) else None,
        extrasamples=["unassalpha"] if facts.has_alpha and facts.colours is Colours.RGB else None,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


def _squeezed(chip: Samples) -> Samples:
    return chip[:, :, 0] if chip.shape[2] == 1 else chip
