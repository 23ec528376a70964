"""Several training sets mixed by weight: one epoch, one state, exact to the sample."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.errors import RefusedError
from pipelines.training.batches import Int64s
from pipelines.training.loading import Loading
from pipelines.training.open import TrainingSet
from pipelines.training.order import SampleOrder, Shuffle
from pipelines.training.sample import Sample
from pipelines.training.seeded_orders import MixedOrder

SPLIT = "mix"
_PERIOD = 1_000
_MAX_SETS = 1_000


@dataclass(frozen=True, slots=True)
class _Share:
    """Samples of one set among those asked for: where they stand among them, and their numbers in the set."""

    source: int
    places: Int64s
    indexes: Int64s


class _Orders:
    """The orders of the sets' own epochs, the last of each kept. A copy in another process finds its own."""

    def __init__(self, sets: tuple[TrainingSet, ...], seed: int, shuffle: Shuffle) -> None:
        self._sets, self._seed, self._shuffle = sets, seed, shuffle
        self._kept = lru_cache(maxsize=2 * len(sets))(self._order)

    def __call__(self, source: int, own_epoch: int) -> SampleOrder:
        return self._kept(source, own_epoch)

    def __reduce__(self) -> tuple[type["_Orders"], tuple[tuple[TrainingSet, ...], int, Shuffle]]:
        return _Orders, (self._sets, self._seed, self._shuffle)

    def _order(self, source: int, own_epoch: int) -> SampleOrder:
        return self._sets[source].order(self._seed, own_epoch, self._shuffle)


