"""Where chips lie in an image, and which rows of it make one piece of work. Pure arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileWindow:
    """A chip's place: `x`, `y` of its upper left pixel, and how much of it lies inside the image (`width`, `height`)."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Square chips of `size` px over an image, neighbours sharing `overlap` px, row by row from the upper left.

    The chips cover the image exactly; those at the right and lower edge reach beyond it and are filled up with zeros.
    """

    width: int
    height: int
    size: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.size) < 1 or not 0 <= self.overlap < self.size:
            raise ValueError(f"no grid of {self.size} px, overlap {self.overlap}, on {self.width} x {self.height} px")

    @property
    def stride(self) -> int:
        """Pixels from one chip to the next."""
        return self.size - self.overlap

    @property
    def columns(self) -> int:
        """Chips in a row."""
        return max(1, -(-(self.width - self.overlap) // self.stride))

    @property
    def rows(self) -> int:
        """Rows of chips."""
        return max(1, -(-(self.height - self.overlap) // self.stride))

    @property
    def count(self) -> int:
        """All chips."""
        return self.rows * self.columns

    def window(self, index: int) -> TileWindow:
        """The place of chip `index`."""
        row, column = divmod(index, self.columns)
        x, y = column * self.stride, row * self.stride
        return TileWindow(x, y, min(self.size, self.width - x), min(self.size, self.height - y))


@dataclass(frozen=True, slots=True)
class Band:
    """Chip rows `row_low` up to `row_high` (exclusive), which need the image rows `y_low` up to `y_high` (exclusive)."""

    index: int
    row_low: int
    row_high: int
    y_low: int
    y_high: int


def rows_per_band(grid: Grid, row_bytes: int, max_band_bytes: int) -> int:
    """How many chip rows fit in `max_band_bytes` of pixels; 0 where not even one does.

    Args:
        grid: the chips.
        row_bytes: bytes of one row of pixels.
        max_band_bytes: bytes of pixels that may be held at once.
    """
    lines = max_band_bytes // row_bytes
    return min(grid.rows, max(0, (lines - grid.overlap) // grid.stride))


def bands(grid: Grid, rows: int) -> Iterator[Band]:
    """The image as bands of `rows` chip rows each; the last may have fewer."""
    for index, low in enumerate(range(0, grid.rows, rows)):
        high = min(low + rows, grid.rows)
        last = grid.window((high - 1) * grid.columns)
        yield Band(index, low, high, low * grid.stride, last.y + last.height)
