"""A loader for PyTorch: ready batches of tensors, several workers and ranks, exact state. Torch is imported when it is made."""

import math
import multiprocessing
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from pipelines.errors import RefusedError
from pipelines.training.batches import PAYLOAD, Batch, Pixels, SetBatches
from pipelines.training.order import EpochState, state_from_bytes

_STATE = "catchment"


class TorchLoader:
    """Iterate it for an epoch's batches: dicts of tensors and lists. `state_dict` is exact after any batch.

    Iterated again it goes on where it was left; once it came to its end, the next epoch begins.
    """

    def __init__(self, batches_of: Callable[[EpochState | int], SetBatches], workers: int, **options: Any) -> None:
        """Make a loader.

        Args:
            batches_of: the batches of an epoch by its number, or from where a state says.
            workers: processes that read and decode; 0: this one.
            options: of `torch.utils.data.DataLoader`, for instance `pin_memory` or `prefetch_factor`.

        Raises:
            RefusedError: PyTorch is not installed, or an option is one that the loader sets itself.
        """
        try:
            self._torch: Any = import_module("torch.utils.data")
        except ImportError as error:
            raise RefusedError("the loader needs PyTorch; install torch, or use .numpy(...)") from error
        if own := {"dataset", "batch_size", "sampler", "batch_sampler", "num_workers", "shuffle"} & options.keys():
            raise RefusedError(f"{', '.join(sorted(own))}: the loader sets this itself; see the arguments of .torch()")
        self._batches_of = batches_of
        self._batches = batches_of(0)
        safe = {"multiprocessing_context": _fork_server()} if workers else {}
        self._options: dict[str, Any] = {"num_workers": workers, **safe, **options}
        self._done = 0

    def __len__(self) -> int:
        """Batches from the epoch's beginning, or from the state that was loaded."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if self._done == len(self._batches):
            self.set_epoch(self._batches.state_after(0).epoch + 1)
        # Batches are numbered: workers take them in turn, and a range is an order that takes no memory.
        left = range(self._done, len(self._batches))
        tensors = _Tensors(self._batches, self._options["num_workers"])
        own = self._batches.trusted() if self._options["num_workers"] and self._batches.has_bytes else None
        for batch in self._torch.DataLoader(tensors, batch_size=None, sampler=left, **self._options):
            if self._options["num_workers"]:
                self._batches.mark_compared(self._done)
            if own is not None:
                batch[PAYLOAD] = own.payloads(self._done)
            self._done += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self._batches, self._done = self._batches_of(epoch), 0

    def state_dict(self) -> dict[str, bytes]:
        """Where the epoch stands once every rank has taken as many batches as this one."""
        return {_STATE: self._batches.state_after(self._done).to_bytes()}

    def load_state_dict(self, state: dict[str, bytes]) -> None:
        """Go on where a state says, with as many ranks and workers as there are now.

        Raises:
            RefusedError: it is no such state, or one of another set or split.
        """
        self._batches, self._done = self._batches_of(state_from_bytes(state[_STATE])), 0


def _fork_server() -> Any:
    """Workers come from a process of their own that has imported what they need.

    Forked from this one, a worker would inherit the locks of Arrow's, Polars' and libvips' threads, and could wait for them
    forever; started from nothing, it would import for seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "pipelines.training.open"])
    return context


class _Tensors:
    """Batches of tensors by number, as DataLoader asks for them in its workers."""

    def __init__(self, batches: SetBatches, workers: int) -> None:
        self._batches = batches
        self._workers = workers

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        self._batches.expect(number + max(1, self._workers), max(1, self._workers))
        shared = _SharedPixels() if self._workers else None
        batch = {name: _tensor(values) for name, values in self._batches.batch(number, shared).items()}
        if shared is not None and shared.tensor is not None:
            batch[PAYLOAD] = shared.tensor[: len(batch[PAYLOAD])]
        if self._workers and self._batches.has_bytes:
            # They are in the kernel's memory now, and compared: the process that asked reads them there. Through a pipe they
            # would be copied twice, in pieces of 64 KiB.
            del batch[PAYLOAD]
        return batch


class _SharedPixels:
    """Memory for the pixels of a batch that the process that asked for it sees, too: decoded there, they are not copied."""

    def __init__(self) -> None:
        self.tensor: Any = None

    def __call__(self, shape: tuple[int, ...]) -> Pixels:
        torch = import_module("torch")
        # As torch's own collation does in a worker.
        storage = torch.UntypedStorage._new_shared(math.prod(shape))  # noqa: SLF001 - there is no public way
        self.tensor = torch.empty(0, dtype=torch.uint8).set_(storage).reshape(shape)
        pixels: Pixels = self.tensor.numpy()
        return pixels


def _tensor(values: Any) -> Any:
    if not isinstance(values, np.ndarray):
        return values
    # Arrow's own memory is read-only, and torch would warn of it at each batch.
    return import_module("torch").from_numpy(values if values.flags.writeable else values.copy())
