"""Chips put together are the slide, sample by sample; Dask opens them lazily; viewers get an OME-Zarr pyramid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.imaging.graph import cut_chips
from pipelines.imaging.ome_zarr import mean_of_four, write_pyramid
from pipelines.imaging.store import SlideRef
from pipelines.lake.lake import lake_at

Refer = Callable[..., SlideRef]
WIDTH, HEIGHT = 1_300, 700


def written(path: Path, **options: Any) -> Path:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([x % 251, y % 241, (x * y) % 256], axis=2).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", **options)
    return path


def cut(root: Path, slide: SlideRef) -> pa.Table:
    (file,) = cut_chips(lake_at(root), 1, (slide,), 10**9)
    assert file.rejection is None, file
    return pq.read_table(root / file.path)


def put_together(chips: Any, rows: pa.Table) -> np.ndarray:
    whole = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for row in rows.to_pylist():
        x, y, width, height = (row[name] for name in ("x", "y", "width", "height"))
        whole[y : y + height, x : x + width] = np.asarray(chips[row["chip_index"]])[:height, :width]
    return whole


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
@pytest.mark.parametrize("overlap", [0, 96])
def test_chips_put_together_are_what_tifffile_reads(tmp_path: Path, refer: Refer, compression: str | None, overlap: int) -> None:
    path = written(tmp_path / "a.tif", compression=compression)
    rows = cut(tmp_path, refer(path, 256, overlap))
    chips = zarr.open_array(str(tmp_path / rows["zarr_path"][0].as_py()), mode="r")
    assert np.count_nonzero(put_together(chips, rows) != tifffile.imread(path)) == 0


def test_dask_opens_chips_lazily_and_reads_one_at_a_time(tmp_path: Path, refer: Refer) -> None:
    rows = cut(tmp_path, refer(written(tmp_path / "a.tif"), 256))
    place = tmp_path / rows["zarr_path"][0].as_py()
    chips = dask.array.from_zarr(str(place))
    assert chips.shape == (len(rows), 256, 256, 3)
    wanted = tifffile.imread(tmp_path / "a.tif")[256:512, 256:512]
    index = rows["chip_index"].to_pylist()[[(row["x"], row["y"]) for row in rows.to_pylist()].index((256, 256))]
    assert (chips[index].compute() == wanted).all()
    assert chips.mean(axis=(1, 2, 3)).compute().shape == (len(rows),)


def test_a_pyramid_has_the_pixels_of_the_slide_and_says_where_its_levels_lie(tmp_path: Path, refer: Refer) -> None:
    path = written(tmp_path / "a.tif", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    rows = cut(tmp_path, refer(path, 256, 32))
    target = tmp_path / "a.ome.zarr"
    assert write_pyramid(lake_at(tmp_path), rows, target, "a") == 3
    whole = tifffile.imread(path)
    group: Any = zarr.open_group(str(target), mode="r")
    assert np.count_nonzero(np.asarray(group["0"]).transpose(1, 2, 0) != whole) == 0
    half = np.rint(whole.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(axis=(1, 3))).astype(np.uint8)
    assert np.count_nonzero(np.asarray(group["1"]).transpose(1, 2, 0) != half) == 0
    assert group["2"].shape == (3, HEIGHT // 4, WIDTH // 4)
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    (scales,) = ome["multiscales"]
    assert scales["axes"] == [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    transforms = [level["coordinateTransformations"] for level in scales["datasets"]]
    assert [one["scale"] for one, _ in transforms] == [[1, 0.5, 0.5], [1, 1.0, 1.0], [1, 2.0, 2.0]]
    assert [one["translation"] for _, one in transforms] == [[0, 0, 0], [0, 0.25, 0.25], [0, 0.75, 0.75]]
    with pytest.raises(RefusedError, match="is there already"):
        write_pyramid(lake_at(tmp_path), rows, target, "a")


def test_a_pyramid_needs_the_array_of_its_chips_and_leaves_nothing_behind(tmp_path: Path, refer: Refer) -> None:
    rows = cut(tmp_path, refer(written(tmp_path / "a.tif"), 256))
    (tmp_path / rows["zarr_path"][0].as_py() / "zarr.json").unlink()
    with pytest.raises(CorruptLakeError, match="cut the slide again"):
        write_pyramid(lake_at(tmp_path), rows, tmp_path / "a.ome.zarr", "a")
    nothing = rows.set_column(rows.schema.get_field_index("zarr_path"), "zarr_path", pa.array([""] * len(rows)))
    with pytest.raises(RefusedError, match="have no array"):
        write_pyramid(lake_at(tmp_path), nothing, tmp_path / "a.ome.zarr", "a")
    assert not (tmp_path / "a.ome.zarr").exists()


def test_at_an_odd_edge_the_last_pixels_count_twice() -> None:
    strip = np.array([[[0, 4, 8], [4, 8, 12], [2, 2, 6]]], np.uint8)
    assert mean_of_four(strip).tolist() == [[[4, 10], [2, 6]]]


def test_ome_zarr_reads_the_pyramid(tmp_path: Path, refer: Refer) -> None:
    reader = pytest.importorskip("ome_zarr.reader", reason="ome-zarr is not installed")
    parse_url = pytest.importorskip("ome_zarr.io").parse_url

    path = written(tmp_path / "a.tif")
    write_pyramid(lake_at(tmp_path), cut(tmp_path, refer(path, 256)), tmp_path / "a.ome.zarr", "a")
    (node, *_) = list(reader.Reader(parse_url(str(tmp_path / "a.ome.zarr")))())
    assert [level.shape for level in node.data] == [(3, 700, 1300), (3, 350, 650), (3, 175, 325)]
    assert (np.asarray(node.data[0]).transpose(1, 2, 0) == tifffile.imread(path)).all()
