"""Write the arrays of a training set as Zarr v3: windows from a grid, pixels from payloads; the same bytes each time.

The inner codecs are bytes and CRC32C alone, so a sample lies at a place that follows from its number, and one pread reads it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyvips
import zarr
from zarr.codecs import Crc32cCodec

from catchment.runtime.atomic_files import sync_folder
from pipelines.errors import RefusedError, UnreadableImageError
from pipelines.imaging.picture_loader import open_header, shrink
from pipelines.lake.lake import Lake
from pipelines.lake.reference import sample_label
from pipelines.training.array_rules import ArrayEntry, ArrayPart, PictureRule
from pipelines.training.manifest import FileEntry
from pipelines.training.shards import NAMED_BY, Progress, file_entry
from pipelines.training.window_draft import WindowDraft
from pipelines.training.windows import gather

Int64s = npt.NDArray[np.int64]
SHARD_BYTES = 64 * 1024 * 1024
MAX_SHARD_SAMPLES = 1 << 20
_CHUNK_BYTES = 16 * 1024
_MAX_PIXELS = 200_000_000
_READ_THREADS = 4
# One thread: with several, the chunks of a shard lie in the order in which they were ready, and no two builds are alike.
_CODECS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}
# Gives the arrays' values for rows of a split: name, samples first.
Values = Callable[[slice], dict[str, npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """What one array of a set is like, whatever its split."""

    name: str
    dtype: str
    sample_shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    fill: float

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.sample_shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class WrittenArrays:
    """What was written: the description for the manifest, and every file."""

    part: ArrayPart
    files: tuple[FileEntry, ...]


def write_windows(
    folder: Path, windows: WindowDraft, members: list[tuple[str, Int64s]], progress: Progress, shard_bytes: int = SHARD_BYTES
) -> WrittenArrays:
    """Write the windows of each split as the arrays `windows` and `mask`.

    Args:
        folder: of the set.
        windows: with the files of their values.
        members: the name of each split and the numbers of its windows, in the order in which they are to lie.
        progress: is told each shard.
        shard_bytes: about how large a file may become; as much is held in memory, a few times over.
    """
    rule = windows.rule
    shape, dimensions = (rule.steps, len(rule.columns)), ("window", "step", "channel")
    forms = (
        ArrayForm("windows", "float32", shape, dimensions, float("nan")),
        ArrayForm("mask", "bool", shape, dimensions, 0),
    )
    notes = {"channels": list(rule.columns), "rate_hz": rule.rate_hz, "resample": str(rule.resample), "hole_s": rule.hole_s}
    writer = _ArrayWriter(folder, forms, notes, shard_bytes)
    holes = 0
    assert windows.grid is not None
    grids = windows.grid.mapped(windows.steps, len(rule.columns))
    for split, numbers in members:
        for block in writer.write(split, len(numbers), partial(_windows, grids, windows.first[numbers], rule.steps)):
            holes += int(block["mask"].size - np.count_nonzero(block["mask"]))
            progress.wrote(len(block["mask"]))
    cells = sum(len(numbers) for _, numbers in members) * shape[0] * shape[1]
    part = ArrayPart(tuple(writer.entries), windows=rule, hole_share=holes / cells if cells else 0.0)
    return WrittenArrays(part, tuple(writer.files))


def write_pictures(
    lake: Lake, folder: Path, rule: PictureRule, parts: list[tuple[str, pa.Table]], progress: Progress
) -> WrittenArrays:
    """Write the pictures of each split as the array `pixels`.

    Args:
        lake: the lake that holds the payloads.
        folder: of the set.
        rule: size of the pixels.
        parts: the name of each split and its rows, in order, with the places of their payloads.
        progress: is told each shard.

    Raises:
        RefusedError: a payload is no picture, or has another size than the rule.
        CorruptLakeError: the lake lacks a payload.
    """
    form = ArrayForm("pixels", "uint8", (rule.height, rule.width, rule.channels), ("sample", "y", "x", "channel"), 0)
    writer = _ArrayWriter(folder, (form,), {}, SHARD_BYTES)
    for split, rows in parts:
        for block in writer.write(split, len(rows), partial(_pixels, lake, rows, rule)):
            progress.wrote(len(block["pixels"]))
    return WrittenArrays(ArrayPart(tuple(writer.entries), pictures=rule), tuple(writer.files))


class _ArrayWriter:
    """Writes the arrays of one split after the other, and keeps the description of each array and file."""

    def __init__(self, folder: Path, forms: tuple[ArrayForm, ...], notes: dict[str, Any], shard_bytes: int) -> None:
        self._folder = folder
        self._forms = forms
        self._notes = notes
        self._shard_bytes = shard_bytes
        self.entries: list[ArrayEntry] = []
        self.files: list[FileEntry] = []

    def write(self, split: str, count: int, values: Values) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Write a split, a shard of each array at a time; gives each block that was written, by array."""
        store = self._folder / f"{split}.zarr"
        chunk, shard = _rows_of(self._forms, count, self._shard_bytes)
        with zarr.config.set(_CODECS):
            zarr.create_group(str(store), zarr_format=3, attributes=self._notes)
            arrays = {form.name: _create(store, form, count, chunk, shard) for form in self._forms}
            for low in range(0, count, shard):
                part = slice(low, min(low + shard, count))
                block = values(part)
                for name, array in arrays.items():
                    array[part] = block[name]
                yield block
        for form in self._forms:
            self._describe(form, split, count, chunk, shard)
        self._add(f"{store.name}/zarr.json", split, 0)
        for path in (*sorted((each for each in store.rglob("*") if each.is_dir()), reverse=True), store):
            sync_folder(path)

    def _describe(self, form: ArrayForm, split: str, count: int, chunk: int, shard: int) -> None:
        path, zeros = f"{split}.zarr/{form.name}", "/0" * len(form.sample_shape)
        shape = (count, *form.sample_shape)
        self.entries.append(ArrayEntry(split, form.name, path, shape, form.dtype, form.dimensions, chunk, shard))
        for number, low in enumerate(range(0, count, shard)):
            self._add(f"{path}/c/{number}{zeros}", split, min(shard, count - low))
        self._add(f"{path}/zarr.json", split, 0)

    def _add(self, name: str, split: str, rows: int) -> None:
        self.files.append(msgspec.structs.replace(file_entry(self._folder / name, split, rows), path=name))


