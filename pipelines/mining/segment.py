"""One data file's vectors as a FAISS index: made, searched by several queries at once, and read back."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import RefusedError
from pipelines.mining.vectors import Float32s

Int64s = npt.NDArray[np.int64]
# Below this every vector is compared; a query of so many takes some milliseconds.
LISTS_FROM = 50_000
# Of the lists that the vectors are sorted into, a query reads this share: 0.98 of the true neighbours and more were found.
_READ_SHARE = 1 / 24
_LEAST_LISTS_READ = 16
_TRAIN_PER_LIST = 48
_TRAIN_ROUNDS = 6
_BLOCK_ROWS = 8_192


def library() -> Any:
    """FAISS.

    Raises:
        RefusedError: it is not installed.
    """
    try:
        import faiss  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise RefusedError("similar and rare need faiss; install catchment[mining]") from error
    return faiss


def made_segment(rows: Int64s, units: Float32s, lists_from: int) -> Any:
    """A segment of these vectors, each under the number of its row.

    Args:
        rows: (vectors,) numbers of their rows.
        units: (vectors, dimensions) of length 1.
        lists_from: so many vectors and more are sorted into lists, of which a query reads a part.
    """
    faiss, dimensions = library(), units.shape[1]
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


def searched(
    segment: Any, queries: Float32s, count: int, allowed: Int64s | None, *, is_exact: bool
) -> tuple[Int64s, npt.NDArray[np.float64]]:
    """Rows of a segment that are most like any of the queries, and their cosines; a row may come once for each query.

    Args:
        segment: the index.
        queries: (queries, dimensions) of length 1.
        count: rows for each query.
        allowed: rows that may be found; None: every row.
        is_exact: whether every vector is compared, instead of those of the nearest lists.
    """
    faiss = library()
    options: dict[str, Any] = {} if allowed is None else {"sel": faiss.IDSelectorBatch(allowed)}
    parameters = faiss.SearchParameters(**options)
    if isinstance(segment, faiss.IndexIVF):
        # What a filter leaves may lie in any list.
        read = segment.nlist if is_exact or allowed is not None else _lists_read(segment.nlist)
        parameters = faiss.SearchParametersIVF(nprobe=read, **options)
    score, row = segment.search(queries, count, params=parameters)
    there = row >= 0
    return row[there].astype(np.int64), score[there].astype(np.float64)


def stored_vectors(segment: Any) -> Iterator[tuple[Int64s, Float32s]]:
    """The vectors of a segment, in blocks: (vectors,) rows and (vectors, dimensions) values, in the segment's own order."""
    faiss = library()
    if not isinstance(segment, faiss.IndexIVF):
        rows, flat = stored_rows(segment), faiss.downcast_index(segment.index)
        units = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(-1, flat.d)
        for low in range(0, len(rows), _BLOCK_ROWS):
            yield rows[low : low + _BLOCK_ROWS], units[low : low + _BLOCK_ROWS]
        return
    held: list[tuple[Int64s, Float32s]] = []
    for number in range(segment.nlist):
        held.append(_list_of(segment, number))
        if sum(len(rows) for rows, _ in held) >= _BLOCK_ROWS:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def stored_rows(segment: Any) -> Int64s:
    """(vectors,) the rows of a segment's vectors, in the order of `stored_vectors`."""
    faiss = library()
    if not isinstance(segment, faiss.IndexIVF):
        return np.asarray(faiss.vector_to_array(segment.id_map), np.int64)
    return np.concatenate([_list_of(segment, number)[0] for number in range(segment.nlist)])


def stored_units(segment: Any, rows: Int64s) -> tuple[Int64s, Float32s]:
    """Of some ascending rows those that have a vector, ascending, and their vectors."""
    found: list[tuple[Int64s, Float32s]] = [(np.zeros(0, np.int64), np.zeros((0, segment.d), np.float32))]
    for there, units in stored_vectors(segment):
        hit = np.isin(there, rows)
        if hit.any():
            found.append((there[hit], units[hit]))
    joined, units = _joined(found)
    order = np.argsort(joined)
    return joined[order], units[order]


def _list_of(segment: Any, number: int) -> tuple[Int64s, Float32s]:
    faiss, lists = library(), segment.invlists
    size = lists.list_size(number)
    if not size:
        return np.zeros(0, np.int64), np.zeros((0, segment.d), np.float32)
    rows = faiss.rev_swig_ptr(lists.get_ids(number), size)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
    return rows, codes.view(np.float32).reshape(size, segment.d)


def _joined(parts: list[tuple[Int64s, Float32s]]) -> tuple[Int64s, Float32s]:
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([units for _, units in parts])


def _lists_read(lists: int) -> int:
    return min(lists, max(_LEAST_LISTS_READ, round(lists * _READ_SHARE)))
