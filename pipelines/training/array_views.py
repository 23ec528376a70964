"""The arrays of a set for Dask and xarray: both open the Zarr store themselves; here they get its path and names."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from pipelines.errors import RefusedError
from pipelines.training.array_rules import ArrayEntry
from pipelines.training.manifest import Manifest, set_file_path


def dask_array(folder: Path, manifest: Manifest, split: str, name: str = "") -> Any:
    """One array of a split as a Dask array, a shard a block.

    Raises:
        RefusedError: there is no such array, or Dask is not installed.
    """
    entries = _entries(manifest, split)
    entry = next((each for each in entries if each.name == name), None) if name else entries[0]
    if entry is None:
        raise RefusedError(f"no array {name!r}; there are {', '.join(each.name for each in entries)}")
    try:
        from dask.array import from_zarr  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise RefusedError("to_dask needs Dask; install catchment[dask]") from error
    set_file_path(folder, f"{entry.path}/zarr.json")
    return from_zarr(str(folder / entry.path), chunks=(max(1, entry.shard_rows), *entry.shape[1:]))  # type: ignore[no-untyped-call]


def xarray_dataset(folder: Path, manifest: Manifest, split: str, rows: pa.Table) -> Any:
    """The arrays of a split as a Dataset; plain columns of `rows` become coordinates along the samples.

    Raises:
        RefusedError: this set has no arrays, or xarray is not installed.
    """
    entries = _entries(manifest, split)
    try:
        import xarray as xr  # noqa: PLC0415 - not among the dependencies
    except ImportError as error:
        raise RefusedError("to_xarray needs xarray; install it (python -m pip install xarray)") from error
    set_file_path(folder, f"{entries[0].path}/zarr.json")
    chunks = {entries[0].dimensions[0]: max(1, entries[0].shard_rows)}
    opened = xr.open_zarr(str(folder / f"{split}.zarr"), chunks=chunks, consolidated=False)
    sample = entries[0].dimensions[0]
    coordinates: dict[str, Any] = {
        name: (sample, _coordinate(rows.column(name)))
        for name in rows.schema.names
        if not pt.is_nested(rows.schema.field(name).type)
    }
    rule = manifest.arrays.windows if manifest.arrays else None
    if rule is not None:
        coordinates["channel"] = ("channel", list(rule.columns))
        coordinates["step"] = ("step", np.arange(rule.steps) / rule.rate_hz, {"units": "s"})
    return opened.assign_coords(coordinates)


def _entries(manifest: Manifest, split: str) -> tuple[ArrayEntry, ...]:
    entries = manifest.arrays.of_split(split) if manifest.arrays else ()
    if not entries:
        raise RefusedError(f"set {manifest.name} {manifest.version} has no arrays; build it with --format zarr")
    return entries


def _coordinate(column: pa.ChunkedArray) -> Any:
    if pt.is_timestamp(column.type):
        # xarray has no time zones; the lake's times are all UTC.
        column = column.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
    return column.to_numpy()
