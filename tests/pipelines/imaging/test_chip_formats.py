"""Every format that is claimed, in a file that another program wrote: all pixels, the mask, the place, and the picture of a chip.

`written_by_gdal.zip` was made from generated pixels with rasterio 1.4 (GDAL 3.10); `expected.json` holds what GDAL reads back.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import pyvips
import tifffile
import zarr
from PIL import Image

from pipelines.imaging.graph import cut_chips
from pipelines.imaging.place import Affine
from pipelines.imaging.store import ChipFile, SlideRef
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload

Refer = Callable[..., SlideRef]
LIMIT = 20_000_000_000
ARCHIVE = Path(__file__).parent / "written_by_gdal.zip"
with zipfile.ZipFile(ARCHIVE) as archive:
    GDAL = json.loads(archive.read("expected.json"))
UNLIKE_GDAL = {"jpeg_ycbcr", "mask_jpeg", "cog_mask"}  # libtiff repeats chroma samples where other decoders smooth them
FEW_BITS = {"gray_1bit": 255, "gray_2bit": 85, "gray_4bit": 17}


def cut(lake: Path, slide: SlideRef) -> ChipFile:
    (file,) = cut_chips(lake_at(lake), 1, (slide,), LIMIT)
    return file


def rows_of(lake: Path, file: ChipFile) -> list[dict[str, Any]]:
    assert file.rejection is None, file.rejection
    return list(pq.read_table(lake / file.path).to_pylist())


def assembled(lake: Path, rows: list[dict[str, Any]], plane: int = 0) -> np.ndarray:
    """The chips of a plane put together again."""
    array: Any = zarr.open_array(str(lake / rows[0]["zarr_path"]), mode="r")
    mine = [row for row in rows if row["plane"] == plane]
    whole = np.zeros(
        (max(r["y"] + r["height"] for r in mine), max(r["x"] + r["width"] for r in mine), array.shape[3]), array.dtype
    )
    for r in mine:
        whole[r["y"] : r["y"] + r["height"], r["x"] : r["x"] + r["width"]] = array[r["chip_index"], : r["height"], : r["width"]]
    return whole


def picture(lake: Path, row: dict[str, Any]) -> np.ndarray:
    body = read_payload(lake_at(lake), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])
    if row["media_type"] == "image/tiff":
        return tifffile.imread(io.BytesIO(body))
    return np.asarray(pyvips.Image.new_from_buffer(body, "").numpy())


def gdal_file(folder: Path, name: str) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return Path(archive.extract(f"{name}.tif", folder))


def is_as_said(found: np.ndarray, said: list[Any]) -> bool:
    whole = np.ascontiguousarray(found)
    return said == [list(whole.shape), str(whole.dtype), hashlib.sha256(whole.tobytes()).hexdigest()]


@pytest.mark.parametrize("name", sorted(GDAL))
def test_a_raster_that_gdal_wrote_has_the_pixels_mask_and_place_that_gdal_reads(tmp_path: Path, refer: Refer, name: str) -> None:
    said = GDAL[name]
    rows = rows_of(tmp_path, cut(tmp_path, refer(gdal_file(tmp_path, name), 24)))
    whole = assembled(tmp_path, rows)
    scaled = FEW_BITS.get(name, 1)
    stored = 255 - whole if name == "white_is_zero" else whole // scaled if scaled > 1 else whole
    if name in UNLIKE_GDAL:
        assert (whole == tifffile.imread(tmp_path / f"{name}.tif", series=0, level=0)).all()
    else:
        assert is_as_said(stored.transpose(2, 0, 1), said["pixels"])
    assert is_as_said(mask_of(tmp_path, rows, whole, said), said["mask"])
    first = rows[0]
    assert (first["crs"], first["transform"]) == (said["crs"], said["transform"])
    check_pictures(tmp_path, rows)


def mask_of(lake: Path, rows: list[dict[str, Any]], whole: np.ndarray, said: dict[str, Any]) -> np.ndarray:
    """What GDAL calls the mask of the dataset, from what the rows say."""
    mask = np.full(whole.shape[:2], 255, np.uint8)
    for row in rows:
        x, y, w, h = (row[key] for key in ("x", "y", "width", "height"))
        part = whole[y : y + h, x : x + w]
        if row["mask"] is not None:
            mask[y : y + h, x : x + w] = imagecodecs.png_decode(row["mask"])[:h, :w]
        elif whole.dtype == np.uint8 and whole.shape[2] in (2, 4) and row["valid"] < 1 and said["nodata"] is None:
            mask[y : y + h, x : x + w] = np.where(part[..., -1] > 0, part[..., -1], 0)
        elif row["valid"] < 1:
            gone = np.isnan(part) if said["nodata"] is None else part == said["nodata"]
            mask[y : y + h, x : x + w] = np.where(gone.all(axis=2), 0, 255)
        assert row["valid"] == pytest.approx(np.count_nonzero(mask[y : y + h, x : x + w]) / (w * h))
    return mask


def check_pictures(lake: Path, rows: list[dict[str, Any]]) -> None:
    """The picture of each chip holds its pixels, all of them where it is exact."""
    array: Any = zarr.open_array(str(lake / rows[0]["zarr_path"]), mode="r")
    for row in rows:
        seen, chip = picture(lake, row), np.asarray(array[row["chip_index"]])
        if row["media_type"] == "image/png" and "palette_rgb" in array.attrs:
            table = np.array(array.attrs["palette_rgb"], np.uint8).reshape(-1, 3)
            assert (seen == table[chip[..., 0]]).all()
        elif row["method"] == "exact":
            assert np.array_equal(seen.reshape(chip.shape), chip, equal_nan=chip.dtype.kind == "f")
            assert seen.dtype == chip.dtype
        else:
            assert seen.reshape(chip.shape).shape == chip.shape


@pytest.mark.parametrize("name", ["mask_deflate", "cog_mask"])
def test_an_overview_has_its_own_pixels_mask_and_place(tmp_path: Path, refer: Refer, name: str) -> None:
    if "pixels.1" not in GDAL[name]:
        pytest.skip("this file has no overview")
    said = GDAL[name]
    rows = rows_of(tmp_path, cut(tmp_path, refer(gdal_file(tmp_path, name), 16, level=1)))
    whole = assembled(tmp_path, rows)
    if name in UNLIKE_GDAL:
        assert (whole == tifffile.imread(tmp_path / f"{name}.tif", series=0, level=1)).all()
    else:
        assert is_as_said(whole.transpose(2, 0, 1), said["pixels.1"])
    assert is_as_said(mask_of(tmp_path, rows, whole, said), said["mask.1"])
    full = Affine(*said["transform"])
    assert rows[0]["transform"] == pytest.approx(full.scaled(70 / whole.shape[1], 50 / whole.shape[0]).numbers())


def test_the_footprint_is_the_outline_of_the_chip_in_its_coordinates(tmp_path: Path, refer: Refer) -> None:
    from shapely import from_wkb

    rows = rows_of(tmp_path, cut(tmp_path, refer(gdal_file(tmp_path, "rotated"), 32)))
    assert rows[4]["footprint"] is not None
    row = rows[4]
    outline = from_wkb(row["footprint"])
    a, b, c, d, e, f = row["transform"]
    w, h = row["width"], row["height"]
    assert outline.area == pytest.approx(abs(a * e - b * d) * w * h)
    assert set(outline.exterior.coords) == {(a * x + b * y + c, d * x + e * y + f) for x in (0, w) for y in (0, h)}


RGB: dict[str, Any] = {"photometric": "rgb"}
PLANES: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "imagej_tzc": ({"imagej": True, "metadata": {"axes": "TZCYX"}}, (2, 3, 2, 40, 50), "uint16"),
    "ome_tzc": ({"ome": True, "metadata": {"axes": "TZCYX"}, "tile": (16, 16)}, (2, 3, 2, 40, 50), "uint16"),
    "ome_ctz_rgb": ({"ome": True, "metadata": {"axes": "CTYXS"}, **RGB, "tile": (16, 16)}, (2, 3, 40, 50, 3), "uint8"),
    "ome_planar": ({"ome": True, "metadata": {"axes": "ZSYX"}, **RGB, "planarconfig": "separate"}, (2, 3, 40, 50), "uint8"),
    "shaped": ({}, (3, 40, 50), "float32"),
    "pages": ({"metadata": None}, (4, 40, 50), "int16"),
    "imagej_zlib": ({"imagej": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"}, (3, 40, 50), "uint8"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PLANES))
def test_all_planes_of_a_stack_are_cut_each_with_its_place_and_channels_stay_together(
    tmp_path: Path, refer: Refer, name: str
) -> None:
    options, shape, dtype = PLANES[name]
    pixels = np.random.default_rng(2).integers(0, 120, shape).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, **{"photometric": "minisblack", **options})
    rows = rows_of(tmp_path, cut(tmp_path, refer(path, 32)))
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        axes, read = series.axes, series.asarray()
    first = "".join(axis for axis in axes if axis not in "CYXS")
    order = [axes.index(axis) for axis in (*first, *"YXCS") if axis in axes]
    ordered = read.transpose(order)
    planes = ordered.reshape(-1, 40, 50, int(np.prod(ordered.shape[len(first) + 2 :])))
    assert len(rows) == len(planes) * 4
    for index, plane in enumerate(planes):
        assert (assembled(tmp_path, rows, index) == plane).all()
    places = [(row["z"], row["t"]) for row in rows[::4]]
    wanted = list(np.ndindex(*(series.shape[axes.index(axis)] for axis in first)))
    for (z, t), at in zip(places, wanted, strict=True):
        assert (z, t) == tuple(at[first.index(axis)] if axis in first else None for axis in "ZT")
    check_pictures(tmp_path, rows)


def test_channels_of_an_ome_image_have_their_names_and_its_scale(tmp_path: Path, refer: Refer) -> None:
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": ["DAPI", "GFP"]},
        "PhysicalSizeX": 250.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(
        tmp_path / "a.ome.tif", np.ones((2, 40, 50), np.uint16), photometric="minisblack", ome=True, metadata=metadata
    )
    (row, *_) = rows_of(tmp_path, cut(tmp_path, refer(tmp_path / "a.ome.tif", 64)))
    assert (row["mpp_x"], row["mpp_y"]) == (0.25, 0.5)
    assert zarr.open_array(str(tmp_path / row["zarr_path"])).attrs["channel_names"] == ["DAPI", "GFP"]


VIPS: dict[str, dict[str, Any]] = {
    "jpeg 4:2:0": {"compression": "jpeg", "Q": 75},
    "jpeg 4:4:4": {"compression": "jpeg", "Q": 95},
    "deflate": {"compression": "deflate", "predictor": "horizontal"},
    "lzw": {"compression": "lzw"},
    "webp": {"compression": "webp", "lossless": True},
    "packbits": {"compression": "packbits"},
    "big": {"bigtiff": True},
}


@pytest.mark.parametrize(
    ("kind", "level", "subifd"),
    [*((kind, 0, False) for kind in sorted(VIPS)), ("jpeg 4:2:0", 2, False), ("lzw", 2, True), ("jpeg 4:2:0", 2, True)],
)
def test_each_level_of_a_pyramid_that_libvips_wrote_is_what_libvips_reads(
    tmp_path: Path, refer: Refer, kind: str, level: int, subifd: bool
) -> None:
    y, x = np.mgrid[0:210, 0:300]
    pixels = np.stack([x * y % 251, (x + y) % 256, (3 * x) % 200], axis=-1).astype(np.uint8)
    path = tmp_path / "a.tif"
    image = pyvips.Image.new_from_array(pixels)
    image.tiffsave(
        str(path), tile=True, tile_width=64, tile_height=64, pyramid=True, subifd=subifd, xres=4000, yres=4000, **VIPS[kind]
    )
    where = {"subifd": level - 1} if subifd else {"page": level}
    read = pyvips.Image.tiffload(str(path), **where).numpy()
    rows = rows_of(tmp_path, cut(tmp_path, refer(path, 50, level=level)))
    assert (assembled(tmp_path, rows) == read).all()
    assert rows[-1]["factor_x"] == 300 / read.shape[1]
    assert rows[-1]["level0_x"] == int(rows[-1]["x"] * 300 / read.shape[1])
    assert rows[0]["mpp_x"] == pytest.approx(0.25 * 300 / read.shape[1])


def test_gray_of_16_bits_and_floats_that_libvips_wrote_keep_their_values(tmp_path: Path, refer: Refer) -> None:
    ramp = np.arange(70 * 90).reshape(70, 90)
    for name, dtype in (("a", "uint16"), ("b", "float32"), ("c", "int16")):
        pixels = (ramp - (500 if dtype != "uint16" else 0)).astype(dtype)
        pyvips.Image.new_from_array(pixels).tiffsave(str(tmp_path / name), compression="deflate", tile=True)
        rows = rows_of(tmp_path, cut(tmp_path, refer(tmp_path / name, 64)))
        whole = assembled(tmp_path, rows)
        assert whole.dtype == dtype
        assert (whole[..., 0] == pixels).all()
        check_pictures(tmp_path, rows)


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        ("1", None), ("1", "group4"), ("L", "tiff_lzw"), ("P", None), ("P", "packbits"), ("RGB", "tiff_adobe_deflate"),
        ("RGBA", "tiff_lzw"), ("LA", "tiff_lzw"), ("I;16", "packbits"), ("F", "tiff_adobe_deflate"), ("CMYK", "tiff_lzw"),
    ],
)  # fmt: skip
def test_a_tiff_that_pillow_wrote_has_the_pixels_that_pillow_reads(
    tmp_path: Path, refer: Refer, mode: str, compression: str | None
) -> None:
    base = np.random.default_rng(3).integers(0, 255, (60, 70, 4), np.uint8)
    base[:20] = np.arange(70, dtype=np.uint8)[:, None]
    image = Image.fromarray(base[..., 0]).convert(mode) if mode in "1LP" else _image(base, mode)
    path = tmp_path / "a.tif"
    image.save(path, compression=compression)
    whole = assembled(tmp_path, rows_of(tmp_path, cut(tmp_path, refer(path, 32))))
    wanted = np.asarray(Image.open(path))
    wanted = wanted.astype(np.uint8) * 255 if mode == "1" else wanted
    assert (whole == wanted.reshape(whole.shape)).all()


def _image(base: np.ndarray, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(base[..., 0].astype(np.uint16) * 200)
    if mode == "F":
        return Image.fromarray(base[..., 0].astype(np.float32) / 3 - 20)
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(base[..., k]) for k in (0, 3)])
    return Image.fromarray(base[..., : len(mode)], mode)


@pytest.mark.parametrize("codec", ["33003", "33005", "34712", "50002"])
def test_tiles_of_jpeg_2000_and_jpeg_xl_come_out_as_their_colours(tmp_path: Path, refer: Refer, codec: str) -> None:
    """Tiles by OpenJPEG through Pillow, and by libjxl; the container is tifffile's."""
    pixels = np.random.default_rng(4).integers(0, 255, (64, 96, 3), np.uint8)
    path = tmp_path / "a.tif"
    tiles = [pixels[:32, x : x + 32] for x in (0, 32, 64)] + [pixels[32:, x : x + 32] for x in (0, 32, 64)]
    bodies = [_encoded(tile, codec) for tile in tiles]
    tifffile.imwrite(
        path,
        iter(bodies),
        shape=pixels.shape,
        dtype="uint8",
        tile=(32, 32),
        compression=int(codec),
        photometric="rgb",
        metadata=None,
    )
    whole = assembled(tmp_path, rows_of(tmp_path, cut(tmp_path, refer(path, 48))))
    if codec == "33003":
        there = Image.fromarray(np.asarray(Image.fromarray(pixels).convert("YCbCr")), "YCbCr")
        assert np.abs(whole.astype(int) - np.asarray(there.convert("RGB"))).max() <= 1
    else:
        assert (whole == pixels).all()


