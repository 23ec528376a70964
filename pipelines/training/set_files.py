"""Where the files of a set are read from: a folder here; `bucket_files.py` has the one for a bucket."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import CorruptLakeError
from pipelines.training.manifest import FileEntry, map_set_file, open_set_file

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Rows of one payload shard: their numbers in the shard, and offset and length of each payload; (rows,) each."""

    entry: FileEntry
    rows: Int64s
    offsets: Int64s
    lengths: Int64s


class RowCache(Protocol):
    """Payload shards of which some rows are on this machine."""

    def hold(self, wanted: ShardRows, every: ShardRows | None = None) -> None:
        """Have rows of a shard here.

        Args:
            wanted: the rows.
            every: all rows of the shard, by offset; then those next to the wanted ones come along.

        Raises:
            CorruptLakeError: the shard is missing, or shorter than the manifest lists.
            RetryLaterError: the storage is unavailable.
        """
        ...

    def forget(self, rows: ShardRows) -> None:
        """Have rows fetched again: what is here is not what was captured."""
        ...

    def is_current(self, descriptor: int) -> bool:
        """Whether an open shard is still the one that `hold` fills."""
        ...


class SetFiles(Protocol):
    """The files of one set. Safe to share between threads, to pickle and to fork."""

    @property
    def folder(self) -> Path:
        """The folder in which whole files are opened."""
        ...

    @property
    def rows(self) -> RowCache | None:
        """What brings single rows of payload shards here; None where all of them are."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a whole file.

        Raises:
            BadReferenceError: it is a link.
            CorruptLakeError: it is missing, or not what the manifest lists.
            RetryLaterError: the storage is unavailable.
        """
        ...

    def map(self, name: str) -> pa.Buffer:
        """Map a whole file into memory. Raises as `open`."""
        ...

    def path(self, name: str) -> Path:
        """The path of a whole file, for what opens by path only. Raises as `open`."""
        ...

    def open_shard(self, entry: FileEntry) -> BinaryIO:
        """Open a shard to read rows at their places; of a bucket's, only the rows that are held. Raises as `open`."""
        ...

    def reading(self, entry: FileEntry) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a file as its home holds it, for a check of its hash. Raises as `open`."""
        ...


_BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The files of a set in a folder."""

    folder: Path

    @property
    def rows(self) -> RowCache | None:
        """None: every row is here."""
        return None

    def open(self, name: str) -> BinaryIO:
        """Open a file."""
        return open_set_file(self.folder, name)

    def map(self, name: str) -> pa.Buffer:
        """Map a file into memory."""
        return map_set_file(self.folder, name)

    def path(self, name: str) -> Path:
        """The path of a file."""
        with self.open(name):
            return self.folder / name

    def open_shard(self, entry: FileEntry) -> BinaryIO:
        """Open a shard, if it has the size that the manifest lists."""
        file = self.open(entry.path)
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            file.close()
            raise CorruptLakeError(
                f"{file.name}: {size} bytes where the manifest lists {entry.bytes}; restore the set or build it again"
            )
        return file

    @contextmanager
    def reading(self, entry: FileEntry) -> Iterator[Iterator[bytes]]:
        """The file, a block at a time."""
        with self.open(entry.path) as file:
            yield iter(lambda: file.read(_BLOCK_BYTES), b"")
