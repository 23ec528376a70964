"""How many ranges one device may have in the ledger, and what happens beyond that: its oldest gaps are closed. No IO.

Ranges that touch are one, so a device that numbers without gaps has a handful. One with more than `max_ranges` has lost samples
for good, sends in an odd order, numbers against the rules, or means harm. Then the floor of its streams with the most ranges
rises over the oldest of them, until half of the bound is left: what was settled below is remembered as a floor, and what was
not is counted as `closed`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.books import BooksKey, Counts
from pipelines.lake.ledger_books import MAX_COUNT, books_after, floors_of
from pipelines.lake.ledger_rows import LedgerRows
from schemas.receipts import NO_FLOOR, Floor

MAX_DEVICE_RANGES = 20_000


@dataclass(frozen=True, slots=True)
class _Stream:
    """One stream's ranges in order of epoch and seq, and where they lie in the ledger's rows."""

    name: str
    start: int
    epochs: Any
    lows: Any
    highs: Any

    @property
    def count(self) -> int:
        return len(self.epochs)


def bounded(rows: LedgerRows, max_ranges: int) -> LedgerRows:
    """The same states, with no device above `max_ranges` ranges, or above one for each of its streams.

    Args:
        rows: by device, stream, epoch and low.
        max_ranges: of one device.
    """
    counts = pc.value_counts(rows.settled["device"].combine_chunks())
    crowded = counts.filter(pc.greater(counts.field("counts"), max_ranges)).field("values").to_pylist()
    if not crowded:
        return rows
    floors = floors_of(rows.books)
    is_kept = np.ones(rows.settled.num_rows, np.bool_)
    closed: dict[BooksKey, Counts] = {}
    raised: dict[BooksKey, Floor] = {}
    for device in crowded:
        streams = list(_streams(rows.settled, device))
        most = _most_per_stream([stream.count for stream in streams], max_ranges // 2)
        for stream in streams:
            if stream.count > most:
                key = (device, stream.name)
                before = floors.get(key, NO_FLOOR)
                raised[key], gone = _close(stream, stream.count - most, before)
                closed[key] = Counts(closed=_missing(stream, stream.count - most, before))
                is_kept[stream.start : stream.start + stream.count] = ~gone
    return LedgerRows(rows.settled.filter(pa.array(is_kept)), books_after(rows.books, closed, floors=raised))


def _streams(settled: pa.Table, device: str) -> Iterator[_Stream]:
    places = np.flatnonzero(pc.equal(settled["device"], device).to_numpy())
    start = int(places[0])
    own = settled.slice(start, len(places)).combine_chunks()
    codes = own["stream"].chunk(0).dictionary_encode()
    edges = [0, *(np.flatnonzero(np.diff(codes.indices.to_numpy())) + 1).tolist(), own.num_rows]
    epochs, lows, highs = (own[name].to_numpy() for name in ("epoch", "low", "high"))
    for low, high in pairwise(edges):
        name = own["stream"][low].as_py()
        yield _Stream(name, start + low, epochs[low:high], lows[low:high], highs[low:high])


def _most_per_stream(counts: list[int], target: int) -> int:
    """The largest number of ranges that each stream may keep so that all together keep no more than `target`; at least 1."""
    low, high = 1, max(counts)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) <= target:
            low = middle
        else:
            high = middle - 1
    return low


def _close(stream: _Stream, count: int, before: Floor) -> tuple[Floor, Any]:
    """The floor over the first `count` ranges, and which ranges lie below it."""
    epoch, seq = int(stream.epochs[count - 1]), int(stream.highs[count - 1])
    epoch, seq = max((epoch, seq), (int(before.epoch), before.seq))
    gone = (stream.epochs < epoch) | ((stream.epochs == epoch) & (stream.highs <= seq))
    return Floor(str(epoch), seq), gone


def _missing(stream: _Stream, count: int, before: Floor) -> int:
    """How many seqs between the first `count` ranges, above the floor before, were never seen."""
    epochs, lows, highs = stream.epochs[:count], stream.lows[:count], stream.highs[:count]
    own_epoch = int(before.epoch)
    starts = np.where(epochs == own_epoch, before.seq, 0)
    is_above = (epochs >= own_epoch) & (highs > starts)
    epochs, lows, highs, starts = epochs[is_above], lows[is_above], highs[is_above], starts[is_above]
    if not len(epochs):
        return 0
    # A device may number a new epoch for each sample: one pass over all epochs, not one for each.
    firsts = np.flatnonzero(np.concatenate(([True], epochs[1:] != epochs[:-1])))
    held = np.add.reduceat(highs - np.maximum(lows, starts), firsts)
    missing = np.maximum.reduceat(highs, firsts) - starts[firsts] - held
    # Summed as Python's integers: each fits 64 bits, their sum need not.
    total: int = sum(missing.tolist())
    return min(total, MAX_COUNT)
