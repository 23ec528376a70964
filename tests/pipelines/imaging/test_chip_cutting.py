"""Slides to chips: pixel for pixel what tifffile decodes, in files that any tool opens."""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import CorruptLakeError
from pipelines.imaging import work
from pipelines.imaging.codecs import jpeg_size
from pipelines.imaging.graph import cut_chips
from pipelines.imaging.store import ChipFile, ChipPlace, SlideRef, chip_schema
from pipelines.imaging.tiling import Grid
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload, write_payload_shard

Refer = Callable[..., SlideRef]
LIMIT = 20_000_000_000


def one(lake: Path, slide: SlideRef, max_pixels: int = LIMIT, run: int = 9) -> ChipFile:
    (result,) = cut_chips(lake_at(lake), run, (slide,), max_pixels)
    return result


def noise(path: Path, shape: tuple[int, ...] = (150, 130, 3), **options: Any) -> Path:
    pixels = np.random.default_rng(1).integers(0, 255, shape, np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb" if len(shape) == 3 else "minisblack", **{"tile": (64, 64), **options})
    return path


def check_against(lake: Path, result: ChipFile, slide: SlideRef, whole: np.ndarray) -> None:
    assert result.rejection is None
    rows = pq.read_table(lake / result.path)
    assert rows.schema == chip_schema()
    assert (result.rows, result.bytes) == (len(rows), (lake / result.path).stat().st_size)
    pixels = whole.reshape(*whole.shape[:2], -1)
    size = slide.spec.size
    grid = Grid(pixels.shape[1], pixels.shape[0], size, slide.spec.overlap)
    array: Any = zarr.open_array(str(lake / rows["zarr_path"][0].as_py()), mode="r")
    assert array.shape == (grid.count, size, size, pixels.shape[2])
    for row in rows.to_pylist():
        x, y, w, h = (row[name] for name in ("x", "y", "width", "height"))
        chip = array[row["chip_index"]]
        assert (chip[:h, :w] == pixels[y : y + h, x : x + w]).all()
        assert not chip[h:].any()
        assert not chip[:, w:].any()
    assert rows["chip_index"].to_pylist() == list(range(grid.count))


def picture(lake: Path, row: dict[str, Any]) -> np.ndarray:
    body = read_payload(lake_at(lake), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])
    assert hashlib.sha256(body).hexdigest() == row["payload_sha256"]
    return np.asarray(Image.open(io.BytesIO(body)))


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "cog_hirise_mars.tif"])
@pytest.mark.parametrize(("size", "overlap"), [(256, 0), (240, 0), (300, 44)])
def test_chips_of_a_real_slide_equal_the_decoded_slide_pixel_by_pixel(
    tmp_path: Path, refer: Refer, slides_folder: Path, name: str, size: int, overlap: int
) -> None:
    slide = refer(slides_folder / name, size, overlap)
    check_against(tmp_path, one(tmp_path, slide), slide, tifffile.imread(slides_folder / name, series=0, level=0))


def test_a_higher_level_is_cut_from_the_pyramid(tmp_path: Path, refer: Refer, slides_folder: Path) -> None:
    path = slides_folder / "cog_hirise_mars.tif"
    slide = refer(path, 128, level=1)
    check_against(tmp_path, one(tmp_path, slide), slide, tifffile.imread(path, series=0, level=1))


def test_several_bands_give_the_same_chips_as_one(tmp_path: Path, refer: Refer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = noise(tmp_path / "a.tif")
    monkeypatch.setattr(work, "MAX_BAND_BYTES", 32 * 32 * 3 * 7)
    slide = refer(path, 32, 5)
    result = one(tmp_path, slide)
    check_against(tmp_path, result, slide, tifffile.imread(path))
    assert len(set(pq.read_table(tmp_path / result.path)["payload_shard"].to_pylist())) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"tile": None, "rowsperstrip": 7},
        {"compression": "zlib", "predictor": True},
        {"compression": "jpeg"},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
)
def test_strips_predictors_jpeg_and_big_tiff_are_read_alike(tmp_path: Path, refer: Refer, options: dict[str, Any]) -> None:
    path = noise(tmp_path / "a.tif", **options)
    slide = refer(path, 50)
    check_against(tmp_path, one(tmp_path, slide), slide, tifffile.imread(path))


