"""Where a sample lies, by its name: for each data file the hashes of its rows' keys, sorted, next to the lake.

As with the vectors, a data file never changes and so neither does its list; what is missing or damaged is made again. What a
list says is compared with the lake itself, and a sample that no list names is looked for in all rows before it counts as missing.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from catchment.runtime.atomic_files import beside_path, make_folder, sync_file, sync_folder
from pipelines.lake.commit import LiveFile
from pipelines.mining.rows import NO_PLACES, Places, StreamRows, delete_others
from pipelines.training.thin import row_numbers

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
_FOLDER = "cache/keys"
_FORMAT = "1"
_SUFFIX = ".npy"
_OPEN_LISTS = 4_096

log = structlog.get_logger(__name__)


class KeyIndex:
    """The rows of a stream by their names.

    Args:
        rows: the stream.
    """

    def __init__(self, rows: StreamRows) -> None:
        self._rows = rows
        self._folder = rows.lake.root / _FOLDER / rows.stream
        self._opened = lru_cache(maxsize=_OPEN_LISTS)(self._list)

    def sync(self) -> int:
        """Make the lists that are missing, and delete those whose file is not live any more.

        Returns:
            The lists that were deleted.

        Raises:
            CorruptLakeError: a data file cannot be read.
            OSError: the disk refused.
        """
        make_folder(self._folder)
        deleted = delete_others(self._folder, {self._path(file) for file in self._rows.files})
        for number in range(len(self._rows.files)):
            self._opened(number)
        return deleted

    def numbers(self, file: int) -> Uint64s:
        """(rows,) 64 evenly spread bits of each row of a file, from its key alone."""
        hashes, rows = self._opened(file)
        numbers = np.empty(len(rows), np.uint64)
        numbers[rows] = hashes
        return numbers

    def find(self, samples: Sequence[str]) -> Places:
        """The places of samples, in their order, given as `sample_id` gives them or without the stream.

        Raises:
            RefusedError: that is not how a sample is named.
            NotFoundError: one is not in the stream.
        """
        keys = self._rows.keys_of(samples)
        wanted = _hashes(keys)
        found = NO_PLACES
        for number in range(len(self._rows.files)):
            hashes, rows = self._opened(number)
            low, high = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
            for place in np.flatnonzero(high > low).tolist():
                hits = np.asarray(rows[low[place] : high[place]], np.int64)
                found = found.joined(Places(np.full(len(hits), number, np.int64), hits, np.full(len(hits), -float(place))))
        # Ordered by sample: a score is the negated number of one.
        found = found.best(len(found.row))
        first = np.unique(found.score, return_index=True)[1][::-1]
        chosen = Places(found.file[first], found.row[first], found.score[first])
        there = self._rows.fetch(chosen, self._rows.key).cast(keys.schema)
        if len(chosen.row) == len(samples) == len(found.row) and there.equals(keys):
            return chosen
        return self._rows.find(samples)

    def _list(self, number: int) -> tuple[Uint64s, Int64s]:
        """The sorted hashes of a file's rows, and the rows."""
        file = self._rows.files[number]
        found = self._read(self._path(file), file.rows)
        if found is None:
            found = self._make(number)
        return found[0], found[1].view(np.int64)

    def _read(self, path: Path, rows: int) -> Uint64s | None:
        if not path.exists():
            return None
        try:
            found: Uint64s = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            log.warning("key_list_damaged", path=str(path), reason=str(error).splitlines()[0][:200])
            return None
        if found.dtype != np.uint64 or found.shape != (2, rows):
            return None
        # Every row once, or what else stands there is no list of this file.
        is_whole = bool((np.bincount(np.minimum(found[1], rows).view(np.int64), minlength=rows)[:rows] == 1).all())
        return found if is_whole else None

    def _make(self, number: int) -> Uint64s:
        parts = [_hashes(block.rows) for block in self._rows.blocks(self._rows.key, number)]
        hashes = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        found = np.stack((hashes[order], order.astype(np.uint64)))
        path = self._path(self._rows.files[number])
        make_folder(path.parent)
        beside = beside_path(path)
        with beside.open("wb") as file:
            np.save(file, found, allow_pickle=False)
        sync_file(beside)
        beside.replace(path)
        sync_folder(path.parent)
        return found

    def _path(self, file: LiveFile) -> Path:
        named = f"{_FORMAT}\n{file.path}\n{file.bytes}\n{file.rows}"
        return self._folder / (hashlib.sha256(named.encode()).hexdigest()[:32] + _SUFFIX)


def _hashes(keys: pa.Table) -> Uint64s:
    return row_numbers(keys, 0, "name")
