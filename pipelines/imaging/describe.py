"""What a TIFF's tags say of the image that is cut: samples, colours, what is nothing, scale and place; or why it is not cut."""

import math
from typing import Any

import numpy as np

from pipelines.errors import UnreadableImageError
from pipelines.imaging.choice import Choice
from pipelines.imaging.codecs import CODECS, COLOUR_CODECS, JPEG, is_lossy_codec
from pipelines.imaging.facts import Colours, ImageFacts, ImageScale
from pipelines.imaging.place import aperio_mpp, georeference, ome_mpp, resolution_mpp

_DTYPES = frozenset({"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"})
_WHITE_IS_ZERO, _GRAY, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {
    _WHITE_IS_ZERO: Colours.GRAY, _GRAY: Colours.GRAY, _RGB: Colours.RGB, _PALETTE: Colours.PALETTE, _SEPARATED: Colours.CMYK,
    _YCBCR: Colours.RGB,
}  # fmt: skip
_PLAIN_SAMPLES = {Colours.GRAY: 1, Colours.RGB: 3, Colours.PALETTE: 1, Colours.CMYK: 4}
_ALPHA = frozenset({1, 2})
_GDAL_NODATA, _COLOUR_MAP, _ORIENTATION = 42113, 320, 274
_BYTE = 255
_MAX_CHANNELS = 512
_SMALL_BITS = frozenset({1, 2, 4, 8})


def image_facts(tiff: Any, choice: Choice, max_pixels: int) -> ImageFacts:
    """What is to be known of an image before it is decoded.

    Raises:
        UnreadableImageError: it would not fit, or its pixels would not come out right.
    """
    page, width, height = choice.page, int(choice.page.imagewidth), int(choice.page.imagelength)
    channels = _channels(choice)
    _check(page, width, height, channels, max_pixels, len(choice.planes))
    colours, has_alpha = _colours(page, channels)
    bits, photometric = int(page.bitspersample), int(page.photometric)
    dtype = "uint8" if str(page.dtype) == "bool" else str(page.dtype)
    scale = _BYTE // (2**bits - 1) if bits < 8 and colours is Colours.GRAY else 1
    inverted = _inverted_from(photometric, dtype)
    nodata = _nodata(choice.full_page, dtype)
    missing = nodata if nodata is not None else (_BYTE if tiff.is_svs else 0)

    def turn(value: float) -> float:
        return inverted - value * scale if inverted else value * scale

    return ImageFacts(
        width=width,
        height=height,
        channels=channels,
        dtype=dtype,
        colours=colours,
        lossy=is_lossy_codec(int(page.compression)),
        has_alpha=has_alpha,
        fill=turn(missing),
        nodata=None if nodata is None else turn(nodata),
        scale=scale,
        is_inverted=bool(inverted),
        is_rgb=photometric == _RGB,
        palette=_palette(page) if colours is Colours.PALETTE else b"",
        planes=choice.planes,
        channel_names=_channel_names(tiff, channels),
        scaling=scaling_of(tiff, choice),
        icc=bytes(choice.full_page.iccprofile or b""),
        orientation=int(choice.full_page.tags.valueof(_ORIENTATION, 1) or 1),
        left_out=choice.left_out,
        level=choice.level,
    )


def _channels(choice: Choice) -> int:
    page = choice.page
    each = 1 if int(page.planarconfig) != 1 and int(page.samplesperpixel) > 1 else int(page.samplesperpixel)
    counts = {len(layers) for layers in choice.layers}
    if len(counts) != 1:
        raise UnreadableImageError("its planes have different numbers of channels")
    return each * counts.pop()


