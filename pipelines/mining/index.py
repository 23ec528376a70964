"""An index of a stream's embeddings next to the lake: a segment for each data file, found again by that file's name and size.

A data file never changes, so neither does its segment. A query opens the segments of the files that are live now: what has
left the lake is not in them. A segment that is missing or damaged is made again, one whose file is gone is deleted.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from catchment.runtime.atomic_files import beside_path, make_folder, sync_file, sync_folder
from pipelines.errors import RefusedError
from pipelines.lake.commit import LiveFile
from pipelines.mining.rows import NO_PLACES, Places, RowFilter, StreamRows, delete_others
from pipelines.mining.segment import LISTS_FROM, library, made_segment, searched, stored_rows, stored_units, stored_vectors
from pipelines.mining.vectors import Float32s, dimensions_of, unit_vectors

Int64s = npt.NDArray[np.int64]
_FOLDER = "cache/similar"
_FORMAT = "1"
_SUFFIX = ".faiss"
log = structlog.get_logger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class IndexState:
    """What `sync` did. `vectors`: rows of the live files that have one; `without`: those that have none of this length."""

    segments: int
    built: int
    removed: int
    vectors: int
    without: int


class EmbeddingIndex:
    """The index of one embedding column.

    Args:
        rows: the stream.
        column: its embedding column.
        lists_from: segments of at least so many vectors are sorted into lists, of which a query reads a part.

    Raises:
        RefusedError: the library is not installed, or the column holds no vectors.
    """

    def __init__(self, rows: StreamRows, column: str, lists_from: int = LISTS_FROM) -> None:
        self._faiss = library()
        self._rows = rows
        self.column = column
        self._lists_from = lists_from
        self._folder = rows.lake.root / _FOLDER / rows.stream / column
        self.dimensions = self._first_dimensions()

    def sync(self, progress: Progress = lambda _done, _all: None) -> IndexState:
        """Make the segments that are missing, and delete those whose file is not live any more.

        Args:
            progress: is told how many files are done, and how many there are.

        Raises:
            CorruptLakeError: a data file cannot be read.
            OSError: the disk refused.
        """
        make_folder(self._folder)
        deleted = delete_others(self._folder, {self._path(file) for file in self._rows.files})
        built = vectors = 0
        for number, file in enumerate(self._rows.files):
            segment = self._open(self._path(file))
            if segment is None:
                segment = self._build(number)
                built += 1
            vectors += segment.ntotal
            progress(number + 1, len(self._rows.files))
        rows = sum(file.rows for file in self._rows.files)
        return IndexState(len(self._rows.files), built, deleted, vectors, rows - vectors)

    def search(self, queries: Float32s, count: int, only: RowFilter | None = None, *, is_exact: bool = False) -> Places:
        """The places of the vectors that are most like any of the queries, the most alike first; the score is the cosine.

        A place may come once for each query.

        Args:
            queries: (queries, dimensions) or (dimensions,), of length 1.
            count: how many for each query.
            only: which rows may be found; None: every row.
            is_exact: whether every vector is compared, instead of those of the nearest lists.

        Raises:
            CorruptLakeError: a data file cannot be read.
        """
        several = np.atleast_2d(queries)
        most, found = count * len(several), NO_PLACES
        for number in range(len(self._rows.files)):
            segment = self._segment(number)
            if segment.ntotal:
                row, score = searched(segment, several, count, self._chosen(number, only), is_exact=is_exact)
                found = found.joined(Places(np.full(len(row), number, np.int64), row, score)).best(most)
        return found

    def vectors(self, number: int, only: RowFilter | None = None) -> Iterator[tuple[Int64s, Float32s]]:
        """Rows of a file that have a vector, and the vectors, in blocks and in no order.

        Args:
            number: of the file.
            only: which rows are wanted; None: every row.

        Raises:
            CorruptLakeError: the data file cannot be read.
        """
        chosen = self._chosen(number, only)
        for rows, units in stored_vectors(self._segment(number)):
            kept = None if chosen is None else np.isin(rows, chosen)
            yield (rows, units) if kept is None else (rows[kept], units[kept])

    def vector_rows(self, number: int) -> Int64s:
        """The rows of a file that have a vector, in no order."""
        return stored_rows(self._segment(number))

    def units(self, places: Places) -> tuple[npt.NDArray[np.bool_], Float32s]:
        """Which of some places have a vector, and the vectors of those, in their order.

        Raises:
            CorruptLakeError: a data file cannot be read.
        """
        has, units = np.zeros(len(places.row), bool), np.zeros((len(places.row), self.dimensions), np.float32)
        for number in np.unique(places.file).tolist():
            at = np.flatnonzero(places.file == number)
            rows, found = stored_units(self._segment(number), np.unique(places.row[at]))
            if len(rows):
                nearest = np.minimum(np.searchsorted(rows, places.row[at]), len(rows) - 1)
                has[at] = rows[nearest] == places.row[at]
                units[at] = found[nearest]
        return has, units[has]

    def _chosen(self, number: int, only: RowFilter | None) -> Int64s | None:
        """The rows of a file that a filter leaves, ascending; None: all."""
        if only is None or only.takes_all:
            return None
        masks = [only.mask(block.rows) for block in self._rows.blocks(only.columns, number)]
        return np.flatnonzero(np.concatenate(masks)).astype(np.int64) if masks else np.zeros(0, np.int64)

    def _first_dimensions(self) -> int:
        for block in self._rows.blocks((self.column,)):
            if dimensions := dimensions_of(block.rows.column(0)):
                return dimensions
        raise RefusedError(f"column {self.column} of {self._rows.stream} holds no vector yet")

    def _segment(self, number: int) -> Any:
        return self._open(self._path(self._rows.files[number])) or self._build(number)

    def _path(self, file: LiveFile) -> Path:
        named = f"{_FORMAT}\n{self.dimensions}\n{file.path}\n{file.bytes}\n{file.rows}"
        return self._folder / (hashlib.sha256(named.encode()).hexdigest()[:32] + _SUFFIX)

    def _open(self, path: Path) -> Any | None:
        """A segment; None where there is none, or it is damaged: it is then made again."""
        if not path.exists():
            return None
        try:
            segment = self._faiss.read_index(str(path), self._faiss.IO_FLAG_MMAP | self._faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            log.warning("index_segment_damaged", path=str(path), reason=str(error).splitlines()[0][:200])
            return None
        return segment if segment.d == self.dimensions else None

    def _build(self, number: int) -> Any:
        vectors = list(self._vectors(number))
        rows = np.concatenate([found for found, _ in vectors]) if vectors else np.zeros(0, np.int64)
        units = np.concatenate([found for _, found in vectors]) if vectors else np.zeros((0, self.dimensions), np.float32)
        segment = made_segment(rows, units, self._lists_from)
        path = self._path(self._rows.files[number])
        make_folder(path.parent)
        beside = beside_path(path)
        self._faiss.write_index(segment, str(beside))
        sync_file(beside)
        beside.replace(path)
        sync_folder(path.parent)
        return segment

    def _vectors(self, number: int) -> Iterator[tuple[Int64s, Float32s]]:
        for block in self._rows.blocks((self.column,), number):
            found = unit_vectors(block.rows.column(0), self.dimensions)
            yield found.rows + block.first, found.units
