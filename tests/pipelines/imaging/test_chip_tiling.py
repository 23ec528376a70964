"""Chips cover the image, and bands cover the chips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.imaging.tiling import Band, Grid, TileWindow, bands, rows_per_band

SIDES = st.integers(1, 90)
GRIDS = st.builds(
    lambda w, h, size, part: Grid(w, h, size, int(size * part)),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.floats(0, 0.97),
)


@given(GRIDS)
def test_chips_cover_each_pixel_and_without_overlap_exactly_once(grid: Grid) -> None:
    seen = np.zeros((grid.height, grid.width), int)
    for index in range(grid.count):
        window = grid.window(index)
        assert window.width > 0
        assert window.height > 0
        assert window.x + window.width <= grid.width
        assert window.y + window.height <= grid.height
        seen[window.y : window.y + window.height, window.x : window.x + window.width] += 1
    assert seen.min() >= 1
    if not grid.overlap:
        assert seen.max() == 1


@given(GRIDS, st.integers(1, 8))
def test_bands_deal_out_each_chip_row_once_with_all_the_pixels_it_needs(grid: Grid, rows: int) -> None:
    dealt = list(bands(grid, rows))
    assert [row for band in dealt for row in range(band.row_low, band.row_high)] == list(range(grid.rows))
    for band in dealt:
        for row in range(band.row_low, band.row_high):
            window = grid.window(row * grid.columns)
            assert band.y_low <= window.y
            assert window.y + window.height <= band.y_high


@given(GRIDS, st.integers(1, 10), st.integers(1, 20_000))
def test_a_band_of_several_rows_keeps_its_limit(grid: Grid, row_bytes: int, limit: int) -> None:
    rows = rows_per_band(grid, row_bytes, limit)
    if rows:
        assert all((band.y_high - band.y_low) * row_bytes <= limit for band in bands(grid, rows))


@given(GRIDS)
def test_a_grid_has_no_chip_that_its_neighbours_make_needless(grid: Grid) -> None:
    for side, chips in ((grid.width, grid.columns), (grid.height, grid.rows)):
        assert chips >= 1
        assert (chips - 1) * grid.stride + grid.size >= side
        assert chips == 1 or (chips - 2) * grid.stride + grid.size < side
    assert grid.count == grid.columns * grid.rows
    assert grid.stride == grid.size - grid.overlap


@given(GRIDS)
def test_chips_lie_row_by_row_a_stride_apart_and_are_cut_at_the_edge_alone(grid: Grid) -> None:
    places = [(x * grid.stride, y * grid.stride) for y in range(grid.rows) for x in range(grid.columns)]
    for index, (x, y) in enumerate(places):
        width, height = min(grid.size, grid.width - x), min(grid.size, grid.height - y)
        assert grid.window(index) == TileWindow(x, y, width, height)


@given(GRIDS, st.integers(1, 8))
def test_a_band_holds_no_pixel_row_that_none_of_its_chips_needs(grid: Grid, rows: int) -> None:
    for number, band in enumerate(bands(grid, rows)):
        windows = [grid.window(row * grid.columns) for row in range(band.row_low, band.row_high)]
        needs = min(window.y for window in windows), max(window.y + window.height for window in windows)
        assert band == Band(number, number * rows, min(grid.rows, (number + 1) * rows), *needs)


@given(GRIDS, st.integers(1, 10), st.integers(0, 2_000))
def test_a_band_has_as_many_rows_as_its_limit_allows(grid: Grid, row_bytes: int, limit: int) -> None:
    rows = rows_per_band(grid, row_bytes, limit)
    most = [count for count in range(grid.rows + 1) if count == 0 or (count * grid.stride + grid.overlap) * row_bytes <= limit]
    assert rows == max(most)


def test_a_grid_overlaps_by_nothing_unless_it_is_said() -> None:
    assert Grid(10, 10, 5) == Grid(10, 10, 5, 0)
    assert Grid(1, 1, 1).window(0) == TileWindow(0, 0, 1, 1)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((0, 5, 3, 0), "no grid of 3 px, overlap 0, on 0 x 5 px"),
        ((5, 0, 3, 0), "no grid of 3 px, overlap 0, on 5 x 0 px"),
        ((5, 5, 0, 0), "no grid of 0 px, overlap 0, on 5 x 5 px"),
        ((5, 6, 3, 3), "no grid of 3 px, overlap 3, on 5 x 6 px"),
        ((5, 6, 3, -1), "no grid of 3 px, overlap -1, on 5 x 6 px"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(sides: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Grid(*sides)
