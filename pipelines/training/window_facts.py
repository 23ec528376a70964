"""The label and the tags of windows, from those of their rows. Pure functions over columns; each row may lie in many windows."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError
from pipelines.training.array_rules import LabelRule

Int64s = npt.NDArray[np.int64]
MAX_LABELS = 1_000


def window_labels(labels: pa.ChunkedArray, low: Int64s, high: Int64s, rule: LabelRule) -> pa.Array:
    """The label of each window of rows low..high; null where no row has one.

    Raises:
        RefusedError: the column holds lists or structs, or a majority is sought among too many values.
    """
    whole = labels.combine_chunks()
    if pa.types.is_nested(whole.type):
        raise RefusedError(f"windows: the label holds {whole.type}; name a column of plain values")
    there = np.asarray(pc.is_valid(whole).to_numpy(zero_copy_only=False), bool)
    if rule is LabelRule.MAJORITY:
        return _majority(whole, low, high)
    if rule is LabelRule.LAST:
        at = _last_at(there)[high - 1] if len(high) else high
        return whole.take(pa.array(at, mask=at < low))
    if pa.types.is_boolean(whole.type):
        true = np.asarray(pc.fill_null(whole, False).to_numpy(zero_copy_only=False), bool)
        known = _counts(there, low, high) > 0
        return pa.array(_counts(true, low, high) > 0, mask=~known)
    at = _next_at(there)[low]
    return whole.take(pa.array(at, mask=at >= high))


def tag_lists(tags: pa.ChunkedArray, low: Int64s, high: Int64s) -> pa.Array:
    """The distinct texts of the lists of rows low..high, in order, for each window."""
    whole = tags.combine_chunks()
    kinds = pc.unique(pc.list_flatten(whole)).drop_null().sort()
    at = pc.index_in(pc.list_flatten(whole), value_set=kinds)
    codes = np.asarray(pc.fill_null(at, -1).to_numpy(zero_copy_only=False), np.int64)
    parents = np.asarray(pc.list_parent_indices(whole).to_numpy(), np.int64)
    owners, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for kind in range(len(kinds)):
        has = np.zeros(len(whole), bool)
        has[parents[codes == kind]] = True
        windows = np.flatnonzero(_counts(has, low, high) > 0)
        owners.append(windows)
        found.append(np.full(len(windows), kind, np.int64))
    owner, kind_of = np.concatenate(owners), np.concatenate(found)
    order = np.lexsort((kind_of, owner))
    offsets = np.searchsorted(owner[order], np.arange(len(low) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), kinds.take(pa.array(kind_of[order]))).cast(tags.type)


def _majority(labels: pa.Array, low: Int64s, high: Int64s) -> pa.Array:
    kinds = pc.unique(labels).drop_null().sort()
    if len(kinds) > MAX_LABELS:
        raise RefusedError(f"windows: the label has more than {MAX_LABELS:,} values; name a column of classes, or derive one")
    codes = np.asarray(pc.fill_null(pc.index_in(labels, value_set=kinds), -1).to_numpy(zero_copy_only=False), np.int64)
    best, most = np.full(len(low), -1, np.int64), np.zeros(len(low), np.int64)
    for kind in range(len(kinds)):
        counts = _counts(codes == kind, low, high)
        is_more = counts > most
        best[is_more], most[is_more] = kind, counts[is_more]
    return kinds.take(pa.array(best, mask=best < 0))


def _counts(flags: npt.NDArray[np.bool_], low: Int64s, high: Int64s) -> Int64s:
    sums = np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))
    return np.asarray(sums[high] - sums[low], np.int64)


def _last_at(flags: npt.NDArray[np.bool_]) -> Int64s:
    """For each row, the last flagged row up to it, or -1."""
    return np.maximum.accumulate(np.where(flags, np.arange(len(flags), dtype=np.int64), -1))


def _next_at(flags: npt.NDArray[np.bool_]) -> Int64s:
    """For each row, the next flagged row from it on, or the number of rows."""
    ahead = np.where(flags, np.arange(len(flags), dtype=np.int64), len(flags))
    return np.asarray(np.minimum.accumulate(ahead[::-1])[::-1], np.int64)
