"""The parts that a snapshot is read in: row groups of the streams' files, a bounded amount each, or shards of sets.

Parts follow from the snapshot alone, so the same parts are read whatever the runner and the number of workers.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.training.building.set_source import earlier_shards, read_earlier_shard
from pipelines.training.sample_list import places_in_list
from pipelines.training.select import filter_rows, slides_named, stream_fragments
from pipelines.training.spec import SetSpec, SourceSpec

PART_ROWS = 1_000_000
PART_BYTES = 128 * 1024 * 1024
_FOOTER_THREADS = 8
_OPEN_STREAMS = 16


class FileRef(msgspec.Struct, frozen=True, array_like=True):
    """Some row groups of a file of a stream; of an earlier set a whole shard, without row groups."""

    path: str
    row_groups: tuple[int, ...]


class PartRef(msgspec.Struct, frozen=True, array_like=True):
    """A part: `source` is the place of its stream in the spec."""

    number: int
    source: int
    files: tuple[FileRef, ...]
    rows: int


def plan_parts(lake: Lake, spec: SetSpec, part_rows: int = PART_ROWS) -> tuple[PartRef, ...]:
    """Divide the pinned sources of a spec into parts of at most so many rows. Only footers are read.

    Raises:
        NotFoundError: no such stream or version.
        CorruptLakeError: a file cannot be read.
    """
    parts: list[PartRef] = []
    for place, source in enumerate(spec.sources):
        assert source.version is not None
        if source.set_name:
            for entry in earlier_shards(lake, source):
                parts.append(PartRef(len(parts), place, (FileRef(entry.path, ()),), entry.rows))
            continue
        _, fragments = _fragments(lake, source.stream, source.version)
        for files, rows in _packed(_row_groups(fragments), part_rows):
            parts.append(PartRef(len(parts), place, files, rows))
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The selected rows of a part; `listed`: the places of those that the source lists, if it lists samples."""

    rows: pa.Table
    listed: tuple[int, ...]


def read_part(lake: Lake, spec: SetSpec, part: PartRef, names: Sequence[str]) -> SelectedRows:
    """The selected rows of a part, with the column `stream`.

    Args:
        lake: the lake.
        spec: with a version for each source.
        part: which rows.
        names: the columns that selected rows have; of chips those of their slides are among them, where the spec names any.

    Raises:
        CorruptLakeError: a file cannot be read.
    """
    source = spec.sources[part.source]
    if source.set_name:
        read = [read_earlier_shard(lake, source, file.path) for file in part.files]
        rows = filter_rows(pa.concat_tables(read), source.where)
    else:
        rows = filter_rows(_of_stream(lake, source, part, names), source.where)
        rows = rows.append_column("stream", pa.array([source.stream], pa.string()).take(pa.array([0] * len(rows), pa.int8())))
    if not source.samples:
        return SelectedRows(rows, ())
    place = places_in_list(rows, source.samples)
    return SelectedRows(rows.filter(pa.array(place >= 0)), tuple(np.unique(place[place >= 0]).tolist()))


def _of_stream(lake: Lake, source: SourceSpec, part: PartRef, names: Sequence[str]) -> pa.Table:
    assert source.version is not None
    schema, fragments = _fragments(lake, source.stream, source.version)
    try:
        read = [fragments[file.path].subset(row_group_ids=list(file.row_groups)).to_table(schema=schema) for file in part.files]
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise CorruptLakeError(f"{source.stream}: cannot be read: {error}; restore the missing files") from error
    rows = pa.concat_tables(read) if read else schema.empty_table()
    if source.slide_version is None:
        return rows
    slides = slides_named(lake, source.stream, schema, names, source.slide_version)
    return slides.join(rows) if slides is not None else rows


def _row_groups(fragments: dict[str, Any]) -> Iterator[tuple[str, int, int, int]]:
    """Path, number, rows and bytes of each row group."""
    try:
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            for path, groups in zip(fragments, pool.map(lambda fragment: fragment.row_groups, fragments.values()), strict=True):
                yield from ((path, group.id, group.num_rows, group.total_byte_size) for group in groups)
    except (OSError, pa.ArrowInvalid) as error:
        raise CorruptLakeError(f"a file of a stream cannot be read: {error}; restore it") from error


def _packed(groups: Iterator[tuple[str, int, int, int]], part_rows: int) -> Iterator[tuple[tuple[FileRef, ...], int]]:
    """Row groups put together up to the size of a part; a larger one is a part of its own."""
    held: dict[str, list[int]] = {}
    rows = size = 0
    for path, number, count, amount in groups:
        if held and (rows + count > part_rows or size + amount > PART_BYTES):
            yield _files(held), rows
            held, rows, size = {}, 0, 0
        held.setdefault(path, []).append(number)
        rows += count
        size += amount
    if held:
        yield _files(held), rows


def _files(held: dict[str, list[int]]) -> tuple[FileRef, ...]:
    return tuple(FileRef(path, tuple(numbers)) for path, numbers in held.items())


@lru_cache(maxsize=_OPEN_STREAMS)
def _fragments(lake: Lake, stream: str, version: int) -> tuple[pa.Schema, dict[str, Any]]:
    """A version never changes: it is opened once in a process."""
    return stream_fragments(lake, stream, version)
