"""Put a slide together from the arrays of its chips as an OME-Zarr 0.5 pyramid, which viewers such as napari open.

A level has half the sides of the one before, each pixel the mean of four; its centre lies where theirs do, which the translation
of the level says (https://ngff.openmicroscopy.org/0.5). A strip of one row of chips is in memory at once.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zarr

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.reference import checked_name

CHUNK_PX = 512
SMALLEST_PX = 512
_RGB = ("FF0000", "00FF00", "0000FF")
_Strip = npt.NDArray[Any]


def write_pyramid(lake: Lake, rows: pa.Table, target: Path, name: str) -> int:
    """Write the pyramid of one slide.

    Args:
        lake: the lake.
        rows: all chips of one slide, one spec and one plane.
        target: a folder that is not there yet.
        name: of the picture, for viewers.

    Returns:
        The number of levels.

    Raises:
        RefusedError: the folder is there, or the chips have no array.
        CorruptLakeError: the array is gone.
    """
    if target.exists():
        raise RefusedError(f"{target}: is there already; name a new folder")
    chips = _chips(lake, rows)
    try:
        group = zarr.open_group(str(target), mode="w", zarr_format=3)
        levels = [_full_level(group, chips, rows)]
        while max(levels[-1].shape[1:]) > SMALLEST_PX:
            levels.append(_halved(group, levels[-1], len(levels)))
        group.attrs["ome"] = _metadata(rows, levels, name)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return len(levels)


def _chips(lake: Lake, rows: pa.Table) -> Any:
    """The array (chips, y, x, channels) of the slide."""
    paths = set(rows.column("zarr_path").to_pylist())
    if len(paths) != 1 or not (path := paths.pop()):
        raise RefusedError("these chips have no array to put a pyramid together from; cut the slide again with arrays")
    place = lake.root / checked_name(path, "the chips of a slide")
    try:
        return zarr.open_array(str(place), mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise CorruptLakeError(f"{place}: the array of chips cannot be read ({error}); cut the slide again") from error


def _new_level(group: Any, number: int, shape: tuple[int, ...], dtype: Any) -> Any:
    chunks = (shape[0], min(CHUNK_PX, shape[1]), min(CHUNK_PX, shape[2]))
    return group.create_array(str(number), shape=shape, chunks=chunks, dtype=dtype, dimension_names=["c", "y", "x"])


def _full_level(group: Any, chips: Any, rows: pa.Table) -> Any:
    """The pixels as they were cut: a row of chips after the other, each as far as it lies inside the slide."""
    columns = {name: rows.column(name).to_numpy() for name in ("chip_index", "x", "y", "width", "height")}
    width, height = (int((columns[at] + columns[side]).max()) for at, side in (("x", "width"), ("y", "height")))
    level = _new_level(group, 0, (chips.shape[3], height, width), chips.dtype)
    for top in np.unique(columns["y"]):
        at = np.flatnonzero(columns["y"] == top)
        tall = int(columns["height"][at].max())
        strip = np.zeros((tall, width, chips.shape[3]), chips.dtype)
        for one in at:
            left, wide = int(columns["x"][one]), int(columns["width"][one])
            strip[:, left : left + wide] = chips[int(columns["chip_index"][one])][:tall, :wide]
        level[:, int(top) : int(top) + tall] = strip.transpose(2, 0, 1)
    return level


def _halved(group: Any, before: Any, number: int) -> Any:
    channels, height, width = before.shape
    level = _new_level(group, number, (channels, -(-height // 2), -(-width // 2)), before.dtype)
    for top in range(0, height, 2 * CHUNK_PX):
        strip = before[:, top : top + 2 * CHUNK_PX]
        level[:, top // 2 : top // 2 + -(-strip.shape[1] // 2)] = mean_of_four(strip)
    return level


def mean_of_four(strip: _Strip) -> _Strip:
    """Half the sides of (channels, rows, columns); at an odd edge the last pixels count twice."""
    even = np.pad(strip, ((0, 0), (0, strip.shape[1] % 2), (0, strip.shape[2] % 2)), mode="edge")
    wide = even.astype(np.float64)
    mean = (wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]) / 4
    return np.asarray(mean if np.issubdtype(strip.dtype, np.floating) else np.rint(mean)).astype(strip.dtype)


def _metadata(rows: pa.Table, levels: list[Any], name: str) -> dict[str, Any]:
    """The group's attributes: axes, and for each level its scale and where its first pixel's centre lies."""
    known = [rows.column(each)[0].as_py() if each in rows.schema.names else None for each in ("mpp_y", "mpp_x")]
    unit = {"unit": "micrometer"} if None not in known else {}
    pixel = [float(each) for each in known if each is not None] if unit else [1.0, 1.0]
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, *(2.0**number * each for each in pixel)]},
                {"type": "translation", "translation": [0.0, *((2.0**number - 1) / 2 * each for each in pixel)]},
            ],
        }
        for number in range(len(levels))
    ]
    axes = [{"name": "c", "type": "channel"}, *({"name": each, "type": "space", **unit} for each in ("y", "x"))]
    described: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [{"name": name, "axes": axes, "datasets": datasets, "type": "mean"}],
    }
    if levels[0].shape[0] == len(_RGB) and levels[0].dtype == np.uint8:
        window = {"start": 0, "min": 0, "end": 255, "max": 255}
        described["omero"] = {"channels": [{"color": colour, "window": window, "active": True} for colour in _RGB]}
    return described
