"""Where chip and tile are the same, the stored bytes become the chip, and every decoder sees the colours that the TIFF states."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import pyvips
import tifffile
from PIL import Image

from pipelines.imaging.graph import cut_chips
from pipelines.imaging.store import SlideRef
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload

Refer = Callable[..., SlideRef]
SHAPE = (200, 300)


def photo() -> np.ndarray:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    return np.stack([x % 256, (x + y) % 256, 255 - y], axis=-1).astype(np.uint8)


def rows_of(lake: Path, slide: SlideRef) -> list[dict[str, Any]]:
    (file,) = cut_chips(lake_at(lake), 1, (slide,), 10**9)
    assert file.rejection is None, file.rejection
    rows: list[dict[str, Any]] = pq.read_table(lake / file.path).to_pylist()
    return rows


def body_of(lake: Path, row: dict[str, Any]) -> bytes:
    return read_payload(lake_at(lake), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])


def by_libvips(path: Path, bands: int = 3, **options: Any) -> None:
    pyvips.Image.new_from_array(photo()[..., :bands]).tiffsave(
        str(path), tile=True, tile_width=64, tile_height=64, compression="jpeg", **options
    )


def by_tifffile(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, photo(), tile=(64, 64), compression="jpeg", **options)


WRITERS: dict[str, Callable[[Path], None]] = {
    "ycbcr 4:2:0 of libvips": lambda path: by_libvips(path, Q=75),
    "ycbcr 4:4:4 of libvips": lambda path: by_libvips(path, Q=95),
    "jfif of tifffile": lambda path: by_tifffile(path, photometric="ycbcr", subsampling=(2, 2)),
    "rgb of tifffile": lambda path: by_tifffile(path, photometric="rgb"),
    "gray": lambda path: by_libvips(path, bands=1),
}


def check_passed(lake: Path, rows: list[dict[str, Any]], whole: np.ndarray) -> None:
    assert {row["method"] for row in rows} == {"passed"}
    for row in rows:
        body = body_of(lake, row)
        x, y, w, h = (row[key] for key in ("x", "y", "width", "height"))
        wanted = whole[y : y + h, x : x + w]
        seen = [
            np.asarray(Image.open(io.BytesIO(body))),
            np.asarray(pyvips.Image.new_from_buffer(body, "").numpy()),
            np.asarray(imagecodecs.jpeg8_decode(body)),
        ]
        for picture in seen:
            assert (picture[:h, :w].reshape(wanted.shape) == wanted).all()


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_jpeg_tile_that_is_a_chip_is_passed_and_all_decoders_agree(tmp_path: Path, refer: Refer, name: str) -> None:
    WRITERS[name](tmp_path / "a.tif")
    rows = rows_of(tmp_path, refer(tmp_path / "a.tif", 64))
    check_passed(tmp_path, rows, tifffile.imread(tmp_path / "a.tif"))
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        stored = tiff.pages[0].databytecounts
    assert all(0 <= row["payload_length"] - size < 1_000 for row, size in zip(rows, stored, strict=True))


def test_tiles_of_a_real_aperio_slide_keep_their_red(tmp_path: Path, refer: Refer, slides_folder: Path) -> None:
    path = slides_folder / "CMU-1-Small-Region.svs"
    check_passed(tmp_path, rows_of(tmp_path, refer(path, 240)), tifffile.imread(path, series=0))


def test_tiles_of_a_real_cog_are_passed(tmp_path: Path, refer: Refer, slides_folder: Path) -> None:
    path = slides_folder / "cog_hirise_mars.tif"
    check_passed(tmp_path, rows_of(tmp_path, refer(path, 512)), tifffile.imread(path, series=0, level=0))


def test_jpeg_2000_tiles_are_passed(tmp_path: Path, refer: Refer) -> None:
    whole = photo()[:128, :128]
    bodies = []
    for y, x in ((0, 0), (0, 64), (64, 0), (64, 64)):
        buffer = io.BytesIO()
        Image.fromarray(whole[y : y + 64, x : x + 64]).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
        bodies.append(buffer.getvalue())
    tifffile.imwrite(
        tmp_path / "a.tif", iter(bodies), shape=whole.shape, dtype="uint8", tile=(64, 64), compression=34712, photometric="rgb"
    )
    rows = rows_of(tmp_path, refer(tmp_path / "a.tif", 64))
    assert [body_of(tmp_path, row) for row in rows] == bodies
    assert {(row["method"], row["media_type"]) for row in rows} == {("passed", "image/jp2")}


@pytest.mark.parametrize("other", [{"size": 32}, {"size": 64, "overlap": 8}, {"size": 128}])
def test_chips_that_are_not_tiles_are_encoded_again_and_say_so(tmp_path: Path, refer: Refer, other: dict[str, int]) -> None:
    by_libvips(tmp_path / "a.tif")
    assert {row["method"] for row in rows_of(tmp_path, refer(tmp_path / "a.tif", **other))} == {"re-encoded"}


def test_jfif_tiles_that_the_header_calls_rgb_are_not_passed(tmp_path: Path, refer: Refer) -> None:
    """A decoder that sees the tile alone takes them for YCbCr."""
    by_tifffile(tmp_path / "a.tif", photometric="ycbcr", subsampling=(1, 1))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(2)  # type: ignore[union-attr]
    rows = rows_of(tmp_path, refer(tmp_path / "a.tif", 64))
    assert {row["method"] for row in rows} == {"re-encoded"}