def test_exact_pixels_become_png_and_lossy_ones_jpeg(tmp_path: Path, refer: Refer) -> None:
    exact, lossy = noise(tmp_path / "a.tif"), noise(tmp_path / "b.tif", compression="jpeg")
    files = cut_chips(lake_at(tmp_path), 2, (refer(exact, 64), refer(lossy, 64, seq=1)), LIMIT)
    rows = [pq.read_table(tmp_path / file.path).to_pylist()[0] for file in files]
    assert [row["media_type"] for row in rows] == ["image/png", "image/jpeg"]
    assert (picture(tmp_path, rows[0]) == tifffile.imread(exact)[:64, :64]).all()
    assert picture(tmp_path, rows[1]).shape == (64, 64, 3)


def test_gray_images_keep_one_channel_and_blank_ones_are_all_background(tmp_path: Path, refer: Refer) -> None:
    path = tmp_path / "a.tif"
    pixels = np.full((80, 80), 128, np.uint8)
    pixels[:40] = 255
    tifffile.imwrite(path, pixels, tile=(16, 16))
    slide = refer(path, 40)
    result = one(tmp_path, slide)
    check_against(tmp_path, result, slide, pixels)
    assert pq.read_table(tmp_path / result.path)["background"].to_pylist() == [1, 1, 0, 0]


def test_a_slide_inside_a_payload_shard_is_cut_in_place(tmp_path: Path, refer: Refer) -> None:

    path = noise(tmp_path / "a.tif")
    plain = refer(path, 64)
    rows = pa.table({"payload": pa.array([b"neighbour", path.read_bytes(), b"other"], pa.binary())})
    shard = write_payload_shard(tmp_path / "payload/slide/000000000001-0.parquet", rows)
    slide = SlideRef(
        plain.key,
        plain.sha256,
        "payload/slide/000000000001-0.parquet",
        shard.offsets[1].as_py(),
        shard.lengths[1].as_py(),
        plain.spec,
    )
    check_against(tmp_path, one(tmp_path, slide), slide, tifffile.imread(path))


def test_running_again_replaces_what_a_crash_left_by_the_same_files(tmp_path: Path, refer: Refer) -> None:
    path = noise(tmp_path / "a.tif")
    slide = refer(path, 64)
    results, files = [], []
    for _ in range(2):
        results.append(one(tmp_path, slide))
        files.append({str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "/c/" not in str(p)})
        (shard,) = (p for p in tmp_path.glob("chips/slide/s64/*.zarr/c/0/0/0/0"))
        torn = shard.read_bytes()[:1000]
        check_against(tmp_path, results[-1], slide, tifffile.imread(path))
        shard.write_bytes(torn)
    assert results[0] == results[1]
    assert files[0] == files[1]


def test_a_slide_that_cannot_be_cut_is_a_rejection_beside_the_others(tmp_path: Path, refer: Refer) -> None:
    text = tmp_path / "text.tif"
    text.write_bytes(b"II*\0 no more than this")
    other = tmp_path / "photo.jpg"
    other.write_bytes(b"\xff\xd8\xff\xe0 a JPEG")
    wanted = [
        (text, "header"),
        (other, "not a JPEG that can be read"),
        (noise(tmp_path / "a.tif"), None),
    ]
    files = cut_chips(lake_at(tmp_path), 4, tuple(refer(path, 64, seq=i) for i, (path, _) in enumerate(wanted)), LIMIT)
    for number, (file, (_, reason)) in enumerate(zip(files, wanted, strict=True)):
        assert file.key.seq == number
        assert (reason in str(file.rejection) and file.rows == 0 and not file.path) if reason else file.rejection is None


def test_an_image_above_the_limit_is_refused_by_its_header(tmp_path: Path, refer: Refer) -> None:
    assert "above the limit" in str(one(tmp_path, refer(noise(tmp_path / "a.tif"), 64), max_pixels=100).rejection)


def test_a_level_that_is_not_there_is_refused(tmp_path: Path, refer: Refer) -> None:
    assert "no level 3" in str(one(tmp_path, refer(noise(tmp_path / "a.tif"), 64, level=3)).rejection)


def test_a_damaged_tile_refuses_the_slide_and_leaves_no_chips(tmp_path: Path, refer: Refer) -> None:
    path = noise(tmp_path / "a.tif", compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].dataoffsets[4]
    body = bytearray(path.read_bytes())
    body[start : start + 64] = b"\xaa" * 64
    path.write_bytes(body)
    result = one(tmp_path, refer(path, 64))
    assert "cannot be decoded" in str(result.rejection)
    assert [p for p in (tmp_path / "chips").rglob("*") if p.is_file()] == []


