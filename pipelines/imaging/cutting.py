"""Cut a band of chips out of decoded tiles: arrays, how much of each chip holds something, and encoded pictures."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.imaging.codecs import Samples
from pipelines.imaging.encoding import JPEG, encoder, mask_png, media_type
from pipelines.imaging.facts import ImageFacts, with_channels
from pipelines.imaging.passing import pass_through
from pipelines.imaging.reader import ImageLevel
from pipelines.imaging.tiling import Band, Grid, TileWindow, last_chip, last_column
from schemas.contract import ChipSpec

EXACT, REENCODED, PASSED = "exact", "re-encoded", "passed"
_MAX_THREADS = 4
_TRIM_PART = 2
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chips:
    """The chips of a band.

    Attributes:
        first_index: number of the first.
        pixels: (n, size, size, channels).
        valid: share of each that holds something: neither nodata, nor masked, nor wholly transparent.
        masks: which pixels of each the file's mask lets through, as PNG; None where it has no mask.
        encoded: each as a picture.
        media_types: of the pictures.
        methods: how each picture was made: `exact`, `re-encoded`, or `passed`.
    """

    first_index: int
    pixels: Samples
    valid: Floats
    masks: tuple[bytes | None, ...]
    encoded: tuple[bytes, ...]
    media_types: tuple[str, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Cut:
    """What is made of one chip besides its pixels."""

    valid: float
    mask: bytes | None
    encoded: bytes
    media_type: str
    method: str


class _PlaneTiles:
    """The decoded tiles of one plane that chips still need."""

    def __init__(self, level: ImageLevel, grid: Grid, plane: int, channels: Sequence[int] = ()) -> None:
        self._level = level
        self._channels = list(channels)
        self._grid = grid
        self.plane = plane
        self._tiles: dict[int, tuple[int, Samples]] = {}  # with how many of its first rows are gone

    def load(self, windows: Iterable[TileWindow], pool: ThreadPoolExecutor) -> int:
        """Decode the tiles under these windows that are not there, each once; how many were decoded."""
        wanted = {tile for window in windows for tile in self._level.tiles.under(window)}
        missing = sorted(wanted - set(self._tiles))
        # A picture that is read from top to bottom has one reader.
        mapped = map(self._decode, missing) if self._level.is_sequential else pool.map(self._decode, missing)
        self._tiles.update((tile, (0, found)) for tile, found in zip(missing, mapped, strict=True))
        return len(missing)

    def _decode(self, tile: int) -> Samples:
        found = self._level.decode(tile, self.plane)
        return found[..., self._channels] if self._channels else found

    def fill(self, chip: Samples, window: TileWindow) -> bool:
        """Copy what lies under `window` to the upper left of a chip; whether it is all of one blank colour."""
        value: bytes | None = None
        is_blank = True
        for tile in self._level.tiles.under(window):
            box, (cut_rows, source) = self._level.tiles.box(tile), self._tiles[tile]
            left, right = max(window.x, box.x), min(window.x + window.width, box.x + box.width)
            top, bottom = max(window.y, box.y), min(window.y + window.height, box.y + box.height)
            part = source[top - box.y - cut_rows : bottom - box.y - cut_rows, left - box.x : right - box.x]
            chip[top - window.y : bottom - window.y, left - window.x : right - window.x] = part
            colour = source[0, 0].tobytes() if is_blank and not any(source.strides[:2]) else None
            is_blank = colour is not None and value in (None, colour)
            value = colour
        return is_blank

    @property
    def held_bytes(self) -> int:
        """Bytes of the tiles that are kept; blank ones take none."""
        return sum(found.nbytes for _, found in self._tiles.values() if found.strides[0])

    def forget_before(self, chip: int) -> None:
        """Drop the tiles that no chip of this plane from `chip` on needs, and of others the rows that none needs.

        Without the latter two rows of tiles would be held where chips are a little smaller than tiles.
        """
        tiles, grid = self._level.tiles, self._grid
        row, column = divmod(chip, grid.columns)
        next_top = grid.window((row + 1) * grid.columns).y if row + 1 < grid.rows else grid.height
        for tile, (cut_rows, found) in list(self._tiles.items()):
            box = tiles.box(tile)
            if last_chip(grid, box) < chip:
                del self._tiles[tile]
                continue
            top = next_top if last_column(grid, box) < column else grid.window(min(chip, grid.count - 1)).y
            needless = min(top - box.y, box.height) - cut_rows
            if needless * _TRIM_PART >= len(found) and found.strides[0]:
                self._tiles[tile] = (cut_rows + needless, found[needless:].copy())


class Cutter:
    """Cuts band after band of one level. A tile is decoded once, and kept until the last chip that needs it is cut.

    So it holds about one row of chips of the image, whatever the overlap, and the chips of one band. Chips of the planes of a
    stack follow each other: chip `p * grid.count + i` is chip `i` of plane `p`.

    Args:
        level: the image.
        grid: where the chips lie.
        spec: which channels are taken, and how chips are encoded.
        threads: for decoding and encoding; 0 for as many as there are cores, at most 4.
    """

    def __init__(self, level: ImageLevel, grid: Grid, spec: ChipSpec, threads: int = 0) -> None:
        self.tiles_decoded = 0
        self.level = level
        self.facts = with_channels(level.facts, spec.channels)
        self._spec = spec
        self._passing = pass_through(level, grid, spec)
        self._media_type = media_type(self.facts, spec.codec)
        self.grid = grid
        self._planes: dict[int, _PlaneTiles] = {}
        self._mask = _PlaneTiles(level.mask, grid, 0) if level.mask is not None else None
        self._encode = encoder(self.facts, spec.codec, spec.quality)
        self._blank: dict[bytes, _Cut] = {}
        self._threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)

    @property
    def held_bytes(self) -> int:
        """Bytes of decoded tiles that chips still need."""
        return sum(tiles.held_bytes for tiles in self._planes.values())

    @property
    def count(self) -> int:
        """Chips of all planes."""
        return self.grid.count * len(self.level.facts.planes)

    def cut(self, band: Band) -> Chips:
        """The chips of a band. Bands come in rising order; those that are not wanted are left out.

        Raises:
            UnreadableImageError: a tile cannot be decoded.
        """
        facts, grid = self.facts, self.grid
        pixels: Samples = np.zeros((band.end - band.first, grid.tall, grid.size, facts.channels), facts.dtype)
        made: list[_Cut] = []
        with ThreadPoolExecutor(self._threads) as pool:
            for plane, first, end in self._parts(band):
                tiles = self._tiles_of(plane, first)
                windows = [self.grid.window(index) for index in range(first, end)]
                self.tiles_decoded += tiles.load(windows, pool)
                if self._mask is not None:
                    self._mask.load(windows, pool)
                place = plane * self.grid.count + first - band.first
                part = pixels[place : place + len(windows)]
                made.extend(pool.map(self._one, part, range(first, end), [tiles] * len(windows)))
                self._forget(plane, end)
        return _gathered(band.first, pixels, made)

    def _parts(self, band: Band) -> Iterator[tuple[int, int, int]]:
        """A band as planes, each with its first chip and end within the plane."""
        for plane in range(band.first // self.grid.count, (band.end - 1) // self.grid.count + 1):
            start = plane * self.grid.count
            yield plane, max(band.first - start, 0), min(band.end - start, self.grid.count)

    def _tiles_of(self, plane: int, first: int) -> _PlaneTiles:
        for other in [other for other in self._planes if other != plane]:
            del self._planes[other]
        if plane not in self._planes:
            self._planes[plane] = _PlaneTiles(self.level, self.grid, plane, self._spec.channels)
        self._forget(plane, first)
        return self._planes[plane]

    def _forget(self, plane: int, chip: int) -> None:
        self._planes[plane].forget_before(chip)
        if self._mask is not None:
            self._mask.forget_before(chip)

    def _one(self, chip: Samples, index: int, tiles: _PlaneTiles) -> _Cut:
        """Everything that is done to one chip, while it lies in the processor's cache."""
        window = self.grid.window(index)
        is_blank = tiles.fill(chip, window) and self._mask is None
        inside = chip[: window.height, : window.width]
        key = b"%d %d " % inside.shape[:2] + inside[0, 0].tobytes()
        if is_blank and key in self._blank:
            return self._blank[key]
        mask = None if self._mask is None else self._mask_under(self._mask, window)
        valid = valid_pixels(inside, self.facts, None if mask is None else mask[: window.height, : window.width])
        share = 1.0 if valid is None else float(np.count_nonzero(valid) / valid.size)
        picture = self._picture(chip, index, tiles.plane)
        made = _Cut(share, None if mask is None else mask_png(mask), *picture)
        if is_blank:
            self._blank[key] = made
        return made

    def _picture(self, chip: Samples, index: int, plane: int) -> tuple[bytes, str, str]:
        """A chip as a picture, with its media type and how it was made."""
        passed = None if self._passing is None else self._passing.picture(index, plane)
        if self._passing is not None and passed is not None:
            return passed, self._passing.media_type, PASSED
        is_exact = self._media_type != JPEG
        return self._encode(chip), self._media_type, EXACT if is_exact else REENCODED

    def _mask_under(self, tiles: _PlaneTiles, window: TileWindow) -> Samples:
        found = np.zeros((self.grid.tall, self.grid.size, 1), np.uint8)
        tiles.fill(found, window)
        return found[..., 0] > 0


def _gathered(first: int, pixels: Samples, made: Sequence[_Cut]) -> Chips:
    valid = np.array([one.valid for one in made], np.float32)
    pictures = (
        tuple(one.encoded for one in made),
        tuple(one.media_type for one in made),
        tuple(one.method for one in made),
    )
    return Chips(first, pixels, valid, tuple(one.mask for one in made), *pictures)


def valid_pixels(pixels: Samples, facts: ImageFacts, mask: Samples | None) -> npt.NDArray[np.bool_] | None:
    """Which pixels hold something; None where all do. As in GDAL, a mask goes before alpha, and alpha before nodata."""
    if mask is not None:
        return np.asarray(mask, np.bool_)
    if facts.has_alpha:
        return np.asarray(pixels[..., -1] > 0)
    if facts.nodata is None:
        return np.asarray(~np.isnan(pixels).all(axis=2)) if np.issubdtype(pixels.dtype, np.floating) else None
    is_nothing = np.isnan(pixels) if np.isnan(facts.nodata) else pixels == np.asarray(facts.nodata).astype(pixels.dtype)
    return np.asarray(~is_nothing.all(axis=2))
