"""The files of a part in the work folder: its rows in the order of the set, numbers to plan by, and what its groups hold.

A part is there once its summary is: the summary is written last. All files take their names whole, so a worker that is killed,
or one that does an item a second time, leaves nothing that a reader could take for a finished part.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from secrets import token_hex

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import CorruptLakeError
from pipelines.training.grouping import GroupTable

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
BATCH_ROWS = 65_536
# Rows of the array of numbers: after the columns of the order.
GROUP, LENGTH = -2, -1


class PartSummary(msgspec.Struct, frozen=True):
    """What became of a part: rows selected, and rows kept; the rest as `Assembly` counts it.

    `devices`: ascending. `listed`: which samples of the source's list are here.
    """

    number: int
    selected: int
    rows: int
    left_out: dict[str, int]
    lacking: dict[str, int]
    matched: tuple[int, ...]
    torn: int
    unlisted: tuple[str, ...]
    null_rows: int
    classes: tuple[str, ...]
    devices: tuple[str, ...]
    listed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PartBody:
    """What is written of a part.

    `rows`: sorted. `order`: (columns, rows) numbers that the rows are sorted by, the first column first; where it holds the
    number of a device, that is its place among the summary's. `groups` holds the groups of this part alone.
    """

    rows: pa.Table
    order: Int64s
    of_row: Int64s
    lengths: Int64s
    groups: GroupTable


class SortedPart:
    """The files of one part, to be written or read."""

    def __init__(self, work: Path, number: int) -> None:
        self._work = work
        self._number = number

    def __reduce__(self) -> tuple[type["SortedPart"], tuple[Path, int]]:
        return SortedPart, (self._work, self._number)

    def write(self, body: PartBody, summary: PartSummary) -> None:
        """Write all files, the summary last."""
        numbers = np.vstack([body.order, body.of_row, body.lengths]).astype(np.int64, copy=False)
        table = body.groups
        with _whole(self._path("rows.arrow")) as path:
            save_table(path, body.rows)
        with _whole(self._path("numbers.npy")) as path:
            _save(path, numbers)
        with _whole(self._path("pairs.npy")) as path:
            _save(path, np.vstack([table.pair_group, table.pair_class, table.pair_amount]).astype(np.int64, copy=False))
        names = pa.table({"name": table.names, "rows": table.rows})
        with _whole(self._path("groups.arrow")) as path:
            save_table(path, names)
        with _whole(self._path("json")) as path:
            path.write_bytes(msgspec.json.encode(summary))

    @property
    def folder(self) -> Path:
        """The work folder."""
        return self._work

    @property
    def is_done(self) -> bool:
        """Whether the part has been written whole."""
        return self._path("json").exists()

    @cached_property
    def summary(self) -> PartSummary:
        """What became of the part.

        Raises:
            CorruptLakeError: it is not there.
        """
        try:
            return msgspec.json.decode(self._path("json").read_bytes(), type=PartSummary)
        except (OSError, msgspec.MsgspecError) as error:
            raise CorruptLakeError(f"{self._path('json')}: cannot be read: {error}; build the set again") from error

    def group_table(self) -> GroupTable:
        """The groups of the part's rows."""
        named = self._mapped("groups.arrow")
        pairs = np.load(self._path("pairs.npy"))
        summary = self.summary
        names = named.column("name").combine_chunks() if len(named) else pa.array([], pa.string())
        rows = np.asarray(named.column("rows").to_numpy(), np.int64)
        return GroupTable(names, rows, pairs[0], pairs[1], pairs[2], summary.classes, summary.null_rows)

    def numbers(self) -> Int64s:
        """(order columns + 2, rows), mapped: what rows are sorted by, their group in this part, and their payload's bytes."""
        found: Int64s = np.load(self._path("numbers.npy"), mmap_mode="r" if self.summary.rows else None)
        return found

    def rows(self) -> pa.Table:
        """All rows, mapped: nothing is read before it is used."""
        return self._mapped("rows.arrow")

    def kept(self) -> Bools:
        """(rows,) which rows no limit has left out."""
        path = self._path("kept.npy")
        return np.load(path) if path.exists() else np.ones(self.summary.rows, bool)

    @property
    def is_limited(self) -> bool:
        """Whether a limit has been applied."""
        return self._path("kept.npy").exists()

    def keep(self, kept: Bools) -> None:
        """Leave rows out, for good."""
        with _whole(self._path("kept.npy")) as path:
            _save(path, kept)

    def reset(self) -> None:
        """Forget limits and splits: they are decided again."""
        for name in ("kept.npy", "splits.npy"):
            self._path(name).unlink(missing_ok=True)

    def splits(self) -> Int64s:
        """(groups of the part,) the number of the split of each."""
        found: Int64s = np.load(self._path("splits.npy"))
        return found

    def assign(self, splits: Int64s) -> None:
        """Write down the split of each group of the part."""
        with _whole(self._path("splits.npy")) as path:
            _save(path, splits)

    def _mapped(self, name: str) -> pa.Table:
        path = self._path(name)
        try:
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise CorruptLakeError(f"{path}: cannot be read: {error}; build the set again") from error

    def _path(self, ending: str) -> Path:
        return self._work / f"part-{self._number:06d}.{ending}"


def save_table(path: Path, rows: pa.Table) -> None:
    """Write rows as Arrow IPC that can be mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=BATCH_ROWS)


def _save(path: Path, values: npt.NDArray[np.generic]) -> None:
    with path.open("wb") as file:  # a path would be given the ending .npy
        np.save(file, values)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write under, which no other process uses; the file takes its own at the end."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
