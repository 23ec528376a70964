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
from pipelines.mining.rows import NO_PLACES, Places, RowFilter, StreamRows
from pipelines.mining.vectors import Float32s, dimensions_of, unit_vectors

Int64s = npt.NDArray[np.int64]
# Below this every vector is compared; a query of so many takes some milliseconds.
LISTS_FROM = 50_000
_FOLDER = "cache/similar"
_FORMAT = "1"
_SUFFIX = ".faiss"
# Of the lists that the vectors are sorted into, a query reads this share: 0.98 of the true neighbours and more were found.
_READ_SHARE = 1 / 24
_LEAST_LISTS_READ = 16
_TRAIN_PER_LIST = 48
_TRAIN_ROUNDS = 6

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
        self._faiss = _library()
        self._rows = rows
        self._column = column
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
        wanted = {self._segment(file) for file in self._rows.files}
        stale = [path for path in self._folder.iterdir() if path not in wanted]
        for path in stale:
            path.unlink(missing_ok=True)
        built = vectors = 0
        for number, file in enumerate(self._rows.files):
            segment = self._open(self._segment(file))
            if segment is None:
                segment = self._build(number)
                built += 1
            vectors += segment.ntotal
            progress(number + 1, len(self._rows.files))
        rows = sum(file.rows for file in self._rows.files)
        return IndexState(len(self._rows.files), built, len(stale), vectors, rows - vectors)

    def search(self, query: Float32s, count: int, only: RowFilter | None = None, *, is_exact: bool = False) -> Places:
        """The places of the vectors that are most alike, the most alike first; the score is the cosine.

        Args:
            query: (dimensions,) of length 1.
            count: how many.
            only: which rows may be found; None: every row.
            is_exact: whether every vector is compared, instead of those of the nearest lists.

        Raises:
            CorruptLakeError: a data file cannot be read.
        """
        found = NO_PLACES
        for number, file in enumerate(self._rows.files):
            segment = self._open(self._segment(file)) or self._build(number)
            if not segment.ntotal:
                continue
            chosen = None if only is None or only.takes_all else self._chosen(number, file, only)
            found = found.joined(self._search_segment(segment, number, query, count, chosen, is_exact=is_exact)).best(count)
        return found

    def _search_segment(self, segment: Any, number: int, query: Float32s, count: int, chosen: Any, *, is_exact: bool) -> Places:
        faiss = self._faiss
        options: dict[str, Any] = {} if chosen is None else {"sel": chosen}
        parameters = faiss.SearchParameters(**options)
        if isinstance(segment, faiss.IndexIVF):
            # What a filter leaves may lie in any list.
            read = segment.nlist if is_exact or chosen is not None else _lists_read(segment.nlist)
            parameters = faiss.SearchParametersIVF(nprobe=read, **options)
        score, row = segment.search(query[None], count, params=parameters)
        there = row[0] >= 0
        hits = row[0][there].astype(np.int64)
        return Places(np.full(len(hits), number, np.int64), hits, score[0][there].astype(np.float64))

    def _chosen(self, number: int, file: LiveFile, only: RowFilter) -> Any:
        allowed = np.zeros(file.rows, bool)
        for block in self._rows.blocks(only.columns, number):
            allowed[block.first : block.first + len(block.rows)] = only.mask(block.rows)
        return self._faiss.IDSelectorBatch(np.flatnonzero(allowed).astype(np.int64))

    def _first_dimensions(self) -> int:
        for block in self._rows.blocks((self._column,)):
            if dimensions := dimensions_of(block.rows.column(0)):
                return dimensions
        raise RefusedError(f"column {self._column} of {self._rows.stream} holds no vector yet")

    def _segment(self, file: LiveFile) -> Path:
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
        segment = _made(self._faiss, rows, units, self._lists_from)
        path = self._segment(self._rows.files[number])
        beside = beside_path(path)
        self._faiss.write_index(segment, str(beside))
        sync_file(beside)
        beside.replace(path)
        sync_folder(path.parent)
        return segment

    def _vectors(self, number: int) -> Iterator[tuple[Int64s, Float32s]]:
        for block in self._rows.blocks((self._column,), number):
            found = unit_vectors(block.rows.column(0), self.dimensions)
            yield found.rows + block.first, found.units


def _made(faiss: Any, rows: Int64s, units: Float32s, lists_from: int) -> Any:
    """A segment of these vectors, each under the number of its row."""
    dimensions = units.shape[1]
    if len(rows) < max(lists_from, 1):
        segment = faiss.IndexIDMap(faiss.IndexFlatIP(dimensions))
    else:
        lists = max(1, round(len(rows) ** 0.5))
        coarse = faiss.IndexFlatIP(dimensions)
        segment = faiss.IndexIVFFlat(coarse, dimensions, lists, faiss.METRIC_INNER_PRODUCT)
        segment.own_fields = True
        coarse.this.disown()
        segment.cp.seed, segment.cp.niter, segment.cp.max_points_per_centroid = 1, _TRAIN_ROUNDS, _TRAIN_PER_LIST
        segment.cp.spherical = True
        # The library prints a warning below 39.
        segment.cp.min_points_per_centroid = 1
        segment.train(units)
    segment.add_with_ids(units, rows)
    return segment


def _lists_read(lists: int) -> int:
    return min(lists, max(_LEAST_LISTS_READ, round(lists * _READ_SHARE)))


def _library() -> Any:
    try:
        import faiss  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise RefusedError("similar needs faiss; install catchment[mining]") from error
    return faiss