class MixedSets(Loading):
    """Training sets mixed by weight. Its epochs are read as those of one set: `shuffled`, `resume`, `numpy`, `jax`, `torch`.

    Of any 1,000 samples in a row that begin at a multiple of 1,000, each set gives as many as its weight says. Every sample of
    a set comes once before any of it comes again; an epoch of the mix goes on where the one before ended.
    """

    def __init__(self, sets: Sequence[TrainingSet], weights: Sequence[float], samples: int) -> None:
        """Mix sets.

        Args:
            sets: the sets; with equal columns, where columns are read.
            weights: of each; only their ratios count.
            samples: of an epoch.

        Raises:
            RefusedError: a set is empty, or a weight cannot be.
        """
        if not 0 < len(sets) == len(weights) <= _MAX_SETS:
            raise RefusedError(f"mix: {len(sets)} sets and {len(weights)} weights; give a weight for each of 1 to {_MAX_SETS:,}")
        if any(not len(one) for one in sets):
            raise RefusedError("mix: a set without samples; leave it out")
        if samples < 1:
            raise RefusedError(f"mix: an epoch of {samples} samples; give 1 or more")
        self.sets = tuple(sets)
        self.samples = samples
        self.parts = parts_of(weights)
        self._sizes = tuple(len(one) for one in sets)
        self._starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(self._sizes)))
        named = [*(":".join(one.identity()) for one in sets), str(self.parts), str(samples)]
        self._digest = hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.samples

    def __repr__(self) -> str:
        shares = ", ".join(f"{part / _PERIOD:.1%} of {one!r}" for part, one in zip(self.parts, self.sets, strict=True))
        return f"<MixedSets: {self.samples:,} samples, {shares}>"

    def identity(self) -> tuple[str, str]:
        """What a state belongs to: a digest of the sets, their shares and the samples of an epoch."""
        return self._digest, SPLIT

    def order(self, seed: int, epoch: int, shuffle: Shuffle) -> SampleOrder:
        """The order of an epoch."""
        return MixedOrder(self._sizes, self.parts, self.samples, seed, epoch, _Orders(self.sets, seed, shuffle))

    def source(self, shuffle: Shuffle) -> "MixedSets":
        """The same samples, read as suits an order."""
        return MixedSets([one.source(shuffle) for one in self.sets], self.parts, self.samples)

    def chunks(self, indexes: Int64s) -> Iterator[list[Sample]]:
        """These samples, in their order."""
        found: list[Any] = [None] * len(indexes)
        for share in self._shares(indexes):
            samples = self.sets[share.source].samples(share.indexes)
            for place, sample in zip(share.places.tolist(), samples, strict=True):
                found[place] = sample
        yield found

    @property
    def has_payload(self) -> bool:
        """Whether the samples of all sets have payloads."""
        return all(one.has_payload for one in self.sets)

    def payloads(self, indexes: Int64s) -> list[bytes]:
        """The payloads of these samples, in their order."""
        found = [b""] * len(indexes)
        for share in self._shares(indexes):
            for place, body in zip(share.places.tolist(), self.sets[share.source].payloads(share.indexes), strict=True):
                found[place] = body
        return found

    def mark_compared(self, indexes: Int64s) -> None:
        """Note that another process has compared the payloads of these samples with their sha256."""
        for share in self._shares(indexes):
            self.sets[share.source].mark_compared(share.indexes)

    def trusted(self) -> "MixedSets":
        """The same samples, not compared with their sha256."""
        return MixedSets([one.trusted() for one in self.sets], self.parts, self.samples)

    def names(self, indexes: Int64s) -> dict[str, Any]:
        """What a batch says of which samples it holds: the number of the `source`, and `index`, the row in its split."""
        sources = np.searchsorted(self._starts, indexes, side="right") - 1
        rows = np.empty(len(indexes), np.int64)
        for share in self._shares(indexes):
            rows[share.places] = self.sets[share.source].names(share.indexes)["index"]
        return {"index": rows, "source": np.asarray(sources, np.int64)}

    def take(self, indexes: Int64s, columns: Sequence[str]) -> pa.Table:
        """These columns of these samples, in their order.

        Raises:
            RefusedError: a set has no such column, or one of another type.
        """
        shares = self._shares(indexes)
        try:
            rows = pa.concat_tables([self.sets[share.source].take(share.indexes, columns) for share in shares])
        except pa.ArrowInvalid as error:
            raise RefusedError(f"mix: the sets' columns differ in type ({error}); read those that agree") from error
        return rows.take(pa.array(np.argsort(np.concatenate([share.places for share in shares]))))

    def array_batch(self, indexes: Int64s) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of these samples, by name.

        Raises:
            RefusedError: the sets' arrays have different names or shapes.
        """
        shares = self._shares(indexes)
        parts = [self.sets[share.source].array_batch(share.indexes) for share in shares]
        order = np.argsort(np.concatenate([share.places for share in shares])) if shares else np.zeros(0, np.int64)
        try:
            return {name: np.concatenate([part[name] for part in parts])[order] for name in (parts[0] if parts else ())}
        except (KeyError, ValueError) as error:
            raise RefusedError(f"mix: the sets' arrays differ ({error}); mix sets of the same arrays") from error

    def expect(self, indexes: Int64s) -> None:
        """Have samples brought near that will be read next."""
        for share in self._shares(indexes):
            self.sets[share.source].expect(share.indexes)

    def _shares(self, indexes: Int64s) -> list[_Share]:
        sources = np.searchsorted(self._starts, indexes, side="right") - 1
        shares: list[_Share] = []
        for source in np.unique(sources).tolist():
            places = np.flatnonzero(sources == source)
            shares.append(_Share(source, places, indexes[places] - self._starts[source]))
        return shares


def mix_sets(sets: Sequence[TrainingSet], weights: Sequence[float] | None = None, samples: int | None = None) -> MixedSets:
    """Mix training sets by weight.

    Args:
        sets: opened sets, of whatever versions and filters.
        weights: of each; only their ratios count. Without any, sets weigh as many samples as they have.
        samples: of an epoch; by default as many as it takes until every sample of every set has come at least once.

    Raises:
        RefusedError: a set is empty, or a weight is not above 0 or too small next to the others.
    """
    sizes = [len(one) for one in sets]
    parts = parts_of(weights if weights is not None else sizes)
    longest = max((-(-size // part) for size, part in zip(sizes, parts, strict=False)), default=0)
    return MixedSets(sets, weights if weights is not None else sizes, samples if samples is not None else longest * sum(parts))


def parts_of(weights: Sequence[float]) -> tuple[int, ...]:
    """How many of 1,000 samples are of each set: whole numbers in the ratios of the weights, by largest remainder.

    Raises:
        RefusedError: a weight is not above 0, or so small that it would never come.
    """
    shares = np.array(weights, np.float64)
    if not len(shares) or not np.isfinite(shares).all() or (shares <= 0).any():
        raise RefusedError("mix: weights must be numbers above 0")
    exact = shares / shares.sum() * _PERIOD
    parts = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: _PERIOD - int(parts.sum())]] += 1
    if (parts == 0).any():
        raise RefusedError(f"mix: a weight is below one in {_PERIOD:,} of all; make it larger, or leave the set out")
    return tuple(parts.tolist())
