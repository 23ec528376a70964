"""An epoch as numbered batches of arrays: the part of a loader that NumPy, JAX and PyTorch share."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyvips

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.training.order import EpochOrder, EpochState
from pipelines.training.payloads import AHEAD_ROWS
from pipelines.training.sample import Sample

Int64s = npt.NDArray[np.int64]
Batch = dict[str, Any]
Pixels = npt.NDArray[np.uint8]
INDEX = "index"
PAYLOAD = "payload"
_MAX_SIDE_PX = 16_384
_ORDER_BLOCK = 4_096


class OnBad(StrEnum):
    """What happens to a sample that cannot be read or decoded: it ends the epoch, or it is left out and counted."""

    RAISE = "raise"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How batches are made.

    `columns`: next to the payload; numbers become arrays, others lists. `image`: (height, width) that pictures are decoded and
    scaled to, as (N, height, width, 3) uint8; None: payloads stay bytes. `drop_last`: a last batch that is not full is left out.
    """

    batch_size: int
    columns: tuple[str, ...] = ()
    image: tuple[int, int] | None = None
    drop_last: bool = False
    on_bad: OnBad = OnBad.RAISE

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RefusedError(f"a batch of {self.batch_size} samples; give 1 or more")
        if self.image is not None and not all(0 < side <= _MAX_SIDE_PX for side in self.image):
            raise RefusedError(f"an image of {self.image[0]} x {self.image[1]} px; sides are from 1 to {_MAX_SIDE_PX:,}")


class SampleSource(Protocol):
    """What samples are read from: a training set, the chosen part of one, or several mixed."""

    def chunks(self, indexes: Int64s) -> Iterator[list[Sample]]:
        """These samples, in their order, some at a time."""
        ...

    @property
    def has_payload(self) -> bool:
        """Whether samples have payloads."""
        ...

    def payloads(self, indexes: Int64s) -> list[bytes]:
        """Their payloads alone, in a set that has them."""
        ...

    def mark_compared(self, indexes: Int64s) -> None:
        """Note that another process has compared the payloads of these samples with their sha256."""
        ...

    def trusted(self) -> "SampleSource":
        """The same samples, not compared with their sha256."""
        ...

    def names(self, indexes: Int64s) -> Batch:
        """What a batch says of which samples it holds: `index`, (samples,), and of mixed sets also `source`."""
        ...

    def take(self, indexes: Int64s, columns: Sequence[str]) -> pa.Table:
        """These columns of these rows, in their order."""
        ...

    def array_batch(self, indexes: Int64s) -> Batch:
        """The arrays of these samples, by name; none in a set without arrays."""
        ...

    def expect(self, indexes: Int64s) -> None:
        """Have samples brought near that will be read next."""
        ...


class ShuffledSamples:
    """An epoch in progress: iterate it, and ask for its state at any sample.

    Iterated again it goes on where it was left; once it came to its end, it begins again.
    """

    def __init__(self, source: SampleSource, order: EpochOrder, state: EpochState) -> None:
        self._source = source
        self._order = order
        self._state = state
        self._taken = 0

    def __len__(self) -> int:
        """Samples this rank has in all, from its start."""
        return len(self._order)

    def __iter__(self) -> Iterator[Sample]:
        if self._taken == len(self._order):
            self._taken = 0
        for low in range(self._taken, len(self._order), _ORDER_BLOCK):
            block = self._order.part(low, min(low + _ORDER_BLOCK, len(self._order)))
            left = len(block)
            for chunk in self._source.chunks(block):
                if left >= AHEAD_ROWS > left - len(chunk):
                    # The order goes on behind this block, and so does what is brought near.
                    end = low + len(block)
                    self._source.expect(self._order.part(end, min(end + AHEAD_ROWS, len(self._order))))
                left -= len(chunk)
                for sample in chunk:
                    self._taken += 1
                    yield sample

    def state(self) -> EpochState:
        """Where the epoch stands once every rank has taken as many samples as this one."""
        return msgspec.structs.replace(self._state, position=self._order.position_after(self._taken))


