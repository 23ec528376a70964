"""The steps of chip cutting as plain functions: plan a slide's bands, cut one band, write a slide's chip rows."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import UnreadableImageError
from pipelines.imaging.reader import Chips, TiffLevel, cut_band, media_type, open_level
from pipelines.imaging.store import (
    ChipFile,
    ChipPlace,
    SlideRef,
    chip_schema,
    create_array,
    discard,
    write_pictures,
    write_pixels,
)
from pipelines.imaging.tiling import Band, Grid, bands, rows_per_band
from pipelines.lake.lake import Lake
from pipelines.lake.payload import PayloadShard
from pipelines.lake.reference import open_referred, sample_label

MAX_BAND_BYTES = 64 * 1024 * 1024
_MAX_SINGLE_ROW_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SlideTask:
    """One slide of a run, and its number there."""

    lake: Lake
    place: ChipPlace
    slide: SlideRef
    max_pixels: int


@dataclass(frozen=True, slots=True)
class BandTask:
    """One band of a slide to be cut."""

    task: SlideTask
    grid: Grid
    band: Band


@dataclass(frozen=True, slots=True)
class Refusal:
    """A slide, or a band of it, that cannot be read."""

    task: SlideTask
    reason: str


@dataclass(frozen=True, slots=True)
class BandRows:
    """The chip rows of a finished band, as an Arrow IPC stream: a pickled table would carry more than its rows."""

    task: SlideTask
    band: int
    body: bytes


def plan_bands(task: SlideTask) -> Iterator[BandTask | Refusal]:
    """Look at the header, create the array, and deal out the bands; or one refusal."""
    spec = task.slide.spec
    try:
        with _opened(task) as level:
            facts = level.facts
        grid = Grid(facts.width, facts.height, spec.size, spec.overlap)
        chip_rows = _chip_rows_per_band(grid, facts.width * facts.channels)
    except UnreadableImageError as error:
        yield Refusal(task, str(error))
        return
    shape = (grid.count, spec.size, spec.size, facts.channels)
    create_array(task.lake, task.place, shape, chip_rows * grid.columns)
    for band in bands(grid, chip_rows):
        yield BandTask(task, grid, band)


def cut(work: BandTask | Refusal) -> BandRows | Refusal:
    """Read, cut and store one band."""
    if isinstance(work, Refusal):
        return work
    task, band = work.task, work.band
    try:
        with _opened(task) as level:
            rows, lossy = level.rows(band.y_low, band.y_high), level.facts.lossy
    except UnreadableImageError as error:
        return Refusal(task, str(error))
    chips = cut_band(rows, work.grid, band, lossy)
    del rows  # half of what a band holds
    write_pixels(task.lake, task.place, band.index, chips)
    shard = write_pictures(task.lake, task.place, task.slide, band.index, chips)
    table = _chip_rows(work, chips, shard, media_type(lossy))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return BandRows(task, band.index, sink.getvalue())


def finish_slide(parts: Iterable[BandRows | Refusal]) -> ChipFile:
    """Write the chip rows of a slide from all its bands; one refused band refuses the slide."""
    found = list(parts)
    task = found[0].task
    key, spec, place = task.slide.key, task.slide.spec.name, task.place
    refusal = next((part for part in found if isinstance(part, Refusal)), None)
    if refusal is not None:
        discard(task.lake, place)
        return ChipFile(key, spec, "", 0, 0, refusal.reason)
    done = sorted((part for part in found if isinstance(part, BandRows)), key=lambda part: part.band)
    table = pa.concat_tables(pa.ipc.open_stream(part.body).read_all() for part in done)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    path = task.lake.root / place.rows
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sink.getvalue(), mode=0o644)
    return ChipFile(key, spec, place.rows, len(table), path.stat().st_size)


def _chip_rows_per_band(grid: Grid, row_bytes: int) -> int:
    if grid.size * row_bytes > _MAX_SINGLE_ROW_BYTES:
        raise UnreadableImageError(
            f"one row of {grid.size} px chips is {row_bytes * grid.size} bytes, above {_MAX_SINGLE_ROW_BYTES}; use smaller chips"
        )
    return max(1, rows_per_band(grid, row_bytes, MAX_BAND_BYTES))


def _opened(task: SlideTask) -> AbstractContextManager[TiffLevel]:
    slide = task.slide
    of = sample_label(slide.key.stream, slide.key.device, slide.key.epoch, slide.key.seq)
    file = open_referred(task.lake, slide.shard, of)
    return open_level(file, slide.offset, slide.length, slide.spec.level, task.max_pixels)


def _chip_rows(work: BandTask, chips: Chips, shard: PayloadShard, media: str) -> pa.Table:
    slide, place = work.task.slide, work.task.place
    count = len(chips.encoded)
    windows = [work.grid.window(chips.first_index + i) for i in range(count)]
    same: dict[str, object] = {
        "device": slide.key.device,
        "epoch": slide.key.epoch,
        "seq": slide.key.seq,
        "event_time": slide.event_time_us,
        "run": place.run,
        "source_sha256": slide.sha256,
        "spec": slide.spec.name,
        "level": slide.spec.level,
        "media_type": media,
        "zarr_path": place.zarr,
        "tags": list(slide.tags),
        "tag_rules": list(slide.tag_rules),
        "payload_shard": place.pictures(work.band.index),
    }
    own: dict[str, object] = {
        "chip_index": range(chips.first_index, chips.first_index + count),
        "x": [window.x for window in windows],
        "y": [window.y for window in windows],
        "width": [window.width for window in windows],
        "height": [window.height for window in windows],
        "background": chips.background,
        "payload_row": range(count),
        "payload_offset": shard.offsets,
        "payload_length": shard.lengths,
        "payload_sha256": [hashlib.sha256(body).hexdigest() for body in chips.encoded],
    }
    schema = chip_schema()
    arrays = [_array(own[field.name] if field.name in own else [same[field.name]] * count, field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: object, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