def _check(page: Any, width: int, height: int, channels: int, max_pixels: int, planes: int) -> None:
    """Refuse by name what is not cut."""
    photometric, bits, codec, dtype = int(page.photometric), page.bitspersample, int(page.compression), str(page.dtype)
    pixels = width * height * planes
    is_small = isinstance(bits, int) and bits < 8
    has_good_bits = dtype in _DTYPES and isinstance(bits, int) and (not is_small or (channels == 1 and bits in _SMALL_BITS))
    whole = f"{width} x {height} px" + (f" in {planes} planes" if planes > 1 else "")
    checks: tuple[tuple[bool, str], ...] = (
        (width < 1 or height < 1, f"{width} x {height} px is no image"),
        (pixels > max_pixels, f"{whole} is above the limit of {max_pixels} pixels"),
        (not has_good_bits, f"{bits}-bit samples ({page.dtype}); 8 to 64 bits and gray of 1, 2 and 4 are cut"),
        (not 1 <= channels <= _MAX_CHANNELS, f"{channels} channels; 1 to {_MAX_CHANNELS} are cut"),
        (codec not in CODECS, f"compressed as {page.compression!s}; {', '.join(sorted(set(CODECS.values())))} are cut"),
        (codec == JPEG and bits != 8, f"JPEG of {bits} bits; JPEG of 8 bits is cut"),
        (photometric not in _COLOURS, f"colours are {page.photometric!s}; gray, RGB, YCbCr, palettes and CMYK are cut"),
        (photometric == _YCBCR and codec not in COLOUR_CODECS, f"YCbCr compressed as {page.compression!s}; YCbCr in JPEG is cut"),
        (photometric == _SEPARATED and codec in COLOUR_CODECS, f"CMYK compressed as {page.compression!s}; exact CMYK is cut"),
        (photometric == _PALETTE and (channels > 1 or dtype not in ("bool", "uint8")), "a palette of more than 256 colours"),
        (photometric == _WHITE_IS_ZERO and not np.issubdtype(page.dtype, np.unsignedinteger) and dtype != "bool",
         f"white is zero in {dtype} samples"),
        (int(page.imagedepth) != 1 or len(page.chunks) not in (2, 3, 4), "a volume; only flat images are cut"),
    )  # fmt: skip
    for is_wrong, reason in checks:
        if is_wrong:
            raise UnreadableImageError(reason)


def _colours(page: Any, channels: int) -> tuple[Colours, bool]:
    colours, extra = _COLOURS[int(page.photometric)], tuple(int(one) for one in page.extrasamples or ())
    if channels == _PLAIN_SAMPLES[colours]:
        return colours, False
    is_one_page = channels == int(page.samplesperpixel)
    has_alpha = is_one_page and len(extra) == 1 and extra[0] in _ALPHA and channels == _PLAIN_SAMPLES[colours] + 1
    return (colours if has_alpha and colours is not Colours.CMYK else Colours.BANDS), has_alpha


def _inverted_from(photometric: int, dtype: str) -> int:
    """The largest value, from which each is subtracted where white is zero; 0 where black is."""
    return int(np.iinfo(dtype).max) if photometric == _WHITE_IS_ZERO else 0


def _nodata(page: Any, dtype: str) -> float | None:
    """The value that GDAL's tag names, if samples of this type can have it."""
    text = page.tags.valueof(_GDAL_NODATA)
    try:
        value = float(str(text).strip(" \0")) if text is not None else None
    except ValueError:
        return None
    if value is None or np.issubdtype(dtype, np.floating):
        return value
    limits = np.iinfo(dtype)
    is_possible = math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
    return int(value) if is_possible else None


def _palette(page: Any) -> bytes:
    """Red, green, blue of each index. The tag has 16 bits a colour, but some programs fill 8 of them."""
    table = np.asarray(page.tags.valueof(_COLOUR_MAP, ()), np.uint32).ravel()
    if len(table) != 3 * 2 ** int(page.bitspersample):
        raise UnreadableImageError(f"a palette of {len(table)} values for {page.bitspersample} bits")
    eight = table >> 8 if table.max() > _BYTE else table
    return eight.reshape(3, -1).T.astype(np.uint8).tobytes()


def _channel_names(tiff: Any, channels: int) -> tuple[str, ...]:
    """Names of the channels in an OME-TIFF, if there is one for each."""
    if not tiff.is_ome:
        return ()
    from tifffile import xml2dict  # noqa: PLC0415  # only where there is such a text

    found = xml2dict(tiff.ome_metadata).get("OME", {}).get("Image", {})
    image = found[0] if isinstance(found, list) else found
    stated = image.get("Pixels", {}).get("Channel", [])
    names = tuple(str(one.get("Name", "")) for one in (stated if isinstance(stated, list) else [stated]))
    return names if len(names) == channels and all(names) else ()


def scaling_of(tiff: Any, choice: Choice) -> ImageScale:
    """The scale and place of the full image."""
    page = choice.full_page
    values = {int(tag.code): tag.value for tag in page.tags if int(tag.code) in _PLACE_TAGS}
    transform, crs = georeference(values)
    mpp_x, mpp_y = (None if transform else _mpp(tiff, page)) or (None, None)
    return ImageScale(int(page.imagewidth), int(page.imagelength), mpp_x, mpp_y, transform, crs)


_PLACE_TAGS = frozenset({33550, 33922, 34264, 34735, 34736, 34737})


def _mpp(tiff: Any, page: Any) -> tuple[float, float] | None:
    if tiff.is_svs:
        return aperio_mpp(str(page.description))
    if tiff.is_ome:
        return ome_mpp(str(tiff.ome_metadata))
    unit: object = int(page.tags.valueof(296, 2))
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit", ""))
    return resolution_mpp(page.tags.valueof(282), page.tags.valueof(283), unit)
