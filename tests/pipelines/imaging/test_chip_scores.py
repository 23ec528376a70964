"""What chips look like as numbers: computed by hand on small pictures, and as one threshold for a slide."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from pipelines.imaging.facts import Colours
from pipelines.imaging.graph import cut_chips
from pipelines.imaging.scores import (
    COUNTS,
    band_scores,
    counts_of,
    entropy_bits,
    laplacian_variance,
    otsu_threshold,
    saturation,
    tissue_shares,
)
from pipelines.imaging.store import SlideRef
from pipelines.imaging.tiling import TileWindow
from pipelines.lake.lake import lake_at
from tests.plant.slides import half_white

Refer = Callable[..., SlideRef]


def otsu_by_hand(values: np.ndarray) -> int:
    """The threshold with the least variance within the two classes, each tried."""
    flat = values.ravel().astype(float)
    within = {}
    for value in range(256):
        low, high = flat[flat <= value], flat[flat > value]
        if low.size and high.size:
            within[value] = low.size * low.var() + high.size * high.var()
    return min(within, key=lambda value: (round(within[value], 6), value))


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_the_threshold_with_the_least_variance_within_classes(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.concatenate([random.normal(60, 15, 4000), random.normal(160, 25, 2000)]).clip(0, 255).astype(np.uint8)
    assert otsu_threshold(np.bincount(values, minlength=256)) == otsu_by_hand(values)


def test_pixels_of_one_value_have_no_threshold_and_no_tissue_share() -> None:
    counts = np.zeros((2, 256), np.uint32)
    counts[:, 7] = 10
    assert otsu_threshold(counts.sum(axis=0)) is None
    assert tissue_shares(counts, counts.sum(axis=0), has_colours=True).to_pylist() == [None, None]


def test_saturation_is_that_of_hsv() -> None:
    colours = np.array([[255, 0, 0], [200, 100, 150], [9, 9, 9], [0, 0, 0]], np.uint8).T[:, :, None]
    assert saturation(colours).ravel().tolist() == [255, 127, 0, 0]


def test_entropy_and_focus_are_those_computed_by_hand() -> None:
    four = np.repeat(np.array([[0, 80, 160, 240]], np.uint8), 4, axis=0)
    assert entropy_bits(four) == 2.0
    assert entropy_bits(np.full((4, 4), 9, np.uint8)) == 0.0
    dot = np.zeros((5, 5), np.uint8)
    dot[2, 2] = 10  # the Laplacian of the inside: 40 once, -10 four times, 0 four times
    assert laplacian_variance(dot) == pytest.approx((40**2 + 4 * 10**2) / 9)
    assert laplacian_variance(np.full((9, 9), 200, np.uint8)) == 0.0
    assert laplacian_variance(dot[:2]) == 0.0


def test_the_chips_of_a_slide_share_one_threshold_and_only_the_part_inside_counts() -> None:
    glass, tissue = np.full((64, 64, 3), 240, np.uint8), np.zeros((64, 64, 3), np.uint8)
    tissue[...] = (180, 60, 150)
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, :32] = tissue[:, :32]
    pixels = np.stack([glass, tissue, edge])
    windows = [TileWindow(0, 0, 64, 64), TileWindow(64, 0, 64, 64), TileWindow(128, 0, 32, 64)]
    scores = band_scores(pixels, windows, Colours.RGB)
    counts = counts_of(scores.columns()["saturation_counts"])
    assert tissue_shares(counts, counts.sum(axis=0), has_colours=True).to_pylist() == [0.0, 1.0, 1.0]
    assert scores.white.tolist() == [1.0, 0.0, 0.0]
    assert scores.black.tolist() == [0.0, 0.0, 0.0]
    assert scores.focus.tolist() == [0.0, 0.0, 0.0]


def test_of_gray_slides_the_rarer_side_is_tissue() -> None:
    for ground, cell in ((250, 90), (5, 200)):
        counts = np.zeros((2, 256), np.uint32)
        counts[0, ground], counts[1, ground], counts[1, cell] = 100, 60, 40
        assert tissue_shares(counts, counts.sum(axis=0), has_colours=False).to_pylist() == pytest.approx([0.0, 0.4])


def test_samples_that_are_not_gray_or_rgb_of_8_bits_have_no_scores() -> None:
    for samples, colours in (("uint16", Colours.GRAY), ("uint8", Colours.PALETTE), ("uint8", Colours.BANDS)):
        scores = band_scores(np.zeros((1, 8, 8, 1), samples), [TileWindow(0, 0, 8, 8)], colours)
        assert scores.columns()["focus"].to_pylist() == [None]


def test_rows_of_a_cut_slide_carry_the_share_by_the_threshold_of_all_its_pixels(tmp_path: Path, refer: Refer) -> None:
    tifffile.imwrite(tmp_path / "a.tif", half_white(128), tile=(64, 64), photometric="rgb")
    (file,) = cut_chips(lake_at(tmp_path), 1, (refer(tmp_path / "a.tif", 32),), 10**9)
    rows = pq.read_table(tmp_path / file.path)
    sparse = np.ascontiguousarray(half_white(128)[::2, ::2].transpose(2, 0, 1))
    found = saturation(sparse)
    wanted = found > otsu_by_hand(found)
    for row in rows.to_pylist():
        x, y = row["x"] // 2, row["y"] // 2
        assert row["tissue"] == pytest.approx(wanted[y : y + 16, x : x + 16].mean())
    assert rows.column("background").to_pylist() == rows.column("white").to_pylist()
    assert set(rows.column("focus").to_pylist()[:8]) == {0.0}
    assert min(rows.column("focus").to_pylist()[8:]) > 1_000
    assert COUNTS not in rows.schema.names
