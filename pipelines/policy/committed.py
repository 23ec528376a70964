"""Rows of a stream as they lie in the lake: a sample of them, all of them in blocks, or the one of a key."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from random import Random
from threading import get_ident

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.lake.commit import LiveFile, live_files
from pipelines.lake.lake import Lake
from pipelines.lake.layout import stream_table
from pipelines.lake.workplace import workplace

KEY = ("device", "epoch", "seq")
REFERENCES = ("payload_shard", "payload_row", "payload_offset", "payload_length", "payload_sha256")


def row_count(lake: Lake, stream: str) -> int:
    """Count the rows of a stream.

    Raises:
        NotFoundError: there is no such stream.
    """
    return sum(file.rows for file in _files(lake, stream))


def blocks(lake: Lake, stream: str, columns: Collection[str], limit: int | None, seed: int = 0) -> Iterator[pa.Table]:
    """Rows in blocks of a row group, each with those of the columns that it has.

    Args:
        lake: the lake.
        stream: the stream.
        columns: what to read.
        limit: about how many rows, of row groups drawn from the whole stream; None for every row, in the files' order.
        seed: which ones.

    Raises:
        NotFoundError: there is no such stream.
        CorruptLakeError: a file cannot be read.
    """
    files = list(_files(lake, stream))
    if limit is not None:
        Random(seed).shuffle(files)  # noqa: S311  # which rows are looked at is no secret
    left = limit
    with workplace(lake, _look()) as there:
        for number, file in enumerate(files):
            share = None if left is None else max(1, left // (len(files) - number))
            path = there.view().file(stream_table(stream), file.path)
            for block in _read(path, columns, share, seed):
                yield block
                left = None if left is None else left - block.num_rows
            there.evict([path])
            if left is not None and left <= 0:
                return


def sample_row(lake: Lake, stream: str, sample: str) -> pa.Table:
    """The one row of a sample `device/epoch/seq`.

    Raises:
        RefusedError: that is not how a sample is named.
        NotFoundError: there is no such stream or sample.
        CorruptLakeError: a file cannot be read.
    """
    steps = sample.split("/")
    if len(steps) != len(KEY) or not steps[1].isdecimal() or not steps[2].isdecimal():
        raise RefusedError(f"a sample is named device/epoch/seq, such as car-1/7/42, not {sample[:80]!r}")
    wanted = (pc.field("device") == steps[0]) & (pc.field("epoch") == int(steps[1])) & (pc.field("seq") == int(steps[2]))
    with workplace(lake, _look()) as there:
        for file in _files(lake, stream):
            path = there.view().file(stream_table(stream), file.path)
            try:
                found = pq.read_table(path, filters=wanted, partitioning=None)
            except (pa.ArrowException, OSError) as error:
                raise CorruptLakeError(f"{path}: cannot be read ({error}); restore it") from error
            if found.num_rows:
                return found.slice(0, 1)
    raise NotFoundError(f"stream {stream} has no sample {sample}")


def _look() -> str:
    """A place of this look alone: of a remote lake the files that it reads are fetched there."""
    return f"look-{os.getpid()}-{get_ident()}"


def _files(lake: Lake, stream: str) -> tuple[LiveFile, ...]:
    table = lake.view().table(stream_table(stream))
    if table is None:
        raise NotFoundError(f"there is no stream {stream!r} in {lake.root}; `catchment streams` lists them")
    return live_files(table)


def _read(path: Path, columns: Collection[str], share: int | None, seed: int) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name in columns]
            groups = list(range(file.num_row_groups))
            if share is not None:
                Random(seed).shuffle(groups)  # noqa: S311  # likewise
            for group in groups:
                block = file.read_row_group(group, columns=names)
                if share is None:
                    yield block
                    continue
                step = max(1, block.num_rows // share)
                picked = block.take(pa.array(range(0, block.num_rows, step))) if step > 1 else block
                yield picked.slice(0, share)
                share -= min(share, picked.num_rows)
                if not share:
                    return
    except (pa.ArrowException, OSError) as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error}); restore it") from error
