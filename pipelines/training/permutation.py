"""A seeded order of n samples that takes no memory: a Feistel network over the next power of two, cycle-walked into range.

Pure arithmetic on 64-bit integers, written here rather than taken from a random generator's library, because an order
must mean the same for as long as somebody resumes from it.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_MAX_COUNT = 2**62
Int64s = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Permutation:
    """A bijection of 0..count-1, picked by seed and epoch. Positions go in, sample indexes come out."""

    count: int
    seed: int
    epoch: int = 0
    _keys: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.count <= _MAX_COUNT:
            raise ValueError(f"a permutation of {self.count} elements; 0..2^62 is possible")
        digest = hashlib.blake2b(f"catchment-order-1:{self.seed}:{self.epoch}".encode(), digest_size=_ROUNDS * 8).digest()
        keys = tuple(int.from_bytes(digest[i * 8 : i * 8 + 8], "little") for i in range(_ROUNDS))
        object.__setattr__(self, "_keys", keys)

    def at(self, positions: Int64s) -> Int64s:
        """The sample indexes at these positions; each must be within 0..count-1."""
        if self.count <= 1:
            return np.zeros(len(positions), np.int64)
        values = self._mix(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= np.uint64(self.count))
        while len(outside):
            values[outside] = self._mix(values[outside])
            outside = outside[values[outside] >= np.uint64(self.count)]
        return values.astype(np.int64)

    def _mix(self, values: _Words) -> _Words:
        bits = (self.count - 1).bit_length()
        low_bits = (bits + 1) // 2
        low_mask = np.uint64((1 << low_bits) - 1)
        high_mask = np.uint64((1 << (bits - low_bits)) - 1)
        low, high = values & low_mask, values >> np.uint64(low_bits)
        for turn, key in enumerate(self._keys):
            if turn % 2:
                high = high ^ (_scramble(low, key) & high_mask)
            else:
                low = low ^ (_scramble(high, key) & low_mask)
        return (high << np.uint64(low_bits)) | low


def _scramble(words: _Words, key: int) -> _Words:
    """SplitMix64's finaliser: each output bit hangs on each input bit."""
    mixed = words ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
