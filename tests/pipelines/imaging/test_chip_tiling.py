"""Chips cover the image, and bands cover the chips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.imaging.tiling import Band, Grid, TileGrid, TileWindow, bands, chips_per_band, last_chip

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


@given(GRIDS, st.integers(1, 50))
def test_bands_deal_out_each_chip_once_and_in_order(grid: Grid, chips: int) -> None:
    dealt = list(bands(grid.count, chips))
    assert [chip for band in dealt for chip in range(band.first, band.end)] == list(range(grid.count))
    assert [band.index for band in dealt] == list(range(len(dealt)))
    assert all(band.end - band.first == chips for band in dealt[:-1])
    assert dealt[0] == Band(0, 0, min(chips, grid.count))


@given(GRIDS, st.integers(1, 3_000), st.integers(1, 20_000), st.integers(0, 5_000), st.integers(1, 50))
def test_a_band_keeps_its_bounds_of_bytes_and_is_a_small_part_of_the_slide(
    grid: Grid, chip_bytes: int, most: int, least: int, wanted: int
) -> None:
    chips = chips_per_band(grid.count, chip_bytes, most, least, wanted)
    assert 1 <= chips <= grid.count
    assert chips == 1 or chips * chip_bytes <= most
    small = max(-(-grid.count // wanted), least // chip_bytes)
    assert chips <= max(1, small)
    assert chips in (grid.count, max(1, most // chip_bytes), max(1, small)), "no smaller than these bounds make it"


TILES = st.builds(TileGrid, st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))


@given(TILES)
def test_tiles_hold_each_pixel_of_the_image_once(tiles: TileGrid) -> None:
    seen = np.zeros((tiles.height, tiles.width), int)
    for tile in range(tiles.count):
        box = tiles.box(tile)
        seen[box.y : box.y + box.height, box.x : box.x + box.width] += 1
        assert (box.x % tiles.tile_width, box.y % tiles.tile_height) == (0, 0)
    assert (seen == 1).all()
    assert tiles.count % tiles.columns == 0


@given(GRIDS, st.integers(1, 40), st.integers(1, 40))
def test_the_tiles_under_a_chip_are_those_that_share_a_pixel_with_it(grid: Grid, tile_width: int, tile_height: int) -> None:
    tiles = TileGrid(grid.width, grid.height, tile_width, tile_height)
    boxes = [tiles.box(tile) for tile in range(tiles.count)]
    for window in (grid.window(0), grid.window(grid.count // 2), grid.window(grid.count - 1)):
        assert list(tiles.under(window)) == [tile for tile, box in enumerate(boxes) if _meet(box, window)]


@given(GRIDS, st.integers(1, 40), st.integers(1, 40))
def test_a_tile_is_needed_until_its_last_chip_and_by_none_after_it(grid: Grid, tile_width: int, tile_height: int) -> None:
    tiles = TileGrid(grid.width, grid.height, tile_width, tile_height)
    for tile in (0, tiles.count // 2, tiles.count - 1):
        box = tiles.box(tile)
        assert last_chip(grid, box) == max(chip for chip in range(grid.count) if _meet(box, grid.window(chip)))


def _meet(one: TileWindow, other: TileWindow) -> bool:
    across = one.x < other.x + other.width and other.x < one.x + one.width
    return across and one.y < other.y + other.height and other.y < one.y + one.height


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


def test_a_grid_overlaps_by_nothing_unless_an_overlap_is_set() -> None:
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
