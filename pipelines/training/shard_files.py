"""The shards of a split, open for reads at any place: as many at once as the process may have descriptors."""

import os
import resource
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from threading import Lock

import numpy as np

from pipelines.lake.payload import read_row
from pipelines.training.manifest import FileEntry
from pipelines.training.set_files import Int64s, SetFiles

# Descriptors that stay free for the rest of the process.
_SPARE_DESCRIPTORS = 256
_LEAST_OPEN = 256


class ShardFiles:
    """Descriptors are opened on first use, never shared through a pickle, and closed with the object.

    pread keeps no position, so threads and forked workers may read through the same descriptors.
    """

    def __init__(self, files: SetFiles, shards: tuple[FileEntry, ...]) -> None:
        self._files = files
        self._shards = shards
        self._starts = [0, *accumulate(shard.rows for shard in shards)]
        self._open: OrderedDict[int, Descriptor] = OrderedDict()
        self._max_open = _room_for(len(shards))
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["ShardFiles"], tuple[SetFiles, tuple[FileEntry, ...]]]:
        return ShardFiles, (self._files, self._shards)

    def entry(self, number: int) -> FileEntry:
        """A shard as the manifest lists it."""
        return self._shards[number]

    def start_of(self, number: int) -> int:
        """The row of the split with which a shard begins."""
        return self._starts[number]

    def shard_of(self, index: int) -> int:
        """The number of the shard that holds row `index` of the split."""
        return bisect_right(self._starts, index) - 1

    def shards_of(self, indexes: Int64s) -> Int64s:
        """The numbers of the shards that hold these rows."""
        return np.asarray(np.searchsorted(self._starts, indexes, side="right") - 1, np.int64)

    def descriptor(self, number: int) -> "Descriptor":
        """An open shard; the one opened longest ago closes when its last reader closes it.

        Raises:
            CorruptLakeError: the shard is missing, or has another size than the manifest lists.
            RetryLaterError: the storage is unavailable.
        """
        held = self._open.get(number)
        if held is not None:
            return held
        with self._lock:
            held = self._open.get(number)
            if held is None:
                held = Descriptor(self._files, self._shards[number])
                self._open[number] = held
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            return held

    def reopen(self, number: int) -> None:
        """Have a shard opened again at its next use."""
        with self._lock:
            self._open.pop(number, None)

    def slowly(self, index: int, length: int) -> bytes:
        """The payload of a row through pyarrow: what holds where its offset does not.

        Raises:
            CorruptLakeError: the shard holds no such row.
        """
        number = self.shard_of(index)
        with self._files.open(self._shards[number].path) as shard:
            return read_row(shard, index - self._starts[number], length)


class Descriptor:
    """A descriptor that closes when nobody holds it any more, so no thread reads from a number given to another file."""

    __slots__ = ("number",)

    def __init__(self, files: SetFiles, entry: FileEntry) -> None:
        self.number = -1
        with files.open_shard(entry) as file:
            self.number = os.dup(file.fileno())
        # Samples are read in an order of their own: what lies behind one is not read next.
        os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _room_for(shards: int) -> int:
    """How many shards may be open at once: all of them, if the process may have so many descriptors.

    The soft limit is raised where the hard one allows: reading must not get slower with the number of shards.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = shards + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        if raised > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return shards if soft == resource.RLIM_INFINITY else max(_LEAST_OPEN, min(shards, soft - _SPARE_DESCRIPTORS))
