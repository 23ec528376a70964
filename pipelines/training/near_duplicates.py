"""Groups of pictures that are alike: perceptual hashes that differ in few bits, near in time or anywhere in the set.

Alike is passed on: two rows are in one group if a chain of alike rows leads from one to the other.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.errors import RefusedError

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
NO_GROUP = -1
HASH_BITS = 64
# Pairs that are compared at most: some seconds of work, a few hundred MB.
MAX_PAIRS = 2_000_000_000
_BLOCK_PAIRS = 4_000_000


def near_groups(hashes: pa.ChunkedArray, devices: pa.ChunkedArray, times_us: Int64s, bits: int, within_us: int | None) -> Int64s:
    """The group of each row; `NO_GROUP` for rows that are like no other, or have no hash.

    Args:
        hashes: 64 bits in hexadecimal, as the `image` inspector gives them.
        devices: rows of different devices are alike only without `within_us`.
        times_us: event times.
        bits: so many bits may differ.
        within_us: rows are compared up to this distance in time; None: all with all.

    Raises:
        RefusedError: too many rows would have to be compared.
    """
    values = pl.Series(pl.from_arrow(hashes)).str.to_integer(base=16, dtype=pl.UInt64, strict=False)
    rows = np.flatnonzero(values.is_not_null().to_numpy())
    words = values.drop_nulls().to_numpy()
    if within_us is None:
        pairs = _pairs_anywhere(words, bits)
    else:
        device = devices.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)[rows]
        pairs = _pairs_in_time(words, device, times_us[rows], bits, within_us)
    roots = connected(len(rows), pairs)
    sizes = np.bincount(roots, minlength=len(rows))
    groups = np.full(len(hashes), NO_GROUP, np.int64)
    groups[rows] = np.where(sizes[roots] > 1, rows[roots], NO_GROUP) if len(rows) else roots
    return groups


def connected(count: int, pairs: Iterator[tuple[Int64s, Int64s]]) -> Int64s:
    """The smallest member of the component of each of `count` nodes, given edges in blocks."""
    root = np.arange(count, dtype=np.int64)
    for pair in pairs:
        one, other = pair
        while True:
            first, second = root[one], root[other]
            apart = first != second
            if not apart.any():
                break
            one, other, first, second = one[apart], other[apart], first[apart], second[apart]
            np.minimum.at(root, np.maximum(first, second), np.minimum(first, second))
            root = _flat(root)
    return root


def _flat(root: Int64s) -> Int64s:
    while True:
        above = root[root]
        if np.array_equal(above, root):
            return root
        root = above


def _pairs_in_time(
    words: Uint64s, device: Int64s, times_us: Int64s, bits: int, within_us: int
) -> Iterator[tuple[Int64s, Int64s]]:
    """Alike rows of one device within a time: neighbours first, then those two apart, until none is near enough."""
    order = np.lexsort((times_us, device))
    words, device, times_us = words[order], device[order], times_us[order]
    compared = 0
    for step in range(1, len(words)):
        near = (device[step:] == device[:-step]) & (times_us[step:] - times_us[:-step] <= within_us)
        if not near.any():
            return
        compared += len(near)
        if compared > MAX_PAIRS:
            raise RefusedError("too many rows lie within the time of the near-duplicate rule; shorten it")
        at = np.flatnonzero(near)
        at = at[np.bitwise_count(words[at] ^ words[at + step]) <= bits]
        yield order[at], order[at + step]


def _pairs_anywhere(words: Uint64s, bits: int) -> Iterator[tuple[Int64s, Int64s]]:
    """Alike rows anywhere: hashes that differ in at most `bits` are equal in one of `bits` + 1 parts, by the pigeonhole."""
    distinct, first, place = np.unique(words, return_index=True, return_inverse=True)
    yield np.arange(len(words), dtype=np.int64), first[place].astype(np.int64)
    edges = np.linspace(0, HASH_BITS, bits + 2).astype(int)
    keys = [(distinct >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1) for low, high in pairwise(edges)]
    sizes = [np.unique(key, return_counts=True)[1].astype(np.int64) for key in keys] if bits else []
    if sum(int((size * (size - 1) // 2).sum()) for size in sizes) > MAX_PAIRS:
        raise RefusedError(
            f"{len(distinct):,} different hashes are too many to compare all with all; give the near-duplicate rule a time "
            "(within), or fewer bits"
        )
    for key in keys if bits else []:
        order = np.argsort(key, kind="stable")
        yield from _pairs_of_equal(key[order], order, distinct, first, bits)


def _pairs_of_equal(
    key: Uint64s, order: Int64s, distinct: Uint64s, first: npt.NDArray[np.int64], bits: int
) -> Iterator[tuple[Int64s, Int64s]]:
    """Alike rows among those whose part is equal; they lie side by side."""
    for step in range(1, len(key)):
        equal = np.flatnonzero(key[step:] == key[:-step])
        if not len(equal):
            return
        for low in range(0, len(equal), _BLOCK_PAIRS):
            one, other = order[equal[low : low + _BLOCK_PAIRS]], order[equal[low : low + _BLOCK_PAIRS] + step]
            alike = np.bitwise_count(distinct[one] ^ distinct[other]) <= bits
            yield first[one[alike]].astype(np.int64), first[other[alike]].astype(np.int64)
