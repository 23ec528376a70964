"""Read the arrays of a set: a sample by one pread, at the place that the shard's index names, compared with its CRC32C.

For Dask and xarray, which open Zarr themselves, there is the store's path and what the rows say of each sample.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.training.array_rules import ArrayEntry
from pipelines.training.manifest import Manifest
from pipelines.training.payloads import PayloadCheck
from pipelines.training.sample import RowSource, Sample
from pipelines.training.set_files import SetFiles
from pipelines.training.shard_files import ShardFiles

Int64s = npt.NDArray[np.int64]
_CRC_BYTES = 4
_PLACE = np.dtype("<u8")


class ArraySample(Sample):
    """A sample of a set of arrays: `array` is a window (steps, channels) or pixels (height, width, channels).

    `mask` is True where a window has a value; None for pixels.
    """

    __slots__ = ("array", "mask")

    def __init__(self, index: int, array: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None, rows: RowSource) -> None:
        super().__init__(index, None, rows)
        self.array = array
        self.mask = mask

    def __reduce__(self) -> Any:
        _, (index, _, columns) = super().__reduce__()
        return ArraySample, (index, self.array, self.mask, columns)

    def __repr__(self) -> str:
        return f"<Sample {self.index}: {self.array.dtype} {self.array.shape}>"


@dataclass(slots=True)
class _Shard:
    """Where the inner chunks of an open shard lie, and which of them were compared with their CRC32C."""

    offsets: list[int]
    is_checked: bytearray


class ArrayFile:
    """One Zarr array of a split. Shards are opened on first use; nothing open goes along in a pickle."""

    def __init__(self, files: SetFiles, manifest: Manifest, entry: ArrayEntry, check: PayloadCheck) -> None:
        self._parts = (files, manifest, entry, check)
        self._entry = entry
        self._check = check
        self._name = f"{files.folder / entry.path}"
        self._shape = entry.shape[1:]
        self._dtype = np.dtype(entry.dtype)
        self._sample_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        self._chunk_bytes = self._sample_bytes * entry.chunk_rows
        prefix = f"{entry.path}/c/"
        self._entries = tuple(file for file in manifest.array_files if file.path.startswith(prefix))
        self._files = ShardFiles(files, self._entries)
        self._shards: dict[int, _Shard] = {}

    def __reduce__(self) -> tuple[type["ArrayFile"], tuple[SetFiles, Manifest, ArrayEntry, PayloadCheck]]:
        return ArrayFile, self._parts

    def read(self, index: int) -> npt.NDArray[Any]:
        """The sample of a number.

        Raises:
            CorruptLakeError: the shard is missing or cut, or the bytes are not those that were written.
        """
        number, row = divmod(index, self._entry.shard_rows)
        chunk, at = divmod(row, self._entry.chunk_rows)
        opened = self._files.descriptor(number)
        shard = self._shards.get(number) or self._opened(number)
        offset = shard.offsets[chunk]
        if self._check is PayloadCheck.NEVER or (self._check is PayloadCheck.FIRST and shard.is_checked[chunk]):
            body = _exactly(opened.number, offset + at * self._sample_bytes, self._sample_bytes, self._name)
            return np.frombuffer(body, self._dtype).reshape(self._shape)
        body = _exactly(opened.number, offset, self._chunk_bytes + _CRC_BYTES, self._name)
        _check_crc(body, f"{self._name}: chunk {chunk} of shard {number}")
        shard.is_checked[chunk] = 1
        start = at * self._sample_bytes
        return np.frombuffer(body[start : start + self._sample_bytes], self._dtype).reshape(self._shape)

    def read_into(self, indexes: list[int], block: npt.NDArray[Any]) -> None:
        """The samples of these numbers, into (samples, ...) of the array's own type; raises as `read`."""
        entry, size = self._entry, self._sample_bytes
        never, first = self._check is PayloadCheck.NEVER, self._check is PayloadCheck.FIRST
        rows = block.reshape(-1).view(np.uint8).data
        for at, index in enumerate(indexes):
            number, row = divmod(index, entry.shard_rows)
            chunk, place = divmod(row, entry.chunk_rows)
            shard = self._shards.get(number)
            is_known = shard is not None and (never or (first and shard.is_checked[chunk]))
            if shard is None or not is_known:
                block[at] = self.read(index)
                continue
            opened = self._files.descriptor(number)
            into = rows[at * size : (at + 1) * size]
            # Straight into the batch: a window is copied once.
            if os.preadv(opened.number, (into,), shard.offsets[chunk] + place * size) != size:
                block[at] = self.read(index)

    def _opened(self, number: int) -> _Shard:
        """Read the index at the shard's end, which names where each chunk lies."""
        opened, file = self._files.descriptor(number), self._entries[number]
        chunks = self._entry.shard_rows // self._entry.chunk_rows
        size = chunks * 16 + _CRC_BYTES
        body = _exactly(opened.number, max(0, file.bytes - size), size, self._name)
        _check_crc(body, f"{self._name}: the index of shard {number}")
        places = np.frombuffer(body[:-_CRC_BYTES], _PLACE).reshape(chunks, 2)
        used = places[: -(-file.rows // self._entry.chunk_rows)]
        if (used[:, 1] != self._chunk_bytes + _CRC_BYTES).any():
            raise CorruptLakeError(f"{self._name}: shard {number} has chunks of another size; run `set verify`")
        self._shards[number] = _Shard(places[:, 0].tolist(), bytearray(chunks))
        return self._shards[number]


class ArrayReader:
    """The arrays of one split, sample by sample or in batches."""

    def __init__(self, files: SetFiles, manifest: Manifest, split: str, check: PayloadCheck) -> None:
        entries = manifest.arrays.of_split(split) if manifest.arrays else ()
        self.entries = entries
        self._files = tuple(ArrayFile(files, manifest, entry, check) for entry in entries)

    def sample(self, index: int, rows: RowSource) -> ArraySample:
        """One sample with its arrays."""
        first = self._files[0].read(index)
        return ArraySample(index, first, self._files[1].read(index) if len(self._files) > 1 else None, rows)

    def samples(self, indexes: Int64s, rows: RowSource) -> Iterator[ArraySample]:
        """These samples, in their order."""
        return (self.sample(index, rows) for index in indexes.tolist())

    def batch(self, indexes: Int64s) -> dict[str, npt.NDArray[Any]]:
        """The arrays of these samples, by name, samples first."""
        found: dict[str, npt.NDArray[Any]] = {}
        for entry, file in zip(self.entries, self._files, strict=True):
            block = np.empty((len(indexes), *entry.shape[1:]), entry.dtype)
            file.read_into(indexes.tolist(), block)
            found[entry.name] = block
        return found

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The arrays' names; the first holds the values."""
        return tuple(entry.name for entry in self.entries)


def _exactly(descriptor: int, offset: int, length: int, name: str) -> bytes:
    body = os.pread(descriptor, length, offset)
    while 0 < len(body) < length and (more := os.pread(descriptor, length - len(body), offset + len(body))):
        body += more
    if len(body) != length:
        raise CorruptLakeError(f"{name}: a shard ends before its chunks do; run `set verify`")
    return body


def _check_crc(body: bytes, what: str) -> None:
    if google_crc32c.value(body[:-_CRC_BYTES]) != int.from_bytes(body[-_CRC_BYTES:], "little"):
        raise CorruptLakeError(f"{what} is not what was written: its CRC32C is another; run `set verify`, restore the set")


def dask_array(files: SetFiles, manifest: Manifest, split: str, name: str = "") -> Any:
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
    return from_zarr(str(_store_path(files, manifest, split) / entry.name), chunks=(max(1, entry.shard_rows), *entry.shape[1:]))


def xarray_dataset(files: SetFiles, manifest: Manifest, split: str, rows: pa.Table) -> Any:
    """The arrays of a split as a Dataset; plain columns of `rows` become coordinates along the samples.

    Raises:
        RefusedError: this set has no arrays, or xarray is not installed.
    """
    entries = _entries(manifest, split)
    try:
        import xarray as xr  # noqa: PLC0415 - not among the dependencies
    except ImportError as error:
        raise RefusedError("to_xarray needs xarray; install it (python -m pip install xarray)") from error
    store = _store_path(files, manifest, split)
    chunks = {entries[0].dimensions[0]: max(1, entries[0].shard_rows)}
    opened = xr.open_zarr(str(store), chunks=chunks, consolidated=False)
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


def _store_path(files: SetFiles, manifest: Manifest, split: str) -> Path:
    """The Zarr store of a split, with all of its files on this machine."""
    for file in manifest.array_files:
        if file.split == split:
            files.path(file.path)
    return files.folder / f"{split}.zarr"


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
