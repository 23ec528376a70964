"""Rows of a set in a bucket on their way here: some parts ahead of the reader, several requests at once."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from pipelines.errors import CorruptLakeError
from pipelines.lake.payload import pread_exactly
from pipelines.training.index import SplitIndex
from pipelines.training.set_files import Int64s, RowCache, ShardRows
from pipelines.training.shard_files import ShardFiles

_REQUESTS_AT_ONCE = 8
_PARTS_AHEAD = 4
_PART_ROWS = 256
_PART_BYTES = 8 * 1024 * 1024


class Arrivals:
    """Has rows of payload shards brought here before they are read.

    `in_pieces`: rows next to the wanted ones come along, as they do for an order that stays within a few shards for a while.
    """

    def __init__(self, cache: RowCache, files: ShardFiles, rows: SplitIndex, *, in_pieces: bool) -> None:
        self._cache = cache
        self._files = files
        self._rows = rows
        self._in_pieces = in_pieces
        self._places: dict[int, ShardRows] = {}

    def parts(self, indexes: Int64s) -> Iterator[Int64s]:
        """The same rows, in parts that are here.

        Raises:
            CorruptLakeError: a shard is missing, or shorter than the manifest lists.
            RetryLaterError: the storage is unavailable.
        """
        coming: deque[tuple[Int64s, list[Future[None]]]] = deque()
        for part in self._split(indexes):
            coming.append((part, self._start(part)))
            if len(coming) > _PARTS_AHEAD:
                yield self._arrived(*coming.popleft())
        while coming:
            yield self._arrived(*coming.popleft())

    def expect(self, indexes: Int64s) -> None:
        """Begin to bring rows here; whatever fails will fail again when they are read."""
        for part in self._split(indexes):
            self._start(part)

    def again(self, index: int) -> bytes:
        """A payload fetched again, where what is here was not what was captured.

        Raises:
            CorruptLakeError: the bucket has something else there, too.
        """
        number = self._files.shard_of(index)
        wanted = self._rows_of(number, np.array([index], np.int64))
        self._cache.forget(wanted)
        self._cache.hold(wanted)
        self._files.reopen(number)
        descriptor = self._files.descriptor(number)
        value = pread_exactly(descriptor.number, int(wanted.offsets[0]), int(wanted.lengths[0]))
        if value is None:
            raise CorruptLakeError(f"{wanted.entry.path}: row {wanted.rows[0]} is not where its index names it; restore the set")
        return value

    def _split(self, indexes: Int64s) -> Iterator[Int64s]:
        _, lengths = self._rows.places(indexes)
        numbers = np.maximum(np.cumsum(lengths) // _PART_BYTES, np.arange(len(indexes)) // _PART_ROWS)
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        return (part for part in np.split(indexes, cuts) if len(part))

    def _start(self, part: Int64s) -> list[Future[None]]:
        shards = self._files.shards_of(part)
        pool = _pool(os.getpid())
        return [pool.submit(self._bring, number, part[shards == number]) for number in np.unique(shards).tolist()]

    def _bring(self, number: int, indexes: Int64s) -> None:
        self._cache.hold(self._rows_of(number, indexes), self._all_rows(number) if self._in_pieces else None)

    def _arrived(self, part: Int64s, coming: list[Future[None]]) -> Int64s:
        for one in coming:
            one.result()
        for number in np.unique(self._files.shards_of(part)).tolist():
            if not self._cache.is_current(self._files.descriptor(number).number):
                self._files.reopen(number)
        return part

    def _rows_of(self, number: int, indexes: Int64s) -> ShardRows:
        return ShardRows(self._files.entry(number), indexes - self._files.start_of(number), *self._rows.places(indexes))

    def _all_rows(self, number: int) -> ShardRows:
        known = self._places.get(number)
        if known is None:
            start = self._files.start_of(number)
            indexes = np.arange(start, start + self._files.entry(number).rows, dtype=np.int64)
            known = self._places[number] = self._rows_of(number, indexes)
        return known


@lru_cache(maxsize=1)
def _pool(_pid: int) -> ThreadPoolExecutor:
    """The threads of this process: those of the one it was forked from did not come along."""
    return ThreadPoolExecutor(_REQUESTS_AT_ONCE, "catchment-fetch")
