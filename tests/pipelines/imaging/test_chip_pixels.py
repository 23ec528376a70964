"""A slide comes out right or is refused by its reason: which image is cut, what a missing or damaged tile becomes, and bombs."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

from pipelines.imaging import header
from pipelines.imaging.graph import cut_chips, slide_tasks
from pipelines.imaging.reader import open_level
from pipelines.imaging.store import ChipFile, SlideRef
from pipelines.imaging.work import cut_slide
from pipelines.lake.lake import lake_at
from schemas.contract import ChipSpec

Refer = Callable[..., SlideRef]
LIMIT = 20_000_000_000
RGB: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64)}
GRAY: dict[str, Any] = {"photometric": "minisblack", "tile": (64, 64)}


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def cut(lake: Path, slide: SlideRef) -> ChipFile:
    (file,) = cut_chips(lake_at(lake), 1, (slide,), LIMIT)
    return file


def first_chip(lake: Path, file: ChipFile) -> tuple[np.ndarray, dict[str, Any]]:
    assert file.rejection is None, file.rejection
    row = pq.read_table(lake / file.path).to_pylist()[0]
    return np.asarray(zarr.open_array(str(lake / row["zarr_path"]), mode="r")[0]), row


def test_an_ome_image_of_one_plane_is_cut(tmp_path: Path, refer: Refer) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(128, 128), ome=True, metadata={"axes": "YX"}, **GRAY)
    chip, _ = first_chip(tmp_path, cut(tmp_path, refer(tmp_path / "a.ome.tif", 128)))
    assert (chip[:, :, 0] == noise(128, 128)).all()


def test_the_slide_is_cut_and_not_the_thumbnail_before_it_which_the_rows_name(tmp_path: Path, refer: Refer) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(noise(16, 16, 3, seed=2), photometric="rgb")
        writer.write(noise(128, 128, 3), **RGB)
    chip, row = first_chip(tmp_path, cut(tmp_path, refer(tmp_path / "a.tif", 128)))
    assert (chip == noise(128, 128, 3)).all()
    assert row["left_out"] == "image of 16 x 16 px"


def test_a_file_with_two_images_that_may_be_the_slide_is_refused(tmp_path: Path, refer: Refer) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(noise(120, 128, 3, seed=2), **RGB)
        writer.write(noise(128, 128, 3), **RGB)
    assert "two may be the slide" in str(cut(tmp_path, refer(tmp_path / "a.tif", 64)).rejection)


def test_a_sparse_tile_is_the_nodata_value(tmp_path: Path, refer: Refer) -> None:
    extra = [(42113, "s", 4, "255", True)]
    tifffile.imwrite(tmp_path / "a.tif", noise(128, 128) | 1, compression="zlib", extratags=extra, **GRAY)
    empty_tile(tmp_path / "a.tif", 3)
    chip, _ = first_chip(tmp_path, cut(tmp_path, refer(tmp_path / "a.tif", 128)))
    assert (chip[64:, 64:] == 255).all()
    assert (chip[:64, :64, 0] == (noise(128, 128) | 1)[:64, :64]).all()


def empty_tile(path: Path, tile: int) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = cast("tifffile.TiffPage", tiff.pages[0])
        for name, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[name].overwrite([0 if place == tile else value for place, value in enumerate(values)])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_of_few_bits_covers_black_to_white(tmp_path: Path, refer: Refer, bits: int) -> None:
    most = 2**bits - 1
    ramp = np.tile(np.arange(64, dtype=np.uint8) % (most + 1), (64, 1))
    tifffile.imwrite(tmp_path / "a.tif", ramp.astype(bool) if bits == 1 else ramp, bitspersample=bits, photometric="minisblack")
    chip, _ = first_chip(tmp_path, cut(tmp_path, refer(tmp_path / "a.tif", 64)))
    assert (chip[:, :, 0] == ramp * (255 // most)).all()


@pytest.mark.parametrize("damage", ["cut short", "cut short with an end", "an end inside"])
def test_a_damaged_jpeg_tile_refuses_its_slide(tmp_path: Path, refer: Refer, damage: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(128, 128, 3), compression="jpeg", **RGB)
    with tifffile.TiffFile(path) as tiff:
        start, size = tiff.pages[0].dataoffsets[2], tiff.pages[0].databytecounts[2]
    body = bytearray(path.read_bytes())
    half = start + size * 6 // 10
    rest = start + size - half
    if damage == "an end inside":
        body[half : half + 2] = b"\xff\xd9"
    else:
        body[half : start + size] = (b"\xff\xd9" if damage.endswith("end") else b"\x00\x00") + bytes(rest - 2)
    path.write_bytes(body)
    assert "tile 2: pixels cannot be decoded" in str(cut(tmp_path, refer(path, 64)).rejection)


@pytest.mark.parametrize("options", [{"photometric": "rgb"}, {"photometric": "ycbcr", "subsampling": (2, 2)}])
def test_jpeg_tiles_have_the_colours_of_the_header(tmp_path: Path, refer: Refer, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(128, 128, 3), tile=(64, 64), compression="jpeg", **options)
    chip, _ = first_chip(tmp_path, cut(tmp_path, refer(path, 128)))
    assert (chip == tifffile.imread(path)).all()


def test_a_jpeg_tile_of_too_many_scans_is_refused_before_it_is_decoded(tmp_path: Path, refer: Refer) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64), compression="jpeg", **GRAY)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = cast("tifffile.TiffPage", tiff.pages[0])
        start, size = page.dataoffsets[0], page.databytecounts[0]
        tile = path.read_bytes()[start : start + size]
        many = tile[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 101 + tile[-2:]
        page.tags["TileOffsets"].overwrite([path.stat().st_size])
        page.tags["TileByteCounts"].overwrite([len(many)])
    with path.open("ab") as file:
        file.write(many)
    assert "102 scans, above 100" in str(cut(tmp_path, refer(path, 64)).rejection)


def test_tiles_that_share_their_bytes_are_refused(tmp_path: Path, refer: Refer) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(256, 256), compression="zlib", **GRAY)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = cast("tifffile.TiffPage", tiff.pages[0])
        page.tags["TileOffsets"].overwrite([page.dataoffsets[0]] * 16)
        page.tags["TileByteCounts"].overwrite([page.databytecounts[0]] * 16)
    assert "is not blank, and its bytes are those of other tiles" in str(cut(tmp_path, refer(path, 64)).rejection)


def test_a_blank_tile_may_stand_for_many_places_and_is_decoded_into_no_memory(tmp_path: Path, refer: Refer) -> None:
    path = tmp_path / "a.tif"
    pixels = noise(256, 256)
    pixels[64:] = 243
    tifffile.imwrite(path, pixels, compression="zlib", **GRAY)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = cast("tifffile.TiffPage", tiff.pages[0])
        for tag, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[tag].overwrite([*values[:4], *[values[4]] * 12])
    file = cut(tmp_path, refer(path, 256))
    chip, _ = first_chip(tmp_path, file)
    assert (chip[:, :, 0] == pixels).all()
    with open_level(path.open("rb"), 0, path.stat().st_size, ChipSpec("s64", 64), LIMIT) as level:
        assert level.decode(7).strides[:2] == (0, 0)


def test_stored_tiles_that_overlap_are_refused(tmp_path: Path, refer: Refer) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(256, 256), **GRAY)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = cast("tifffile.TiffPage", tiff.pages[0])
        page.tags["TileOffsets"].overwrite([page.dataoffsets[0] + k for k in range(16)])
    assert "16 of 16 tiles overlap" in str(cut(tmp_path, refer(path, 64)).rejection)


def test_more_pixels_than_such_a_file_can_have_are_refused(tmp_path: Path, refer: Refer) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16_384, 16_384), np.uint8), tile=(4096, 4096), compression="zstd")
    assert "above 2000 to 1" in str(cut(tmp_path, refer(path, 64)).rejection)


def chain(path: Path, count: int, *, loop: bool = False, tag: bytes = b"") -> Path:
    """Headers without an image, each with at most one tag."""
    size = 2 + len(tag) + 4
    ends = [8 if loop else 0]
    parts = [
        struct.pack("<H", len(tag) // 12) + tag + struct.pack("<I", 8 + (n + 1) * size if n + 1 < count else ends[0])
        for n in range(count)
    ]
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(parts))
    return path


def test_a_chain_of_headers_that_comes_back_to_itself_is_refused(tmp_path: Path, refer: Refer) -> None:
    assert "comes back to itself" in str(cut(tmp_path, refer(chain(tmp_path / "a.tif", 3, loop=True), 64)).rejection)


def test_a_chain_of_too_many_headers_is_refused_by_its_length(tmp_path: Path, refer: Refer) -> None:
    path = chain(tmp_path / "a.tif", header.MAX_IFDS + 1)
    assert f"more than {header.MAX_IFDS} headers" in str(cut(tmp_path, refer(path, 64)).rejection)


def test_a_tag_that_claims_more_values_than_the_file_has_bytes_is_refused(tmp_path: Path, refer: Refer) -> None:
    path = chain(tmp_path / "a.tif", 1, tag=struct.pack("<HHII", 324, 4, 0xFFFFFFFF, 8))
    assert "tag 324 claims 4294967295 values" in str(cut(tmp_path, refer(path, 64)).rejection)


@pytest.mark.parametrize("tile", [256, 512, 1024])
@pytest.mark.parametrize("size", [256, 512, 1000])
@pytest.mark.parametrize("share", [0, 0.5, 0.75])
def test_each_tile_is_decoded_once_for_every_pairing_of_tile_chip_and_overlap(
    tmp_path: Path, refer: Refer, tile: int, size: int, share: float
) -> None:
    pixels = np.add.outer(np.arange(2100), np.arange(2300)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(tile, tile), compression="zlib")
    (task,) = slide_tasks(lake_at(tmp_path), 1, (refer(tmp_path / "a.tif", size, int(size * share)),), LIMIT)
    done = cut_slide(task)
    assert done.rejection is None
    assert done.tiles_decoded == -(-2100 // tile) * -(-2300 // tile)


HOSTILE = {
    "jpeg_tile_cut_short.tif": "pixels cannot be decoded",
    "one_tile_named_25_times_419mpx.tif": "25 of 25 tiles are the same bytes",
    "progressive_400_scans.tif": "scans, above 100",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_the_shared_hostile_files_are_refused_each_by_its_reason(
    tmp_path: Path, refer: Refer, slides_folder: Path, name: str
) -> None:
    assert HOSTILE[name] in str(cut(tmp_path, refer(slides_folder.parent / "odd/imaging" / name, 256)).rejection)