def _rows_of(forms: tuple[ArrayForm, ...], count: int, shard_bytes: int) -> tuple[int, int]:
    """Samples of an inner chunk and of a shard: chunks of a few small samples, whole chunks in a shard."""
    size = max(form.sample_bytes for form in forms)
    chunk = max(1, min(_CHUNK_BYTES // size, count))
    most = max(chunk, min(shard_bytes // size, MAX_SHARD_SAMPLES))
    return chunk, min(most, max(count, 1) + chunk - 1) // chunk * chunk


def _create(store: Path, form: ArrayForm, count: int, chunk: int, shard: int) -> zarr.Array[Any]:
    return zarr.create_array(
        store=str(store),
        name=form.name,
        shape=(count, *form.sample_shape),
        dtype=form.dtype,
        chunks=(chunk, *form.sample_shape),
        shards=(shard, *form.sample_shape),
        compressors=[Crc32cCodec()],
        fill_value=form.fill,
        dimension_names=form.dimensions,
        zarr_format=3,
        # A chunk that is left out because it is empty would move those behind it.
        config={"write_empty_chunks": True},
    )


def _windows(grids: dict[str, npt.NDArray[Any]], first: Int64s, steps: int, part: slice) -> dict[str, npt.NDArray[Any]]:
    return {name: gather(grid, first[part], steps) for name, grid in grids.items()}


def _pixels(lake: Lake, whole: pa.Table, rule: PictureRule, part: slice) -> dict[str, npt.NDArray[Any]]:
    """The decoded payloads of some rows."""
    rows = whole.slice(part.start, part.stop - part.start)
    shards, offsets, lengths = (rows.column(name).to_pylist() for name in ("payload_shard", "payload_offset", "payload_length"))
    numbers = rows.column("payload_row").fill_null(0).to_pylist()
    names = [sample_label(*key) for key in zip(*(rows.column(name).to_pylist() for name in NAMED_BY), strict=True)]
    pixels = np.empty((len(rows), rule.height, rule.width, rule.channels), np.uint8)
    view = lake.view()

    def decode(at: int) -> None:
        body = view.payload(shards[at], offsets[at], lengths[at], numbers[at], names[at])
        pixels[at] = _decoded(body, rule, names[at])

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        list(pool.map(decode, range(len(rows))))
    return {"pixels": pixels}


def _decoded(body: bytes, rule: PictureRule, sample: str) -> npt.NDArray[np.uint8]:
    try:
        head = open_header(body, _MAX_PIXELS)
        is_same = (head.width, head.height) == (rule.width, rule.height)
        if not is_same and rule.fit == "exact":
            raise RefusedError(
                f"{sample}: the picture is {head.width} x {head.height} px, not {rule.width} x {rule.height}; choose by size "
                "(--where), or stretch it (--fit resize)"
            )
        image = head if is_same else shrink(body, rule.width, rule.height, _MAX_PIXELS, size="force")
        image = image.flatten() if image.hasalpha() else image
        image = image.colourspace("b-w" if rule.channels == 1 else "srgb").cast("uchar")
        decoded: npt.NDArray[np.uint8] = image.numpy().reshape(rule.height, rule.width, rule.channels)
    except (UnreadableImageError, pyvips.Error) as error:
        raise RefusedError(f"{sample}: {error}; leave it out (--where), or build the set with payloads as they are") from error
    return decoded