def _encoded(tile: np.ndarray, codec: str) -> bytes:
    if codec == "50002":
        return bytes(imagecodecs.jpegxl_encode(tile, lossless=True))
    buffer = io.BytesIO()
    image = Image.fromarray(tile)
    stored = np.asarray(image.convert("YCbCr")) if codec == "33003" else tile
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, "JPEG2000", irreversible=False, mct=0, no_jp2=True)
    return buffer.getvalue()


def test_a_real_fluorescence_image_keeps_its_three_channels_of_16_bits(tmp_path: Path, refer: Refer, slides_folder: Path) -> None:
    path = slides_folder / "hela-cells.tif"
    rows = rows_of(tmp_path, cut(tmp_path, refer(path, 200)))
    assert (assembled(tmp_path, rows) == tifffile.imread(path)).all()
    assert rows[0]["mpp_x"] == pytest.approx(1 / 19.420064)
    check_pictures(tmp_path, rows)


def test_a_tiff_of_a_scanner_that_was_not_tried_is_refused_by_its_name(tmp_path: Path, refer: Refer) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(
            np.zeros((64, 64, 3), np.uint8), tile=(32, 32), photometric="rgb", software="Philips DP v1.0", metadata=None,
            description='<?xml version="1.0" ?><DataObject ObjectType="DPUfsImport"></DataObject>',
        )  # fmt: skip
    assert "of the kind philips" in str(cut(tmp_path, refer(tmp_path / "a.tif", 64)).rejection)
