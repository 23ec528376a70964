"""Cut one slide, band after band, each durable before the next: what a killed try leaves is not cut again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import atomic_file, make_folder, write_atomic
from pipelines.errors import UnreadableImageError
from pipelines.imaging.cutting import Chips, Cutter
from pipelines.imaging.facts import Colours
from pipelines.imaging.reader import ImageLevel, open_level
from pipelines.imaging.rows import chip_rows
from pipelines.imaging.scores import COUNTS, band_scores, counts_of, with_tissue
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
from pipelines.imaging.tiling import Band, Grid, bands, chips_per_band
from pipelines.lake.lake import Lake, lake_at
from pipelines.lake.layout import cut_folder
from pipelines.lake.reference import open_referred, sample_label
from schemas.contract import ChipSpec

MAX_BAND_BYTES = 32 * 1024 * 1024
MIN_BAND_BYTES = 1024 * 1024
WANTED_BANDS = 40
MAX_HELD_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SlideTask:
    """One slide of a cut, where its chips go, and the largest image that is looked at."""

    lake: Lake
    place: ChipPlace
    slide: SlideRef
    max_pixels: int


class _TaskFields(msgspec.Struct, frozen=True):
    root: str
    place: ChipPlace
    slide: SlideRef
    max_pixels: int


def encode_task(task: SlideTask) -> bytes:
    """A task as bytes for another process."""
    return msgspec.json.encode(_TaskFields(str(task.lake.root.resolve()), task.place, task.slide, task.max_pixels), enc_hook=str)


def decode_task(body: bytes) -> SlideTask:
    """The task that `encode_task` wrote."""
    fields = msgspec.json.decode(body, type=_TaskFields, dec_hook=as_id)
    return SlideTask(lake_at(Path(fields.root)), fields.place, fields.slide, fields.max_pixels)


def as_id(kind: type, value: Any) -> Any:
    """Ids are texts that check themselves."""
    return kind(value)


def cut_slide(task: SlideTask, note: Callable[[str], None] = lambda _: None) -> ChipFile:
    """Cut a slide, but for the bands that an earlier try has cut.

    Args:
        task: the slide.
        note: called with each step that is done, such as `band 3 of 40`.

    Returns:
        The file of its chip rows, or the reason why it cannot be cut; then nothing of it is left.

    Raises:
        CorruptLakeError: its bytes are gone.
        OSError: the disk refused.
    """
    key, spec = task.slide.key, task.slide.spec.name
    try:
        with _opened(task) as level:
            cutter, planned = _planned(task, level)
            note(f"header; {len(planned)} bands")
            _cut_bands(task, cutter, planned, note)
    except UnreadableImageError as error:
        discard(task.lake, task.place)
        return ChipFile(key, spec, "", 0, 0, str(error))
    done = _write_rows(task, len(planned), has_colours=cutter.facts.colours is Colours.RGB)
    return replace(done, tiles_decoded=cutter.tiles_decoded)


def _cut_bands(task: SlideTask, cutter: Cutter, planned: Sequence[Band], note: Callable[[str], None]) -> None:
    """Cut the bands that are missing. While one is written, the next is cut; no more than these two are in memory."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for band in planned:
            if not _is_cut(task, band.index):
                chips = cutter.cut(band)
                if writing is not None:
                    writing.result()
                writing = writer.submit(_write_band, task, cutter, band, chips)
            note(f"band {band.index + 1} of {len(planned)}")
        if writing is not None:
            writing.result()


def save_result(task: SlideTask, result: ChipFile) -> None:
    """Make durable what became of a slide."""
    make_folder(_result_path(task).parent)
    write_atomic(_result_path(task), msgspec.json.encode(result, enc_hook=str), mode=0o644)


def read_result(task: SlideTask) -> ChipFile | None:
    """What became of a slide at an earlier try; None if it did not come to its end."""
    try:
        return msgspec.json.decode(_result_path(task).read_bytes(), type=ChipFile, dec_hook=as_id)
    except (OSError, msgspec.MsgspecError):
        return None


def _result_path(task: SlideTask) -> Path:
    return task.lake.root / cut_folder(task.place.cut) / f"{task.place.number}.json"


