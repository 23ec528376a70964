"""Cut a band of pixels into chips: arrays, how much of each is background, and encoded pictures."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt

from pipelines.imaging.reader import Pixels
from pipelines.imaging.tiling import Band, Grid

NEAR_WHITE = 235
NEAR_BLACK = 20
_JPEG_QUALITY = 90
_PNG_LEVEL = 3
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chips:
    """The chips of a band: pixels (n, size, size, channels), background shares (n), encoded pictures (n)."""

    first_index: int
    pixels: Pixels
    background: Floats
    encoded: tuple[bytes, ...]


def media_type(lossy: bool) -> str:
    """Pixels that went through a lossy codec become JPEG; exact ones stay exact, as PNG."""
    return "image/jpeg" if lossy else "image/png"


def cut_band(rows: Pixels, grid: Grid, band: Band, lossy: bool, threads: int = 0) -> Chips:
    """Cut a band's rows into its chips.

    Args:
        rows: image rows `band.y_low` to `band.y_high`, as (rows, width, channels).
        grid: where the chips lie.
        band: which of them.
        lossy: whether the pixels were lossy before.
        threads: for encoding; 0 for as many as there are cores, at most 4.
    """
    low, high = band.row_low * grid.columns, band.row_high * grid.columns
    pixels: Pixels = np.zeros((high - low, grid.size, grid.size, rows.shape[2]), np.uint8)
    background = np.zeros(high - low, np.float32)

    def one(index: int) -> bytes:
        """Everything that is done to one chip, while it lies in the processor's cache."""
        window, at = grid.window(index), index - low
        top = window.y - band.y_low
        pixels[at, : window.height, : window.width] = rows[top : top + window.height, window.x : window.x + window.width]
        background[at] = background_share(pixels[at, : window.height, : window.width])
        return _jpeg(pixels[at]) if lossy else _png(pixels[at])

    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        encoded = tuple(pool.map(one, range(low, high)))
    return Chips(low, pixels, background, encoded)


def background_share(pixels: Pixels) -> float:
    """The share of pixels whose channels are all near white, or all near black; every second pixel each way is looked at."""
    looked_at = pixels[::2, ::2]
    white, black = looked_at >= NEAR_WHITE, looked_at <= NEAR_BLACK
    all_white, all_black = white[..., 0], black[..., 0]
    for channel in range(1, pixels.shape[2]):  # a reduction over so short an axis takes five times as long
        all_white, all_black = all_white & white[..., channel], all_black & black[..., channel]
    plain = int(np.count_nonzero(all_white | all_black))
    return plain / all_white.size


def _jpeg(chip: Pixels) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(_squeezed(chip), level=_JPEG_QUALITY, subsampling="444"))


def _png(chip: Pixels) -> bytes:
    return bytes(imagecodecs.png_encode(_squeezed(chip), level=_PNG_LEVEL))


def _squeezed(chip: Pixels) -> Pixels:
    return chip[:, :, 0] if chip.shape[2] == 1 else chip