class SetBatches(Sequence[Batch]):
    """The batches of one rank's epoch, by number. May be pickled and shared between workers, each of which reads what it needs.

    `skipped` counts the samples that were left out in this process (`on_bad="skip"`).
    """

    def __init__(self, source: SampleSource, order: EpochOrder, options: BatchOptions, state: EpochState) -> None:
        self._source = source
        self._order = order
        self._options = options
        self._state = state
        self._group: tuple[int, Int64s] = (-1, np.zeros(0, np.int64))
        self._ahead = -(-AHEAD_ROWS // options.batch_size)
        self._expected: deque[int] = deque(maxlen=self._ahead)
        self.skipped = 0

    def __len__(self) -> int:
        samples, size = len(self._order), self._options.batch_size
        return samples // size if self._options.drop_last else -(-samples // size)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(len(self)))]
        return self.batch(number)

    def batch(self, number: int, pixels: Callable[[tuple[int, ...]], Pixels] | None = None) -> Batch:
        """A batch by its number; with `pixels`, pictures are decoded into what it gives for a shape.

        Raises:
            IndexError: there is no such batch.
        """
        at = number + len(self) if number < 0 else number
        if not 0 <= at < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        return self._batch(self._indexes(at), pixels or _new_pixels)

    def expect(self, number: int, step: int = 1) -> None:
        """Have the samples of a batch brought near, and of those after it as far as it takes to keep a disk busy.

        Args:
            number: of the batch; where there is none, nothing happens.
            step: from one of this reader's batches to its next.
        """
        for at in range(number, min(number + self._ahead * step, len(self)), step):
            if at not in self._expected:
                self._expected.append(at)
                self._source.expect(self._indexes(at))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            self.expect(number + 1)
            yield self[number]

    @property
    def has_bytes(self) -> bool:
        """Whether payloads come as they are, of all samples of a batch."""
        options = self._options
        return options.image is None and options.on_bad is OnBad.RAISE and self._source.has_payload

    def payloads(self, number: int) -> list[bytes]:
        """The payloads of a batch alone; only where it has them as bytes."""
        return self._source.payloads(self._indexes(number))

    def mark_compared(self, number: int) -> None:
        """Note that a worker has read a batch, and compared its payloads with their sha256."""
        if self._options.on_bad is OnBad.RAISE:
            self._source.mark_compared(self._indexes(number))

    def trusted(self) -> "SetBatches":
        """The same batches, their payloads not compared with their sha256: another process has done it."""
        return SetBatches(self._source.trusted(), self._order, self._options, self._state)

    def state_after(self, batches: int) -> EpochState:
        """Where the epoch stands once every rank has taken so many batches."""
        taken = min(batches * self._options.batch_size, len(self._order))
        return msgspec.structs.replace(self._state, position=self._order.position_after(taken))

    def _indexes(self, number: int) -> Int64s:
        # Batches' worth of an order at once: a few numbers cost as much as a few thousand.
        size = self._options.batch_size
        batches = max(1, _ORDER_BLOCK // size)
        group, at = divmod(number, batches)
        if self._group[0] != group:
            low = group * batches * size
            self._group = group, self._order.part(low, min(low + batches * size, len(self._order)))
        return self._group[1][at * size : (at + 1) * size]

    def _batch(self, indexes: Int64s, new_pixels: Callable[[tuple[int, ...]], Pixels]) -> Batch:
        chosen, payloads = self._payloads(indexes, new_pixels)
        batch = self._source.names(chosen)
        if payloads is not None:
            batch[PAYLOAD] = payloads
        else:
            batch |= self._source.array_batch(chosen)
        if self._options.columns:
            rows = self._source.take(chosen, self._options.columns)
            batch |= {name: values_of(rows.column(name)) for name in self._options.columns}
        return batch

    def _payloads(self, indexes: Int64s, new_pixels: Callable[[tuple[int, ...]], Pixels]) -> tuple[Int64s, Any]:
        """The rows that could be read, and their payloads: bytes, one array of pixels, or None in a tabular set."""
        image = self._options.image
        if self.has_bytes:
            return indexes, self._source.payloads(indexes)
        pixels = new_pixels((len(indexes), *image, 3)) if image is not None else None
        bodies: list[bytes] = []
        good: list[int] = []
        for index, sample in self._read(indexes):
            if sample.payload is None:
                return indexes, None
            if pixels is None:
                bodies.append(sample.payload)
            elif not self._decode(sample, pixels[len(good)]):
                continue
            good.append(index)
        chosen = indexes if len(good) == len(indexes) else np.array(good, np.int64)
        return chosen, bodies if pixels is None else pixels[: len(good)]

    def _read(self, indexes: Int64s) -> Iterator[tuple[int, Sample]]:
        if self._options.on_bad is OnBad.RAISE:
            yield from zip(indexes.tolist(), chain.from_iterable(self._source.chunks(indexes)), strict=True)
            return
        self._source.expect(indexes)
        for index in indexes.tolist():
            try:
                yield index, next(self._source.chunks(np.array([index], np.int64)))[0]
            except CorruptLakeError:
                # Counted: the caller chose this, and sees the number.
                self.skipped += 1

    def _decode(self, sample: Sample, into: Pixels) -> bool:
        try:
            into[:] = decode_image(sample.payload or b"", into.shape[0], into.shape[1])
        except CorruptLakeError as error:
            if self._options.on_bad is OnBad.RAISE:
                raise CorruptLakeError(f"sample {sample.index}: {error}") from error
            self.skipped += 1
            return False
        return True


def _new_pixels(shape: tuple[int, ...]) -> Pixels:
    return np.empty(shape, np.uint8)


def decode_image(payload: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode a JPEG or PNG and scale it to (height, width, 3) uint8, RGB. A JPEG is shrunk while it is decoded.

    Raises:
        CorruptLakeError: it is neither, or it is damaged.
    """
    load = "jpegload_buffer" if payload[:3] == b"\xff\xd8\xff" else "pngload_buffer" if payload[:4] == b"\x89PNG" else ""
    if not load:
        raise CorruptLakeError("the payload is neither JPEG nor PNG; read it as bytes and decode it yourself")
    try:
        picture = pyvips.Image.thumbnail_buffer(payload, width, height=height, size="force", fail_on="truncated")
        if picture.hasalpha():
            picture = picture.flatten()
        pixels = picture.colourspace("srgb").cast("uchar").numpy()
    except pyvips.Error as error:
        raise CorruptLakeError(f"the picture cannot be decoded: {str(error).splitlines()[0][:200]}") from error
    return np.ascontiguousarray(np.broadcast_to(pixels.reshape(height, width, -1)[:, :, :3], (height, width, 3)))


def values_of(column: pa.ChunkedArray) -> Any:
    """A column as an array where it holds numbers, booleans or times, else as a list; integers with nulls become float64."""
    kind = column.type
    if pa.types.is_integer(kind) and column.null_count:
        column = pc.cast(column, pa.float64(), safe=False)
    if pa.types.is_timestamp(kind):
        return pc.cast(pc.cast(column, pa.timestamp("us", kind.tz)), pa.int64()).to_numpy()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or (pa.types.is_boolean(kind) and not column.null_count):
        return column.to_numpy()
    return column.to_pylist()
