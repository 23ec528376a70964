"""Cut a band of chips out of decoded tiles: arrays, how much of each chip is background, and encoded pictures."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt

from pipelines.imaging.reader import Pixels, TiffLevel
from pipelines.imaging.tiling import Band, Grid, last_chip

NEAR_WHITE = 235
NEAR_BLACK = 20
_JPEG_QUALITY = 90
_PNG_LEVEL = 3
_MAX_THREADS = 4
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


class Cutter:
    """Cuts band after band of one level. A tile is decoded once, and kept until the last chip that needs it is cut.

    So it holds about one row of chips of the image, whatever the overlap, and the chips of one band.

    Args:
        level: the image.
        grid: where the chips lie.
        threads: for decoding and encoding; 0 for as many as there are cores, at most 4.
    """

    def __init__(self, level: TiffLevel, grid: Grid, threads: int = 0) -> None:
        self.tiles_decoded = 0
        self.level = level
        self.grid = grid
        self._tiles: dict[int, Pixels] = {}
        self._threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)

    def cut(self, band: Band) -> Chips:
        """The chips of a band. Bands come in rising order; those that are not wanted are left out.

        Raises:
            UnreadableImageError: a tile cannot be decoded.
        """
        grid, size, lossy = self.grid, self.grid.size, self.level.facts.lossy
        self._forget_before(band.first)
        pixels: Pixels = np.zeros((band.end - band.first, size, size, self.level.facts.channels), np.uint8)
        background = np.zeros(len(pixels), np.float32)

        def one(index: int) -> bytes:
            """Everything that is done to one chip, while it lies in the processor's cache."""
            chip, window = pixels[index - band.first], grid.window(index)
            self._fill(chip, index)
            background[index - band.first] = background_share(chip[: window.height, : window.width])
            return _jpeg(chip) if lossy else _png(chip)

        with ThreadPoolExecutor(self._threads) as pool:
            wanted = {tile for index in range(band.first, band.end) for tile in self.level.tiles.under(grid.window(index))}
            missing = sorted(wanted - set(self._tiles))
            for tile, found in zip(missing, pool.map(self.level.decode, missing), strict=True):
                self._tiles[tile] = found
                self.tiles_decoded += 1
            encoded = tuple(pool.map(one, range(band.first, band.end)))
        self._forget_before(band.end)
        return Chips(band.first, pixels, background, encoded)

    def _fill(self, chip: Pixels, index: int) -> None:
        window = self.grid.window(index)
        for tile in self.level.tiles.under(window):
            box, source = self.level.tiles.box(tile), self._tiles[tile]
            left, right = max(window.x, box.x), min(window.x + window.width, box.x + box.width)
            top, bottom = max(window.y, box.y), min(window.y + window.height, box.y + box.height)
            part = source[top - box.y : bottom - box.y, left - box.x : right - box.x]
            chip[top - window.y : bottom - window.y, left - window.x : right - window.x] = part

    def _forget_before(self, chip: int) -> None:
        """Drop the tiles that no chip from `chip` on needs."""
        tiles = self.level.tiles
        for tile in [tile for tile in self._tiles if last_chip(self.grid, tiles.box(tile)) < chip]:
            del self._tiles[tile]


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
