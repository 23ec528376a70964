"""Fewer rows by a seed: samples, caps and balance. Pure functions over columns.

A row's number hangs on the seed and its key alone, so a row that is taken stays taken when other rows join.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.training.select import KEY
from pipelines.training.split import LEFT_OUT

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
_CHIP = ("spec", "chip_index")
_NO_LIMIT = np.iinfo(np.int64).max


def row_numbers(rows: pa.Table, seed: int, purpose: str) -> Uint64s:
    """A number of 64 evenly spread bits for each row, from its key, the seed and what it is for."""
    numbers = np.full(len(rows), _digest(f"{seed}:{purpose}"), np.uint64)
    for name in (*KEY, *_CHIP):
        if name in rows.schema.names:
            numbers = _mixed(numbers ^ _words(rows.column(name)))
    return numbers


def mixed_numbers(numbers: Uint64s, seed: int, purpose: str) -> Uint64s:
    """Other numbers of 64 evenly spread bits for rows that have such numbers already, by a seed and what they are for."""
    return _mixed(numbers ^ _digest(f"{seed}:{purpose}"))


def sampled(rows: pa.Table, seed: int, share: float, most: int = 0) -> Bools:
    """Which rows a seeded sample takes: this share of them, and of those at most `most`; 0: no limit."""
    numbers = row_numbers(rows, seed, "sample")
    taken = numbers < np.uint64(min(round(share * 2**64), 2**64 - 1)) if share < 1 else np.ones(len(rows), bool)
    if most and int(taken.sum()) > most:
        order = np.argsort(np.where(taken, numbers, np.iinfo(np.uint64).max), kind="stable")
        taken = np.zeros(len(rows), bool)
        taken[order[:most]] = True
    return np.asarray(taken, bool)


def capped(rows: pa.Table, group: Int64s, most: int, seed: int) -> Bools:
    """Which rows stay if each group keeps at most `most` of them."""
    return lowest(group, row_numbers(rows, seed, "cap"), np.full(int(group.max(initial=-1)) + 1, most, np.int64))


def lowest(group: Int64s, numbers: Uint64s, limits: Int64s) -> Bools:
    """Of each group the rows with the lowest numbers, as many as its limit."""
    order = np.lexsort((numbers, group))
    starts = np.searchsorted(group[order], np.arange(len(limits)))
    kept = np.zeros(len(group), bool)
    kept[order] = np.arange(len(group)) - starts[group[order]] < limits[group[order]]
    return kept


def balanced(classes: Int64s, splits: Int64s, number: int, numbers: Uint64s, most: int, *, is_even: bool) -> Int64s:
    """The splits of rows after one split kept at most so many rows of each class.

    Args:
        classes: (rows,) class of each row, -1 for none; rows without a class stay.
        splits: (rows,) split of each row.
        number: the split to balance.
        numbers: (rows,) decide which rows go.
        most: rows of a class at most; 0: no limit.
        is_even: whether every class gets as many rows as the rarest one in the split.
    """
    members = np.flatnonzero((splits == number) & (classes >= 0))
    counts = np.bincount(classes[members], minlength=int(classes.max(initial=-1)) + 1)
    limit = most or _NO_LIMIT
    if is_even and (counts > 0).any():
        limit = min(limit, int(counts[counts > 0].min()))
    kept = lowest(classes[members], numbers[members], np.full(len(counts), limit, np.int64))
    left = splits.copy()
    left[members[~kept]] = LEFT_OUT
    return left


def class_weights(classes: Int64s, splits: Int64s, number: int) -> npt.NDArray[np.float64]:
    """How often each row of a split should count so that its classes are even; the mean over the split is 1, others have 1."""
    weights = np.ones(len(classes))
    members = np.flatnonzero((splits == number) & (classes >= 0))
    counts = np.bincount(classes[members], minlength=int(classes.max(initial=-1)) + 1)
    kinds = int((counts > 0).sum())
    weights[members] = len(members) / (max(1, kinds) * counts[classes[members]])
    return weights


def class_numbers(values: pa.ChunkedArray) -> Int64s:
    """The number of each row's class; -1 for null."""
    encoded = pc.cast(values, pa.string()).combine_chunks().dictionary_encode().indices
    return np.asarray(pc.fill_null(encoded, -1).to_numpy(zero_copy_only=False), np.int64)


def _words(values: pa.ChunkedArray) -> Uint64s:
    if pa.types.is_integer(values.type):
        return np.asarray(pc.fill_null(pc.cast(values, pa.int64()), -1).to_numpy(), np.int64).view(np.uint64)
    encoded = values.combine_chunks().dictionary_encode()
    digests = np.array([_digest(str(value)) for value in encoded.dictionary.to_pylist()] + [0], np.uint64)
    at = np.asarray(pc.fill_null(encoded.indices, len(digests) - 1).to_numpy(zero_copy_only=False), np.int64)
    return np.asarray(digests[at], np.uint64)


def _digest(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def _mixed(words: Uint64s) -> Uint64s:
    """SplitMix64's step and finaliser: each output bit hangs on each input bit."""
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)
