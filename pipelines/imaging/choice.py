"""Decide which image of a TIFF is the slide, and of which planes, layers and masks it is made."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import UnreadableImageError
from pipelines.imaging.facts import Plane

MAX_PLANES = 10_000
_MASK, _REDUCED = 4, 1
_MASK_COLOURS = 4
_NO_SLIDE = frozenset({"Label", "Macro", "Thumbnail"})
_SIMILAR = 4
_PIXEL_AXES = "YXS"
_KINDS = frozenset({"generic", "uniform", "shaped", "ome", "imagej", "svs"})  # each tried on files of other programs
_SEPARATE = 2


@dataclass(frozen=True, slots=True)
class Layer:
    """What one decoded segment of a plane fills: the samples of a page, or one sample where they are stored apart.

    Attributes:
        page: the page, or the one that tells how its pixels are stored.
        first: number of its first segment within the page.
        offsets: where segments begin.
        sizes: their stored bytes; 0 for one that is left out.
    """

    page: Any
    first: int
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """The image that is cut, at one level.

    Attributes:
        page: tells how its pixels are stored.
        full_page: the same of level 0.
        planes: what has chips of its own.
        layers: of each plane; their samples together are the channels.
        mask: the page with its internal mask; None without one.
        left_out: the other images of the file.
        levels: width and height of each level.
        level: the number of this one.
    """

    page: Any
    full_page: Any
    planes: tuple[Plane, ...]
    layers: tuple[tuple[Layer, ...], ...]
    mask: Any
    left_out: str
    levels: tuple[tuple[int, int], ...]
    level: int = 0


def choose_image(tiff: Any, level: int) -> Choice:
    """The file's largest image that it does not call a label, thumbnail or reduced one.

    Raises:
        UnreadableImageError: two images may be the slide, it has no such level, or it is of a kind that is not cut.
    """
    pictures = [series for series in tiff.series if not _is_mask(series.keyframe)]
    images = sorted(pictures, key=_rank, reverse=True)
    if not images:
        raise UnreadableImageError("header cannot be read: there is no image in it")
    if _rank(images[0]) == 0:
        raise UnreadableImageError("no image in it, but labels, thumbnails or reduced ones")
    series, others = images[0], images[1:]
    _check_kind(tiff, series)
    if others and _rank(others[0]) * _SIMILAR > _rank(series):
        raise UnreadableImageError(
            f"{1 + len(others)} images, of which two may be the slide: {_named(series)} and {_named(others[0])}; give each a file"
        )
    if level >= len(series.levels):
        raise UnreadableImageError(f"no level {level}; this image has {len(series.levels)}")
    chosen = series.levels[level]
    page = chosen.keyframe
    planes, layers = _stacked(chosen)
    sizes = tuple((int(one.keyframe.imagewidth), int(one.keyframe.imagelength)) for one in series.levels)
    return Choice(page, series.keyframe, planes, layers, _mask_of(tiff, page), "; ".join(map(_named, others)), sizes, level)


def _check_kind(tiff: Any, series: Any) -> None:
    is_foreign = tiff.is_ndpi or tiff.is_philips or tiff.is_scn or tiff.is_bif or tiff.is_qpi
    if is_foreign or series.kind not in _KINDS:
        kinds = ("ndpi", "philips", "scn", "bif", "qpi")
        kind = next((name for name in kinds if getattr(tiff, f"is_{name}")), series.kind)
        raise UnreadableImageError(f"a TIFF of the kind {kind}, which is not cut; convert it to OME-TIFF or a plain pyramid")


def _is_mask(page: Any) -> bool:
    return bool(int(page.subfiletype or 0) & _MASK) or int(page.photometric) == _MASK_COLOURS


def _rank(series: Any) -> int:
    """Pixels of an image; 0 of one that the file itself calls no slide."""
    page = series.keyframe
    is_small = series.name in _NO_SLIDE or int(page.subfiletype or 0) & _REDUCED
    return 0 if is_small else int(page.imagewidth) * int(page.imagelength)


def _named(series: Any) -> str:
    page = series.keyframe
    return f"{series.name or 'image'} of {page.imagewidth} x {page.imagelength} px"


def _mask_of(tiff: Any, page: Any) -> Any:
    masks = [one.keyframe for series in tiff.series if _is_mask(series.keyframe) for one in series.levels]
    size = (int(page.imagewidth), int(page.imagelength))
    found = [mask for mask in masks if (int(mask.imagewidth), int(mask.imagelength)) == size]
    if masks and len(found) != 1:
        raise UnreadableImageError(f"has {len(masks)} transparency masks, of which {len(found)} fit {size[0]} x {size[1]} px")
    return found[0] if found else None


def _stacked(series: Any) -> tuple[tuple[Plane, ...], tuple[tuple[Layer, ...], ...]]:
    """The planes of a series, each with its layers: axis C becomes channels, all other axes but Y, X and S planes."""
    axes = _page_axes(series)
    count = int(np.prod([size for _, size in axes])) if axes else 1
    if count > MAX_PLANES:
        raise UnreadableImageError(f"a stack of {count} planes ({series.axes}), above {MAX_PLANES}")
    pages = _pages(series, count)
    grouped: dict[tuple[int, ...], list[Layer]] = {}
    for page, place in zip(pages, itertools.product(*(range(size) for _, size in axes)), strict=True):
        key = tuple(at for (axis, _), at in zip(axes, place, strict=True) if axis != "C")
        grouped.setdefault(key, []).extend(page)
    names = [axis for axis, _ in axes if axis != "C"]
    planes = (
        Plane(index, *(key[names.index(axis)] if axis in names else None for axis in "ZT")) for index, key in enumerate(grouped)
    )
    return tuple(planes), tuple(tuple(layers) for layers in grouped.values())


def _page_axes(series: Any) -> list[tuple[str, int]]:
    """The axes along which a series has pages, with their sizes; samples that a page holds are none, whatever they are called."""
    axes = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis not in _PIXEL_AXES]
    samples = int(series.keyframe.samplesperpixel)
    if samples > 1 and "S" not in series.axes:
        within = [place for place, (_, size) in enumerate(axes) if size == samples]
        if not within:
            raise UnreadableImageError(f"{samples} samples a pixel, of which its description ({series.axes}) knows nothing")
        del axes[within[-1]]
    return axes


def _pages(series: Any, count: int) -> Iterator[list[Layer]]:
    """The layers of each page of a series, in its order."""
    page = series.keyframe
    if len(series.pages) == 1 and count > 1:
        yield from _unnamed_pages(series, count)
        return
    if len(series.pages) != count:
        raise UnreadableImageError(f"{len(series.pages)} pages where its description ({series.axes}) needs {count}")
    for place in range(count):
        one = series.pages[place]
        if one is None:
            raise UnreadableImageError(f"plane {place} lies in another file, or is missing")
        if one.index != page.index and one.aspage().hash != page.hash:
            raise UnreadableImageError(f"plane {place} is stored in another way than the first")
        yield _layers(page, one.dataoffsets, one.databytecounts)


def _unnamed_pages(series: Any, count: int) -> Iterator[list[Layer]]:
    """ImageJ and tifffile write one header for a whole stack whose planes follow each other, uncompressed."""
    page = series.keyframe
    is_plain = int(page.planarconfig) != _SEPARATE and not page.is_tiled
    if not is_plain or series.dataoffset is None or int(page.compression) != 1 or not page.dataoffsets:
        raise UnreadableImageError(f"{count} planes ({series.axes}) in one page, compressed; write a page for each")
    starts, sizes = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    plane_bytes = int(page.nbytes)
    if int(sizes.sum()) > plane_bytes:  # one strip that holds all planes
        starts, sizes = _strips(page, int(series.dataoffset), plane_bytes)
    for place in range(count):
        yield _layers(page, starts - starts[0] + int(series.dataoffset) + place * plane_bytes, sizes)


def _strips(page: Any, start: int, plane_bytes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    row_bytes = plane_bytes // int(page.imagelength)
    rows = min(int(page.rowsperstrip), int(page.imagelength))
    begins = np.arange(0, plane_bytes, rows * row_bytes, dtype=np.int64)
    return start + begins, np.minimum(rows * row_bytes, plane_bytes - begins)


def _layers(page: Any, offsets: Any, sizes: Any) -> list[Layer]:
    starts, lengths = np.asarray(offsets, np.int64), np.asarray(sizes, np.int64)
    parts = int(page.samplesperpixel) if int(page.planarconfig) == _SEPARATE else 1
    if len(starts) != len(lengths) or len(starts) % parts:
        raise UnreadableImageError(f"{len(starts)} offsets and {len(lengths)} sizes of tiles for {parts} layers")
    each = len(starts) // parts
    return [Layer(page, k * each, starts[k * each : (k + 1) * each], lengths[k * each : (k + 1) * each]) for k in range(parts)]
