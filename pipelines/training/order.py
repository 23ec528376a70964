"""Where an epoch stands, in about a hundred bytes: enough to go on anywhere, with any number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from pipelines.errors import RefusedError

_BLOCK = 4_096
_MAX_STATE_BYTES = 4_096


class Shuffle(StrEnum):
    """How far samples are mixed.

    `FULL`: any sample may come at any time. `BLOCK`: four shards at a time, in a seeded order, their samples mixed; for sets in
    a bucket, of which only a few shards then need to be here at once.
    """

    FULL = "full"
    BLOCK = "block"


class EpochState(msgspec.Struct, frozen=True, array_like=True):
    """`position` samples of the epoch's order are done by all ranks together; `set_digest` names the set's manifest.

    `shuffle` is the order's kind; states of earlier releases, which do not name one, are of full ones.
    """

    set_digest: str
    split: str
    seed: int
    epoch: int
    position: int
    shuffle: Shuffle = Shuffle.FULL

    def to_bytes(self) -> bytes:
        """A short JSON text, to be kept in a training checkpoint."""
        return msgspec.json.encode(self)


def state_from_bytes(body: bytes) -> EpochState:
    """Read a state back.

    Raises:
        RefusedError: these bytes are no state.
    """
    try:
        return msgspec.json.decode(body[:_MAX_STATE_BYTES], type=EpochState)
    except msgspec.MsgspecError as error:
        raise RefusedError(f"not the state of an epoch: {error}") from error


class Tail(StrEnum):
    """What ranks do with the samples left when the others cannot all have one more.

    `UNEVEN`: some ranks read one sample more; each sample is read exactly once. `PAD`: the other ranks read samples of the
    epoch's beginning again, so that all have the same length. `DROP`: nobody reads them.
    """

    UNEVEN = "uneven"
    PAD = "pad"
    DROP = "drop"


_Word = TypeVar("_Word", bound=StrEnum)


def word_of(kind: type[_Word], value: str, what: str) -> _Word:
    """A word of an argument.

    Raises:
        RefusedError: it is none of them.
    """
    try:
        return kind(value)
    except ValueError as error:
        raise RefusedError(f"{what}: {value!r} cannot be; give {', '.join(repr(str(word)) for word in kind)}") from error


class SampleOrder(Protocol):
    """The order of an epoch's samples. Positions go in, sample indexes come out; 0..count-1 both."""

    @property
    def count(self) -> int:
        """Samples of the epoch."""
        ...

    @property
    def seed(self) -> int:
        """Of the order, together with the epoch."""
        ...

    @property
    def epoch(self) -> int:
        """Its number."""
        ...

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sample indexes at these positions."""
        ...


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The positions of one rank: `start + rank`, and every `world`-th from there, of the epoch's order.

    All samples from `start` on go to exactly one rank, but for those that `tail` says.
    """

    permutation: SampleOrder
    rank: int = 0
    world: int = 1
    start: int = 0
    tail: Tail = Tail.UNEVEN

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or not 0 <= self.start <= self.permutation.count:
            raise RefusedError(f"rank {self.rank} of {self.world} from {self.start} of {self.permutation.count} cannot be")

    def __len__(self) -> int:
        left = self.permutation.count - self.start
        if self.tail is Tail.UNEVEN:
            return max(0, -(-(left - self.rank) // self.world))
        return -(-left // self.world) if self.tail is Tail.PAD else left // self.world

    def indexes(self) -> Iterator[int]:
        """Sample indexes, one by one."""
        for block in self.blocks():
            yield from block.tolist()

    def blocks(self, first: int = 0) -> Iterator[npt.NDArray[np.int64]]:
        """Sample indexes from this rank's `first` on, computed a few thousand at a time."""
        for low in range(first, len(self), _BLOCK):
            yield self.part(low, min(low + _BLOCK, len(self)))

    def part(self, low: int, high: int) -> npt.NDArray[np.int64]:
        """This rank's sample indexes from `low` to before `high`."""
        steps = np.arange(low, high, dtype=np.int64)
        # Beyond the end, which only padding reaches, the order begins again.
        positions = (self.rank + steps * self.world) % max(1, self.permutation.count - self.start)
        return self.permutation.at(self.start + positions)

    def position_after(self, taken: int) -> int:
        """How much of the order is done once every rank has taken so many samples."""
        return min(self.start + taken * self.world, self.permutation.count)
