"""Selected rows put into files by device, so that what needs the rows of a device in time order holds those of a few devices.

Two passes over the streams: one counts rows by device, the other writes. Files follow one another by device, as a sort by device
would put them, so what is made of them file by file is what would be made of all rows at once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.lake import Lake
from pipelines.training.manifest import Source
from pipelines.training.select import Compiler, PinnedStream, pin_stream, policy_compiler, stream_batches

Int64s = npt.NDArray[np.int64]
FILE_ROWS = 2_000_000
_MAX_FILES = 256
_STREAM = pa.field("stream", pa.string())


@dataclass(frozen=True, slots=True)
class RowQuery:
    """Which rows of which streams: `where` as `select_rows` takes it, `versions` by stream, `names` columns of slides to add."""

    streams: tuple[str, ...]
    where: str = ""
    versions: Mapping[str, int] | None = None
    compiler: Compiler = policy_compiler
    names: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class DeviceFiles:
    """Files of rows: all rows of a device are in one of them. `schema` is that of the wanted columns, `full` of all there are."""

    paths: tuple[Path, ...]
    schema: pa.Schema
    full: pa.Schema
    sources: tuple[Source, ...]

    def tables(self) -> Iterator[pa.Table]:
        """The rows of each file; a file goes once it was read. One table without rows where there are none."""
        for path in self.paths:
            with pa.memory_map(str(path)) as source:
                yield pa.ipc.open_stream(source).read_all()
            path.unlink()
        if not self.paths:
            yield self.schema.empty_table()


def rows_by_device(
    lake: Lake, folder: Path, query: RowQuery, columns: Callable[[pa.Schema], list[str]], file_rows: int = FILE_ROWS
) -> DeviceFiles:
    """Put some columns of the selected rows into files.

    Args:
        lake: the lake.
        folder: where the files go.
        query: which rows.
        columns: which columns, of all that there are; `stream` and `device` are always.
        file_rows: about as many rows in a file; more where one device has more, or where that would be too many files.

    Raises:
        NotFoundError: no such stream or version.
        ExpressionError: the condition is not in the language.
        CorruptLakeError: a table cannot be read.
    """
    pinned = {
        stream: pin_stream(lake, stream, (query.versions or {}).get(stream), query.where, query.names) for stream in query.streams
    }
    full = pa.unify_schemas(
        [each.schema.remove_metadata().append(_STREAM) for each in pinned.values()], promote_options="permissive"
    )
    wanted = list(dict.fromkeys((*columns(full), "stream", "device")))
    schema = pa.schema([full.field(name) for name in wanted])
    counts = {stream: _count(lake, query, stream, found) for stream, found in pinned.items()}
    sources: list[Source] = []
    for stream, found in pinned.items():
        rows = sum(counts[stream].values())
        sources.append(Source(stream, found.version, rows))
        if found.slides is not None:
            sources.append(Source(found.slides.stream, found.slides.version, rows))
    devices, file_of = _files_of(counts.values(), file_rows)
    paths = tuple(folder / f"devices-{number:03d}.arrows" for number in range(int(file_of.max(initial=-1)) + 1))
    with ExitStack() as stack:
        writers = [
            stack.enter_context(pa.ipc.new_stream(stack.enter_context(pa.OSFile(str(path), "wb")), schema)) for path in paths
        ]
        # In the order of their names, so that rows of one device and time lie as in a table sorted by its key.
        for stream in sorted(pinned):
            for batch in _batches(lake, query, stream, pinned[stream], [name for name in wanted if name != "stream"]):
                _spread(_conform(batch, stream, schema), devices, file_of, writers)
    return DeviceFiles(paths, schema, full, tuple(sources))


def _batches(lake: Lake, query: RowQuery, stream: str, found: PinnedStream, columns: list[str]) -> Iterator[pa.RecordBatch]:
    slide_version = found.slides.version if found.slides is not None else None
    return stream_batches(
        lake, stream, columns, version=found.version, where=query.where, compiler=query.compiler, slide_version=slide_version
    ).batches


def _count(lake: Lake, query: RowQuery, stream: str, found: PinnedStream) -> dict[str | None, int]:
    counts: dict[str | None, int] = {}
    for batch in _batches(lake, query, stream, found, ["device"]):
        for each in pc.value_counts(batch.column("device")).to_pylist():
            counts[each["values"]] = counts.get(each["values"], 0) + each["counts"]
    return counts


def _files_of(counts: Collection[dict[str | None, int]], file_rows: int) -> tuple[pa.Array, Int64s]:
    """The devices in order, and the number of the file of each; behind them that of rows without a device."""
    total: dict[str | None, int] = {}
    for each in counts:
        for device, rows in each.items():
            total[device] = total.get(device, 0) + rows
    named = sorted(device for device in total if device is not None)
    counted = [*(total[device] for device in named), *((total[None],) if None in total else ())]
    most = max(file_rows, -(-sum(counted) // _MAX_FILES))
    numbers, held, number = np.zeros(len(counted), np.int64), 0, 0
    for at, count in enumerate(counted):
        if held and held + count > most:
            held, number = 0, number + 1
        numbers[at] = number
        held += count
    return pa.array(named, pa.string()), numbers


def _conform(batch: pa.RecordBatch, stream: str, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        pa.array([stream], pa.string()).take(pa.array(np.zeros(len(batch), np.int8)))
        if field.name == "stream"
        else batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _spread(batch: pa.RecordBatch, devices: pa.Array, file_of: Int64s, writers: list[Any]) -> None:
    """Write the rows of a batch to the files of their devices, in their order."""
    if not len(batch):
        return
    place = pc.fill_null(pc.index_in(batch.column("device"), value_set=devices), len(devices))
    numbers = file_of[np.asarray(place.to_numpy(zero_copy_only=False), np.int64)]
    order = np.argsort(numbers, kind="stable")
    rows = batch.take(pa.array(order)) if (np.diff(numbers) < 0).any() else batch
    ordered = numbers[order]
    cuts = [0, *(np.flatnonzero(np.diff(ordered)) + 1).tolist(), len(ordered)]
    for low, high in pairwise(cuts):
        writers[int(ordered[low])].write_batch(rows.slice(low, high - low))
