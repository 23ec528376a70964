"""The open shards of a split: a bounded number of descriptors, and one pread for each payload."""

import os
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from threading import Lock

from pipelines.errors import CorruptLakeError
from pipelines.lake.payload import pread_exactly, read_row
from pipelines.training.manifest import FileEntry, open_set_file

_MAX_OPEN = 256


class ShardFiles:
    """Descriptors are opened on first use, never shared through a pickle, and closed with the object.

    pread keeps no position, so threads and forked workers may read through the same descriptors.
    """

    def __init__(self, folder: Path, shards: tuple[FileEntry, ...]) -> None:
        self._folder = folder
        self._shards = shards
        self._starts = [0, *accumulate(shard.rows for shard in shards)]
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["ShardFiles"], tuple[Path, tuple[FileEntry, ...]]]:
        return ShardFiles, (self._folder, self._shards)

    def read(self, index: int, offset: int, length: int) -> bytes:
        """The payload of row `index` of the split.

        Raises:
            CorruptLakeError: the shard is missing, or holds something else there.
        """
        number = bisect_right(self._starts, index) - 1
        held = self._open.get(number) or self._descriptor(number)
        value = pread_exactly(held.number, offset, length)
        if value is None:
            with open_set_file(self._folder, self._shards[number].path) as shard:
                return read_row(shard, index - self._starts[number], length)
        return value

    def _descriptor(self, number: int) -> "_Descriptor":
        """Open a shard; the one opened longest ago closes when the last reader lets go of it."""
        with self._lock:
            held = self._open.get(number)
            if held is None:
                held = _Descriptor(self._folder, self._shards[number])
                self._open[number] = held
                if len(self._open) > _MAX_OPEN:
                    self._open.popitem(last=False)
            return held


class _Descriptor:
    """A descriptor that closes when nobody holds it any more, so no thread reads from a number given to another file."""

    __slots__ = ("number",)

    def __init__(self, folder: Path, entry: FileEntry) -> None:
        self.number = -1
        with open_set_file(folder, entry.path) as file:
            found = os.fstat(file.fileno()).st_size
            if found != entry.bytes:
                raise CorruptLakeError(
                    f"{file.name}: {found} bytes where the manifest tells {entry.bytes}; restore the set or build it anew"
                )
            self.number = os.dup(file.fileno())

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
