"""Where chips and stored tiles lie in an image, and which chips make one piece of work. Pure arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass

from schemas.contract import ChipEdge


@dataclass(frozen=True, slots=True)
class TileWindow:
    """A chip's place: `x`, `y` of its upper left pixel, and how much of it lies inside the image (`width`, `height`)."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Chips of `size` px over an image, neighbours sharing `overlap` px, row by row from the upper left.

    With the edge rule `pad` the chips cover the image exactly, and those at the right and lower edge reach beyond it and are
    filled up with zeros. `drop` leaves those out. `shift` moves them inwards, so that they share more with their neighbours; in
    an image smaller than a chip they are padded.

    Attributes:
        width: pixels of the image.
        height: as `width`.
        size: pixels of a chip across.
        overlap: pixels that neighbours share.
        down: pixels of a chip down; 0 for square chips.
        edge: what becomes of chips that reach beyond the edge.
        left: where the first column begins.
        top: where the first row begins.
    """

    width: int
    height: int
    size: int
    overlap: int = 0
    down: int = 0
    edge: ChipEdge = ChipEdge.PAD
    left: int = 0
    top: int = 0

    def __post_init__(self) -> None:
        inside = min(self.width - self.left, self.height - self.top)
        if min(inside, self.size) < 1 or not 0 <= self.overlap < min(self.size, self.tall):
            raise ValueError(f"no grid of {self.size} px, overlap {self.overlap}, on {self.width} x {self.height} px")

    @property
    def tall(self) -> int:
        """Pixels of a chip down."""
        return self.down or self.size

    @property
    def stride(self) -> int:
        """Pixels from one chip to the next across."""
        return self.size - self.overlap

    @property
    def stride_down(self) -> int:
        """Pixels from one row of chips to the next."""
        return self.tall - self.overlap

    @property
    def columns(self) -> int:
        """Chips in a row."""
        return self._along(self.width - self.left, self.size)

    @property
    def rows(self) -> int:
        """Rows of chips."""
        return self._along(self.height - self.top, self.tall)

    def _along(self, length: int, size: int) -> int:
        if self.edge is ChipEdge.DROP:
            return max(0, (length - size) // (size - self.overlap) + 1)
        return max(1, -(-(length - self.overlap) // (size - self.overlap)))

    @property
    def count(self) -> int:
        """All chips."""
        return self.rows * self.columns

    def window(self, index: int) -> TileWindow:
        """The place of chip `index`."""
        row, column = divmod(index, self.columns)
        x, y = self.left + column * self.stride, self.top + row * self.stride_down
        if self.edge is ChipEdge.SHIFT:
            x, y = max(self.left, min(x, self.width - self.size)), max(self.top, min(y, self.height - self.tall))
        return TileWindow(x, y, min(self.size, self.width - x), min(self.tall, self.height - y))


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles or strips that an image of `width` x `height` px is stored in, row by row from the upper left."""

    width: int
    height: int
    tile_width: int
    tile_height: int

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def count(self) -> int:
        """All tiles of one plane."""
        return self.columns * -(-self.height // self.tile_height)

    def box(self, tile: int) -> TileWindow:
        """The part of the image that a tile holds; what it has beyond the image's edge is padding."""
        row, column = divmod(tile, self.columns)
        x, y = column * self.tile_width, row * self.tile_height
        return TileWindow(x, y, min(self.tile_width, self.width - x), min(self.tile_height, self.height - y))

    def under(self, window: TileWindow) -> Iterator[int]:
        """The tiles that hold a pixel of `window`."""
        last_row = (window.y + window.height - 1) // self.tile_height
        last_column = (window.x + window.width - 1) // self.tile_width
        for row in range(window.y // self.tile_height, last_row + 1):
            first = row * self.columns
            yield from range(first + window.x // self.tile_width, first + last_column + 1)


def last_column(grid: Grid, box: TileWindow) -> int:
    """The last column of chips that hold a pixel of `box`."""
    if grid.edge is ChipEdge.SHIFT and box.x + box.width > grid.width - grid.size:
        return grid.columns - 1
    return min(grid.columns - 1, (box.x + box.width - 1 - grid.left) // grid.stride)


def last_chip(grid: Grid, box: TileWindow) -> int:
    """The last chip that holds a pixel of `box`: after it nobody needs that part of the image."""
    row = min(grid.rows - 1, (box.y + box.height - 1 - grid.top) // grid.stride_down)
    column = last_column(grid, box)
    if grid.edge is ChipEdge.SHIFT and box.y + box.height > grid.height - grid.tall:
        row = grid.rows - 1
    return row * grid.columns + column if min(row, column) >= 0 else -1


@dataclass(frozen=True, slots=True)
class Band:
    """Chips `first` up to `end` (exclusive) in the grid's order: what is cut, and made durable, at once."""

    index: int
    first: int
    end: int


def chips_per_band(count: int, chip_bytes: int, max_band_bytes: int, min_band_bytes: int, wanted_bands: int) -> int:
    """How many chips make a band: a small part of the slide, that what a killed try loses is little, within bounds of bytes.

    Args:
        count: all chips.
        chip_bytes: bytes of one chip's pixels.
        max_band_bytes: bytes of chips that may be held at once; one chip always may.
        min_band_bytes: bytes below which a band is not worth its files.
        wanted_bands: how many bands a slide is better cut in, where these bounds allow it.
    """
    share = max(-(-count // wanted_bands), min_band_bytes // chip_bytes)
    return max(1, min(count, share, max_band_bytes // chip_bytes))


def bands(count: int, chips: int) -> Iterator[Band]:
    """All `count` chips as bands of `chips` each; the last may have fewer."""
    for index, first in enumerate(range(0, count, chips)):
        yield Band(index, first, min(first + chips, count))
