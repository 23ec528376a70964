"""Chips cover the image, and bands cover the chips."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.imaging.tiling import Grid, bands, rows_per_band

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
