"""What a training set and a mix of several have in common: epochs in a seeded order, as samples, as batches, through PyTorch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.errors import RefusedError
from pipelines.training.batches import Batch, BatchOptions, Int64s, OnBad, SampleSource, SetBatches, ShuffledSamples
from pipelines.training.order import EpochOrder, EpochState, SampleOrder, Shuffle, Tail, word_of
from pipelines.training.sample import Sample

if TYPE_CHECKING:
    from pipelines.training.torch_loader import TorchLoader


@dataclass(frozen=True, slots=True)
class _Start:
    """Where an epoch begins and who shares it."""

    state: EpochState
    rank: int
    world: int
    tail: Tail


class Loading(ABC):
    """Something that epochs are read from."""

    @abstractmethod
    def identity(self) -> tuple[str, str]:
        """What a state belongs to: a digest of the set and its filter, and the split."""

    @abstractmethod
    def order(self, seed: int, epoch: int, shuffle: Shuffle) -> SampleOrder:
        """The order of an epoch."""

    @abstractmethod
    def source(self, shuffle: Shuffle) -> SampleSource:
        """What the samples of such an order are read from."""

    @abstractmethod
    def chunks(self, indexes: Int64s) -> Iterator[list[Sample]]:
        """These samples, in their order, some at a time."""

    @property
    @abstractmethod
    def has_payload(self) -> bool:
        """Whether samples have payloads."""

    @abstractmethod
    def payloads(self, indexes: Int64s) -> list[bytes]:
        """Their payloads alone, in a set that has them."""

    @abstractmethod
    def mark_compared(self, indexes: Int64s) -> None:
        """Note that another process has compared the payloads of these samples with their sha256."""

    @abstractmethod
    def trusted(self) -> SampleSource:
        """The same samples, not compared with their sha256."""

    @abstractmethod
    def names(self, indexes: Int64s) -> Batch:
        """What a batch says of which samples it holds."""

    @abstractmethod
    def take(self, indexes: Int64s, columns: Sequence[str]) -> pa.Table:
        """These columns of these samples, in their order.

        Raises:
            RefusedError: no such column.
        """

    @abstractmethod
    def array_batch(self, indexes: Int64s) -> Batch:
        """The arrays of these samples, by name; none in a set without arrays."""

    @abstractmethod
    def expect(self, indexes: Int64s) -> None:
        """Have samples brought near that will be read next."""

    def shuffled(
        self,
        seed: int,
        epoch: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        tail: Tail | str = Tail.PAD,
        shuffle: Shuffle | str = Shuffle.FULL,
    ) -> ShuffledSamples:
        """The samples of one epoch in a seeded order that takes no memory.

        Args:
            seed: of the order, together with `epoch`.
            epoch: each has an order of its own.
            rank: which of the readers this is.
            world: how many readers share the epoch; each sample goes to exactly one.
            start: samples of this epoch that are done already, by all ranks together.
            tail: of the samples left at the end: "pad" (the default) gives all ranks one length by reading a few again, "drop"
                by leaving them, "uneven" reads each exactly once.
            shuffle: "full", or "block" for sets in a bucket: four shards at a time, their samples mixed.
        """
        return self._samples(
            _Start(
                self._state(seed, epoch, start, word_of(Shuffle, shuffle, "shuffle")), rank, world, word_of(Tail, tail, "tail")
            )
        )

    def resume(self, state: EpochState, *, rank: int = 0, world: int = 1, tail: Tail | str = Tail.PAD) -> ShuffledSamples:
        """Go on where a state says, with as many ranks as there are now.

        Raises:
            RefusedError: the state is of another set, version or split.
        """
        self._check_state(state)
        return self._samples(_Start(state, rank, world, word_of(Tail, tail, "tail")))

    def numpy(  # noqa: PLR0913 - each is a word of its own at the call
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int | EpochState = 0,
        columns: Sequence[str] = (),
        image: tuple[int, int] | None = None,
        rank: int = 0,
        world: int = 1,
        tail: Tail | str = Tail.PAD,
        drop_last: bool = False,
        on_bad: OnBad | str = OnBad.RAISE,
        shuffle: Shuffle | str = Shuffle.FULL,
    ) -> SetBatches:
        """An epoch as a sequence of batches: dicts of NumPy arrays and lists.

        Args:
            batch_size: samples of a batch.
            seed: of the order.
            epoch: its number, or a state to go on from.
            columns: in addition to `index` and `payload`.
            image: (height, width) to decode and scale pictures to, as (N, height, width, 3) uint8; None: bytes.
            rank: which of the readers this is.
            world: how many readers share the epoch.
            tail: as of `shuffled`: by default all ranks have the same number of batches.
            drop_last: leave out a last batch that is not full.
            on_bad: "raise", or "skip" and count samples that cannot be read or decoded.
            shuffle: as of `shuffled`.

        Raises:
            RefusedError: an argument does not fit the set, or the state is of another one.
        """
        options = BatchOptions(batch_size, tuple(columns), image, drop_last, word_of(OnBad, on_bad, "on_bad"))
        state = epoch if isinstance(epoch, EpochState) else self._state(seed, epoch, 0, word_of(Shuffle, shuffle, "shuffle"))
        self._check_state(state)
        return SetBatches(*self._parts(_Start(state, rank, world, word_of(Tail, tail, "tail"))), options, state)

    def jax(self, batch_size: int, **options: Any) -> Iterator[dict[str, Any]]:
        """Batches of one shape without end, epoch after epoch: what a function that is compiled for a shape should be fed.

        Columns of text are left out, for JAX has none; the arrays are NumPy's, which `jax.device_put` takes.

        Args:
            batch_size: samples of a batch; a last one that is not full is left out.
            options: of `numpy`; `epoch` is the first one.

        Raises:
            RefusedError: as of `numpy`, or the set has fewer samples than a batch.
        """
        batches = self.numpy(batch_size, **options, drop_last=True)
        if not len(batches):
            raise RefusedError(f"jax: a batch of {batch_size} is more than there is")
        return _without_end(lambda epoch: self.numpy(batch_size, **{**options, "epoch": epoch}, drop_last=True), batches)

    def torch(  # noqa: PLR0913 - each is a word of its own at the call
        self,
        batch_size: int,
        *,
        seed: int = 0,
        columns: Sequence[str] = (),
        image: tuple[int, int] | None = None,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        tail: Tail | str = Tail.PAD,
        drop_last: bool = False,
        on_bad: OnBad | str = OnBad.RAISE,
        shuffle: Shuffle | str = Shuffle.FULL,
        **options: Any,
    ) -> "TorchLoader":
        """A loader of ready batches of tensors with `state_dict` and `load_state_dict`, exact after any batch.

        Args:
            batch_size: samples of a batch.
            seed: of the order; each epoch has an order of its own.
            columns: as of `numpy`.
            image: as of `numpy`; decoded in the workers.
            workers: processes that read and decode.
            rank: which of the readers this is.
            world: how many readers share each epoch.
            tail: as of `shuffled`.
            drop_last: leave out a last batch that is not full.
            on_bad: as of `numpy`.
            shuffle: as of `shuffled`.
            options: of `torch.utils.data.DataLoader`.

        Raises:
            RefusedError: PyTorch is not installed, or an argument does not fit the set.
        """
        from pipelines.training.torch_loader import TorchLoader  # noqa: PLC0415 - loaded only for those who use it

        def batches_of(epoch: int | EpochState) -> SetBatches:
            return self.numpy(
                batch_size, seed=seed, epoch=epoch, columns=columns, image=image, rank=rank, world=world, tail=tail,
                drop_last=drop_last, on_bad=on_bad, shuffle=shuffle,
            )  # fmt: skip

        return TorchLoader(batches_of, workers, **options)

    def _samples(self, start: _Start) -> ShuffledSamples:
        return ShuffledSamples(*self._parts(start), start.state)

    def _parts(self, start: _Start) -> tuple[SampleSource, EpochOrder]:
        state = start.state
        whole = self.order(state.seed, state.epoch, state.shuffle)
        return self.source(state.shuffle), EpochOrder(whole, start.rank, start.world, state.position, start.tail)

    def _state(self, seed: int, epoch: int, position: int, shuffle: Shuffle) -> EpochState:
        return EpochState(*self.identity(), seed, epoch, position, shuffle)

    def _check_state(self, state: EpochState) -> None:
        if (state.set_digest, state.split) != self.identity():
            raise RefusedError(f"this state is of another set, split or filter than {self!r}")


def _without_end(batches_of: Callable[[int], SetBatches], batches: SetBatches) -> Iterator[Batch]:
    while True:
        for batch in batches:
            yield {name: values for name, values in batch.items() if isinstance(values, np.ndarray)}
        batches = batches_of(batches.state_after(0).epoch + 1)
