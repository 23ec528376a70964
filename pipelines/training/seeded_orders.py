"""Orders made of permutations: by blocks, for storage where single reads are dear, and of several sets mixed by weight.

Both answer for any position at once, in memory that does not grow with the samples.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from pipelines.training.order import SampleOrder
from pipelines.training.permutation import Int64s, Permutation

# Part of what the order is: another number is another order.
WINDOW_SHARDS = 4


@dataclass(frozen=True)
class BlockPermutation:
    """A bijection of 0..count-1: shards in a seeded order, four at a time, their samples mixed.

    What is wanted next lies in a few shards, so a cache of a few shards serves an epoch.

    `shard_rows`: rows of each shard, in the set's order.
    """

    shard_rows: tuple[int, ...]
    seed: int
    epoch: int = 0

    @property
    def count(self) -> int:
        """Samples in all."""
        return int(self._window_starts[-1])

    def at(self, positions: Int64s) -> Int64s:
        """The sample indexes at these positions; each must be within 0..count-1."""
        windows = np.searchsorted(self._window_starts, positions, side="right") - 1
        found = np.empty(len(positions), np.int64)
        for window in np.unique(windows).tolist():
            here = windows == window
            found[here] = self._within(window, positions[here] - self._window_starts[window])
        return found

    def _within(self, window: int, positions: Int64s) -> Int64s:
        """The sample indexes at positions of one window."""
        shards = self._order[window * WINDOW_SHARDS : (window + 1) * WINDOW_SHARDS]
        ends = np.cumsum(self._rows[shards])
        mixed = Permutation(int(ends[-1]), _window_seed(self.seed, self.epoch, window)).at(positions)
        which = np.searchsorted(ends, mixed, side="right")
        return np.asarray(self._shard_starts[shards[which]] + mixed - (ends - self._rows[shards])[which], np.int64)

    @cached_property
    def _rows(self) -> Int64s:
        return np.array(self.shard_rows, np.int64)

    @cached_property
    def _shard_starts(self) -> Int64s:
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(self._rows)))

    @cached_property
    def _order(self) -> Int64s:
        """The shards as they come."""
        return Permutation(len(self._rows), _window_seed(self.seed, self.epoch, -1)).at(np.arange(len(self._rows)))

    @cached_property
    def _window_starts(self) -> Int64s:
        ends = np.cumsum(self._rows[self._order])[WINDOW_SHARDS - 1 :: WINDOW_SHARDS]
        starts = np.concatenate((np.zeros(1, np.int64), ends))
        total = int(self._rows.sum())
        return starts if starts[-1] == total else np.append(starts, total)


@lru_cache(maxsize=1024)
def _window_seed(seed: int, epoch: int, window: int) -> int:
    digest = hashlib.blake2b(f"catchment-block-order-1:{seed}:{epoch}:{window}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class MixedOrder:
    """The order of several sets mixed: positions go in, samples come out, numbered over all sets laid end to end.

    `parts` of each `sum(parts)` positions in a row are of each set, at seeded places. Each set is read in epochs of its own,
    one after the other: every sample once before any comes again. An epoch of the mix, `count` positions, goes on where the
    one before ended.

    `orders`: the order of a set's own epoch, by the set's number and the epoch's.
    """

    sizes: tuple[int, ...]
    parts: tuple[int, ...]
    count: int
    seed: int
    epoch: int
    orders: Callable[[int, int], SampleOrder]

    def at(self, positions: Int64s) -> Int64s:
        """The samples at these positions."""
        sources, ordinals = self._dealt(positions + self.epoch * self.count)
        found = np.empty(len(positions), np.int64)
        first = 0
        for source, size in enumerate(self.sizes):
            here = np.flatnonzero(sources == source)
            epochs, places = np.divmod(ordinals[here], size)
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                found[here[now]] = first + self.orders(source, epoch).at(places[now])
            first += size
        return found

    def _dealt(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Of each position in the endless mix its set, and which of that set's reads it is."""
        rounds, slots = np.divmod(positions, sum(self.parts))
        sources, ordinals = np.empty((2, len(positions)), np.int64)
        counts = np.array(self.parts, np.int64)
        for number in np.unique(rounds).tolist():
            here = rounds == number
            pattern, before = _pattern(self.parts, self.seed, number)
            sources[here] = pattern[slots[here]]
            ordinals[here] = number * counts[sources[here]] + before[slots[here]]
        return sources, ordinals


@lru_cache(maxsize=256)
def _pattern(parts: tuple[int, ...], seed: int, number: int) -> tuple[Int64s, Int64s]:
    """Which set each place of a round is of, and how many places before it are of the same."""
    mixed = Permutation(sum(parts), _window_seed(seed, -1, number)).at(np.arange(sum(parts)))
    pattern = np.asarray(np.searchsorted(np.cumsum(parts), mixed, side="right"), np.int64)
    before = np.empty(len(pattern), np.int64)
    for source, count in enumerate(parts):
        before[pattern == source] = np.arange(count)
    return pattern, before
