"""A microscope slide of some hundred megapixels, drawn in a second or two: a pyramid of JPEG tiles in a TIFF.

A dozen tiles of tissue and glass are drawn and encoded once; the slide is laid out of their bytes, as a scanner's file lies
on the disk. The same seed gives the same pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from pipelines.demo.site import MPP

Pixels = NDArray[np.uint8]

TILE = 512
ACROSS, DOWN = 32, 24
SMALLER = 8
_KINDS = 12
_QUALITY = 75
_GLASS, _PINK, _PURPLE = (241, 240, 243), (208, 118, 168), (122, 64, 150)


def write_slide(path: Path, seed: int) -> None:
    """Write a slide of 16,384 x 12,288 px, and a level of an eighth of its sides.

    Args:
        path: a new file.
        seed: decides what is on the slide.
    """
    rng = np.random.default_rng((seed, 3))
    drawn = [_tile(rng, density) for density in np.linspace(0.0, 1.0, _KINDS)]
    layout = _layout(rng)
    with tifffile.TiffWriter(path, ome=True) as tiff:
        scale = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
        tiff.write(_encoded(drawn, layout), shape=(DOWN * TILE, ACROSS * TILE, 3), subifds=1, metadata=scale, **_options())
        side = TILE // SMALLER
        small = [pixels.reshape(side, SMALLER, side, SMALLER, 3).mean(axis=(1, 3)).astype(np.uint8) for pixels in drawn]
        rows = [np.hstack([small[kind] for kind in row]) for row in layout.tolist()]
        level = np.vstack(rows)
        corners = ((y, x) for y in range(0, len(level), TILE) for x in range(0, level.shape[1], TILE))
        tiles = (_jpeg(level[y : y + TILE, x : x + TILE]) for y, x in corners)
        tiff.write(tiles, shape=level.shape, subfiletype=1, **_options())


def _options() -> dict[str, Any]:
    return {"dtype": np.uint8, "tile": (TILE, TILE), "photometric": "ycbcr", "subsampling": (1, 1), "compression": "jpeg"}


def _encoded(drawn: list[Pixels], layout: NDArray[np.int64]) -> Iterator[bytes]:
    bodies = [_jpeg(pixels) for pixels in drawn]
    yield from (bodies[kind] for kind in layout.ravel().tolist())


def _jpeg(pixels: Pixels) -> bytes:
    whole = np.full((TILE, TILE, 3), 255, np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return bytes(imagecodecs.jpeg8_encode(whole, level=_QUALITY, subsampling="444"))


def _layout(rng: np.random.Generator) -> NDArray[np.int64]:
    """Which tile lies where: two pieces of tissue on glass, denser towards their middles."""
    y, x = np.mgrid[0:DOWN, 0:ACROSS].astype(float)
    dense = np.zeros((DOWN, ACROSS))
    for middle in (0.3, 0.72):
        centre = (DOWN * rng.uniform(0.4, 0.6), ACROSS * (middle + rng.uniform(-0.04, 0.04)))
        radii = (DOWN * rng.uniform(0.25, 0.38), ACROSS * rng.uniform(0.12, 0.2))
        distance = np.hypot((y - centre[0]) / radii[0], (x - centre[1]) / radii[1])
        dense = np.maximum(dense, np.clip(1.3 - distance, 0, 1))
    dense[dense > 0] = np.clip(dense[dense > 0] + rng.normal(0, 0.12, int((dense > 0).sum())), 0.05, 1)
    return np.rint(dense * (_KINDS - 1)).astype(np.int64)


def _tile(rng: np.random.Generator, density: float) -> Pixels:
    """(TILE, TILE, 3) glass for a density of 0; else pink tissue with purple nuclei, the more the denser."""
    glass, pink, purple = (np.array(colour, np.float32) for colour in (_GLASS, _PINK, _PURPLE))
    if density == 0:
        return np.clip(glass + rng.normal(0, 1.0, (TILE, TILE, 1)), 0, 255).astype(np.uint8)
    cloud = _cloud(rng, 32)[..., None]
    nuclei = _cloud(rng, 8)[..., None] > 0.95 - 0.35 * density
    pixels = glass + (pink - glass) * np.clip(0.4 + density * 0.5 + 0.3 * (cloud - 0.5), 0, 1)
    pixels = np.where(nuclei, purple + 30 * (cloud - 0.5), pixels)
    return np.clip(pixels + rng.normal(0, 2.0, (TILE, TILE, 1)), 0, 255).astype(np.uint8)


def _cloud(rng: np.random.Generator, grain: int) -> NDArray[np.float32]:
    """Random values of 0 to 1 in blobs of about `grain` px."""
    coarse = rng.random((TILE // grain + 2, TILE // grain + 2), np.float32)
    at = np.arange(TILE, dtype=np.float32) / grain
    low, part = at.astype(np.int64), (at % 1)
    rows = coarse[low] * (1 - part[:, None]) + coarse[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part, np.float32)