def _planned(task: SlideTask, level: ImageLevel) -> tuple[Cutter, list[Band]]:
    """The grid as bands, with the array that takes them; what cannot be held in memory is refused before a tile is decoded."""
    spec, facts = task.slide.spec, level.facts
    grid = grid_of(spec, facts.width, facts.height)
    sample_bytes = facts.channels * np.dtype(facts.dtype).itemsize
    held = (grid.tall + level.tiles.tile_height) * facts.width * sample_bytes
    if held > MAX_HELD_BYTES:
        raise UnreadableImageError(
            f"one row of {grid.tall} px chips over tiles of {level.tiles.tile_height} rows holds {held} bytes, "
            f"above {MAX_HELD_BYTES}; use smaller chips, or a file with smaller tiles"
        )
    cutter = Cutter(level, grid, spec)
    channels = cutter.facts.channels
    chip_bytes = grid.tall * grid.size * channels * np.dtype(facts.dtype).itemsize
    per_band = chips_per_band(cutter.count, chip_bytes, MAX_BAND_BYTES, MIN_BAND_BYTES, WANTED_BANDS)
    if spec.is_array_kept:
        create_array(task.lake, task.place, (cutter.count, grid.tall, grid.size, channels), per_band, cutter.facts)
    return cutter, list(bands(cutter.count, per_band))


def grid_of(spec: ChipSpec, width: int, height: int) -> Grid:
    """Where the chips of a spec lie on a level.

    Raises:
        UnreadableImageError: none does.
    """
    if spec.left >= width or spec.top >= height:
        raise UnreadableImageError(f"chips begin at ({spec.left}, {spec.top}), outside {width} x {height} px")
    grid = Grid(width, height, spec.size, spec.overlap, spec.height, spec.edge, spec.left, spec.top)
    if not grid.count:
        raise UnreadableImageError(f"no chip of {grid.size} x {grid.tall} px fits into {width} x {height} px; pad at the edge")
    return grid


def _write_band(task: SlideTask, cutter: Cutter, band: Band, chips: Chips) -> None:
    if task.slide.spec.is_array_kept:
        write_pixels(task.lake, task.place, band.index, chips)
    windows = [cutter.grid.window(index % cutter.grid.count) for index in range(band.first, band.end)]
    scores = band_scores(chips.pixels, windows, cutter.facts.colours)
    pictures = write_pictures(task.lake, task.place, task.slide, band.index, chips, scores)
    path = task.lake.root / task.place.band_rows(band.index)
    if not path.parent.is_dir():
        make_folder(path.parent)
    with atomic_file(path, mode=0o644) as file:
        pq.write_table(chip_rows(task.slide, task.place, cutter, band, chips, pictures), file, compression="zstd")


def _write_rows(task: SlideTask, count: int, *, has_colours: bool) -> ChipFile:
    """Put the rows of all bands into one file, a row group for each band, so that few are in memory at once."""
    path = task.lake.root / task.place.rows
    if not path.parent.is_dir():
        make_folder(path.parent)
    rows = 0
    total = sum(counts_of(_band_rows(task, index, [COUNTS]).column(COUNTS)).sum(axis=0) for index in range(count))
    with atomic_file(path, mode=0o644) as file:
        with pq.ParquetWriter(file, chip_schema(), compression="zstd") as writer:
            for table in _gathered(task, count):
                writer.write_table(with_tissue(table, total, has_colours=has_colours))
                rows += len(table)
        size = file.tell()
    return ChipFile(task.slide.key, task.slide.spec.name, task.place.rows, rows, size)


def _gathered(task: SlideTask, count: int, rows_at_once: int = 65_536) -> Iterator[pa.Table]:
    """The rows of all bands in their order, some bands at a time."""
    waiting: list[pa.Table] = []
    for index in range(count):
        waiting.append(_band_rows(task, index))
        if sum(map(len, waiting)) >= rows_at_once:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _is_cut(task: SlideTask, band: int) -> bool:
    """Whether a band is durable; one that an earlier release has left lacks the counts, and is cut again."""
    path = task.lake.root / task.place.band_rows(band)
    return path.exists() and COUNTS in pq.read_schema(path).names


def _band_rows(task: SlideTask, index: int, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(task.lake.root / task.place.band_rows(index), columns=columns, partitioning=None)


def _opened(task: SlideTask) -> AbstractContextManager[ImageLevel]:
    slide = task.slide
    of = sample_label(slide.key.stream, slide.key.device, slide.key.epoch, slide.key.seq)
    file = open_referred(task.lake, slide.shard, of)
    return open_level(file, slide.offset, slide.length, slide.spec, task.max_pixels)