def test_a_tile_that_claims_a_huge_picture_is_refused_before_memory_is_taken(tmp_path: Path, refer: Refer) -> None:
    path = noise(tmp_path / "a.tif", compression="jpeg")
    body = path.read_bytes()
    head = body.index(b"\xff\xc0", 8)
    path.write_bytes(body[: head + 5] + b"\xff\xdc\xff\xdc" + body[head + 9 :])
    assert "claims another size" in str(one(tmp_path, refer(path, 64)).rejection)


@given(st.binary(max_size=100))
def test_any_bytes_have_a_jpeg_size_or_none(body: bytes) -> None:
    size = jpeg_size(body)
    assert size is None or min(size) >= 0


def test_a_missing_object_stops_the_run(tmp_path: Path, refer: Refer) -> None:
    slide = refer(noise(tmp_path / "a.tif"), 64)
    (tmp_path / slide.shard).unlink()
    with pytest.raises((CorruptLakeError, RuntimeError), match="cannot be opened"):
        one(tmp_path, slide)


@pytest.mark.parametrize("width", [1, 7, 8, 15])
def test_a_jpeg_tile_with_fewer_pixels_than_the_header_says_is_refused(tmp_path: Path, refer: Refer, width: int) -> None:
    body = bytearray(noise(tmp_path / "a.tif", (40, 40, 3), tile=(16, 16), compression="jpeg").read_bytes())
    frame_head = body.index(b"\xff\xc0")
    body[frame_head + 7 : frame_head + 9] = width.to_bytes(2, "big")
    path = tmp_path / "narrow.tif"
    path.write_bytes(body)
    task = work.SlideTask(lake_at(tmp_path), ChipPlace("slide", "s16", 1, 0), refer(path, 16), 1_000_000)
    assert work.cut_slide(task).rejection is not None


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_slide_is_cut_or_refused_and_never_an_exception(tmp_path: Path, refer: Refer, data: st.DataObject) -> None:
    body = bytearray(
        noise(
            tmp_path / "a.tif", (40, 40, 3), tile=(16, 16), compression=data.draw(st.sampled_from(["jpeg", "zlib"]))
        ).read_bytes()
    )
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated.tif"
    path.write_bytes(body[: data.draw(st.integers(len(body) // 2, len(body)))])
    slide = refer(path, 16)
    task = work.SlideTask(lake_at(tmp_path), ChipPlace("slide", "s16", 1, 0), slide, 1_000_000)
    result = work.cut_slide(task)
    assert (result.rejection is None) == (result.rows > 0)


def test_duckdb_reads_chip_rows_and_pictures_without_our_code(tmp_path: Path, refer: Refer) -> None:
    result = one(tmp_path, refer(noise(tmp_path / "a.tif"), 64))
    joined = duckdb.execute(
        f"select count(*) from '{tmp_path / result.path}' r join '{tmp_path}/chips/slide/s64/*.parquet' p"
        " using (device, epoch, seq, chip_index)"
        " where sha256(p.payload) = r.payload_sha256"
    )
    assert joined.fetchall() == [(result.rows,)]


@pytest.mark.slow
def test_a_satellite_scene_of_648_megapixels_stays_below_one_gibibyte(tmp_path: Path, refer: Refer, slides_folder: Path) -> None:
    slide = refer(slides_folder / "cog_world.tif", 512)
    program = (
        "import resource,sys\nfrom pathlib import Path\nfrom pipelines.imaging.graph import cut_chips\n"
        "from pipelines.lake.lake import lake_at\n"
        "from pipelines.imaging.store import SlideRef\nfrom schemas.contract import ChipSpec\n"
        "from schemas.ids import *\n"
        "root,shard,length=sys.argv[1:]\n"
        "key=SampleKey(DeviceId('sat-1'),StreamName('slide'),1,0)\n"
        "ref=SlideRef(key,Digest(shard[-64:]),shard,0,int(length),ChipSpec('s512',512))\n"
        "file,=cut_chips(lake_at(Path(root)),1,(ref,),10**10)\n"
        "print(file.rows,file.rejection,resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), slide.shard, str(slide.length)], check=True, capture_output=True, text=True
    )
    rows, rejection, peak_kib = done.stdout.split()[-3:]
    assert (int(rows), rejection) == (71 * 36, "None")
    assert int(peak_kib) < 1024 * 1024
