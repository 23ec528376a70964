"""Where an epoch stands, in about a hundred bytes: enough to go on anywhere, with any number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import msgspec
import numpy as np
import numpy.typing as npt

from pipelines.errors import RefusedError
from pipelines.training.permutation import Permutation

_BLOCK = 4_096
_MAX_STATE_BYTES = 4_096


class EpochState(msgspec.Struct, frozen=True, array_like=True):
    """`position` samples of the epoch's order are done by all ranks together; `set_digest` names the set's manifest."""

    set_digest: str
    split: str
    seed: int
    epoch: int
    position: int

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


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The positions of one rank: `start + rank`, and every `world`-th from there, of the epoch's permutation.

    All samples from `start` on go to exactly one rank, but for those that `tail` says.
    """

    permutation: Permutation
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
