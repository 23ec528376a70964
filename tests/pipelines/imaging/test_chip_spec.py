"""What a chip spec may say: sides, edge, origin, level by factor or scale, channels, encoding, arrays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import pyvips
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.odcs import load_odcs, to_odcs
from pipelines.imaging.cutting import Cutter
from pipelines.imaging.graph import cut_chips
from pipelines.imaging.reader import open_level
from pipelines.imaging.store import ChipFile, SlideRef
from pipelines.imaging.tiling import Grid, TileGrid, bands, last_chip
from pipelines.lake.lake import lake_at
from schemas.contract import ChipCodec, ChipEdge, ChipSpec, Contract, builtin_contract
from schemas.errors import ContractError

Refer = Callable[..., SlideRef]
GRIDS = st.builds(
    lambda w, h, size, down, part, edge, left, top: Grid(w, h, size, int(min(size, down) * part), down, edge, left % w, top % h),
    *(st.integers(1, 70), st.integers(1, 70), st.integers(1, 30), st.integers(1, 30), st.floats(0, 0.95)),
    st.sampled_from(list(ChipEdge)), st.integers(0, 20), st.integers(0, 20),
)  # fmt: skip


@given(GRIDS)
def test_chips_of_any_edge_rule_lie_in_the_image_and_cover_it_but_where_they_are_dropped(grid: Grid) -> None:
    seen = np.zeros((grid.height, grid.width), int)
    for window in map(grid.window, range(grid.count)):
        assert window.x + window.width <= grid.width
        assert window.y + window.height <= grid.height
        assert min(window.width, window.height) >= 1
        is_whole = (window.width, window.height) == (grid.size, grid.tall)
        fits = grid.width - grid.left >= grid.size and grid.height - grid.top >= grid.tall
        assert is_whole or grid.edge is ChipEdge.PAD or not fits
        seen[window.y : window.y + window.height, window.x : window.x + window.width] += 1
    if grid.edge is not ChipEdge.DROP:
        assert seen[grid.top :, grid.left :].all()
    assert not seen[: grid.top].any()
    assert not seen[:, : grid.left].any()


@given(GRIDS, st.integers(1, 30), st.integers(1, 30))
def test_a_tile_is_kept_for_all_chips_that_need_it_whatever_the_edge_rule(grid: Grid, across: int, down: int) -> None:
    tiles = TileGrid(grid.width, grid.height, across, down)
    last: dict[int, int] = {}
    for chip in range(grid.count):
        last |= dict.fromkeys(tiles.under(grid.window(chip)), chip)
    for tile, chip in last.items():
        assert last_chip(grid, tiles.box(tile)) >= chip


def cut(lake: Path, slide: SlideRef, **spec: Any) -> ChipFile:
    changed = replace(slide, spec=msgspec.structs.replace(slide.spec, **spec))
    (file,) = cut_chips(lake_at(lake), 1, (changed,), 10**9)
    return file


def rows_of(lake: Path, file: ChipFile) -> list[dict[str, Any]]:
    assert file.rejection is None, file.rejection
    rows: list[dict[str, Any]] = pq.read_table(lake / file.path).to_pylist()
    return rows


def pyramid(path: Path) -> np.ndarray:
    y, x = np.mgrid[0:200, 0:300]
    pixels = np.stack([x % 256, y, (x * y) % 256], axis=-1).astype(np.uint8)
    image = pyvips.Image.new_from_array(pixels)
    image.tiffsave(str(path), tile=True, tile_width=64, tile_height=64, pyramid=True, xres=2000, yres=2000)
    return pixels


@pytest.mark.parametrize(("edge", "count"), [(ChipEdge.PAD, 5 * 4), (ChipEdge.DROP, 4 * 3), (ChipEdge.SHIFT, 5 * 4)])
def test_oblong_chips_from_an_origin_have_their_pixels(tmp_path: Path, refer: Refer, edge: ChipEdge, count: int) -> None:
    pixels = pyramid(tmp_path / "a.tif")
    file = cut(tmp_path, refer(tmp_path / "a.tif", 64), height=50, edge=edge, left=7, top=11)
    rows = rows_of(tmp_path, file)
    assert len(rows) == count
    array: Any = zarr.open_array(str(tmp_path / rows[0]["zarr_path"]), mode="r")
    assert array.shape == (count, 50, 64, 3)
    for row in rows:
        x, y, w, h = (row[key] for key in ("x", "y", "width", "height"))
        assert (array[row["chip_index"], :h, :w] == pixels[y : y + h, x : x + w]).all()
    if edge is ChipEdge.SHIFT:
        assert (rows[-1]["x"], rows[-1]["y"]) == (300 - 64, 200 - 50)


@pytest.mark.parametrize(("wish", "level"), [({"factor": 2.0}, 1), ({"mpp": 1.0}, 1), ({"mpp": 0.5}, 0), ({"factor": 3.98}, 2)])
def test_a_level_is_chosen_by_its_factor_or_its_scale(tmp_path: Path, refer: Refer, wish: dict[str, float], level: int) -> None:
    pyramid(tmp_path / "a.tif")
    (row, *_) = rows_of(tmp_path, cut(tmp_path, refer(tmp_path / "a.tif", 64), **wish))
    assert row["level"] == level
    assert row["mpp_x"] == pytest.approx(0.5 * 2**level)


def test_a_level_that_no_one_has_is_refused_with_those_there_are(tmp_path: Path, refer: Refer) -> None:
    pyramid(tmp_path / "a.tif")
    slide = refer(tmp_path / "a.tif", 64)
    assert "no level with factor 3; it has 1, 2, 4" in str(cut(tmp_path, slide, factor=3.0).rejection)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((64, 64), np.uint8))
    assert "does not say its micrometres per pixel" in str(cut(tmp_path, refer(tmp_path / "b.tif", 64), mpp=0.5).rejection)


def test_channels_are_taken_in_the_order_that_is_asked_for(tmp_path: Path, refer: Refer) -> None:
    pixels = np.random.default_rng(1).integers(0, 60_000, (5, 70, 90)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="separate", metadata={"axes": "CYX"})
    slide = refer(tmp_path / "a.tif", 64)
    (row, *_) = rows_of(tmp_path, cut(tmp_path, slide, channels=(4, 1)))
    array: Any = zarr.open_array(str(tmp_path / row["zarr_path"]), mode="r")
    assert (array[0] == pixels[[4, 1], :64, :64].transpose(1, 2, 0)).all()
    assert "no channel 5" in str(cut(tmp_path, slide, channels=(5,)).rejection)


@pytest.mark.parametrize(("codec", "media"), [("png", "image/png"), ("tiff", "image/tiff"), ("jpeg", "image/jpeg")])
def test_the_codec_of_the_spec_is_used_and_arrays_may_be_left_out(tmp_path: Path, refer: Refer, codec: str, media: str) -> None:
    pyramid(tmp_path / "a.tif")
    file = cut(tmp_path, refer(tmp_path / "a.tif", 64), codec=ChipCodec(codec), is_array_kept=False)
    rows = rows_of(tmp_path, file)
    assert {row["media_type"] for row in rows} == {media}
    assert {row["zarr_path"] for row in rows} == {None}
    assert not list((tmp_path / "chips").rglob("zarr.json"))


def test_a_codec_that_cannot_hold_the_pixels_refuses_the_slide(tmp_path: Path, refer: Refer) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.float32))
    assert "cannot become jpeg" in str(cut(tmp_path, refer(tmp_path / "a.tif", 64), codec=ChipCodec.JPEG).rejection)


def test_chips_that_fit_nowhere_refuse_the_slide(tmp_path: Path, refer: Refer) -> None:
    pyramid(tmp_path / "a.tif")
    slide = refer(tmp_path / "a.tif", 256)
    assert "no chip of 256 x 256 px fits" in str(cut(tmp_path, slide, edge=ChipEdge.DROP).rejection)
    assert "outside 300 x 200 px" in str(cut(tmp_path, slide, left=300).rejection)


def test_a_spec_survives_the_contract_file_and_an_old_one_reads_as_before(tmp_path: Path) -> None:
    spec = ChipSpec("a", 64, 8, height=32, edge=ChipEdge.SHIFT, left=3, mpp=0.5, channels=(2, 0), quality=80, is_array_kept=False)
    contract = msgspec.structs.replace(builtin_contract("slide"), chips=(spec, ChipSpec("b", 128)))
    (tmp_path / "slide.odcs.yaml").write_text(to_odcs(contract))
    assert load_odcs(tmp_path / "slide.odcs.yaml").chips == contract.chips
    assert msgspec.json.encode(ChipSpec("b", 128, 4, 1)) == b'{"name":"b","size":128,"overlap":4,"level":1}'
    assert isinstance(contract, Contract)


@pytest.mark.parametrize(
    "wrong",
    [{"height": 8}, {"left": -1}, {"level": 1, "mpp": 0.5}, {"mpp": -1.0}, {"quality": 0}, {"channels": (0, 0)}, {"overlap": 40}],
)
def test_a_spec_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        ChipSpec("a", 64, **{"height": 32, **wrong})


@pytest.mark.parametrize(("size", "overlap"), [(60, 0), (64, 0), (100, 0), (64, 48), (40, 20)])
@pytest.mark.parametrize("edge", [ChipEdge.PAD, ChipEdge.SHIFT])
def test_little_more_than_the_rows_of_one_row_of_chips_is_held(
    tmp_path: Path, refer: Refer, size: int, overlap: int, edge: ChipEdge
) -> None:
    """Tiles whose upper rows no chip needs any more are cut short, so that a tile's height is not added to a chip's."""
    pixels = np.random.default_rng(1).integers(0, 255, (640, 1280), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib")
    spec = ChipSpec("s", size, overlap, edge=edge)
    with open_level(path.open("rb"), 0, path.stat().st_size, spec, 10**9) as level:
        cutter = Cutter(level, Grid(1280, 640, size, overlap, edge=edge), spec)
        held = []
        for band in bands(cutter.count, 8):
            chips = cutter.cut(band)
            held.append(cutter.held_bytes)
            for index, chip in zip(range(band.first, band.end), chips.pixels, strict=True):
                window = cutter.grid.window(index)
                x, y, w, h = window.x, window.y, window.width, window.height
                assert (chip[:h, :w, 0] == pixels[y : y + h, x : x + w]).all()
        assert cutter.tiles_decoded == level.tiles.count
        assert max(held) <= 1280 * (size + 64 + 32)
        assert sum(held) / len(held) <= 1280 * (size + 40)
