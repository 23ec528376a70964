"""The core's state after a run: which seqs of which devices are settled, the gaps between them, and how many may stay. No IO.

A run touches few devices of many. So a ledger is a base, the whole as an earlier run left it, and a delta: the devices that
have changed since, each in full. A delta that has grown to a share of its base is put into it, which makes the next base.
What is base and what is delta follows from the runs alone, so a run done again after a crash gives the same.

Ranges that touch are one, so a device that numbers without gaps has a handful. One with more than `max_ranges` has lost samples
for good, sends in an odd order, numbers against the rules, or means harm. Then the floor of its streams with the most ranges
rises over the oldest of them, until half of the bound is left: what was settled below is remembered as a floor, and what was
not is counted as `closed`.

A seq counts from 0 without gaps, so a gap is a sample on its way, or lost. It closes when the sample comes, late or again, or
when its device reports that it dropped it. An epoch that its device no longer lists will not be sent again: what is missing
of it is lost, unless somebody finds the device's disk. Below the floor of its stream a gap is closed and counted as such.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.books import (
    COUNTS,
    MAX_COUNT,
    NO_REASONS,
    BooksKey,
    Counts,
    EpochKey,
    Reasons,
    books_after,
    counts_of,
    floors_of,
)
from pipelines.lake.ledger_rows import NO_ROWS, LedgerRows, same_epoch
from schemas.ranges import Ranges
from schemas.receipts import NO_FLOOR, Floor

KEPT_LEDGERS = 20
DELTA_SHARE = 8
"""A delta holds at most one row for so many of its base."""
MAX_DEVICE_RANGES = 20_000


@dataclass(frozen=True, slots=True)
class Ledger:
    """The state of the core after run `run`. Never changed; a run makes the next one.

    `bases` are the runs that left a whole ledger which one of the last `KEPT_LEDGERS` ledgers needs; `base` is that of the
    last of them, `delta` the devices that have changed since.
    """

    run: int = 0
    base: LedgerRows = NO_ROWS
    delta: LedgerRows = NO_ROWS
    bases: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether this ledger is a base itself."""
        return self.bases[-1:] == (self.run,)

    def after(
        self,
        run: int,
        touched: Mapping[EpochKey, Ranges],
        counts: Mapping[BooksKey, Counts],
        listed: Mapping[str, frozenset[EpochKey]],
        *,
        reasons: Reasons = NO_REASONS,
        max_ranges: int = MAX_DEVICE_RANGES,
    ) -> "Ledger":
        """The ledger after a run.

        Args:
            run: its number.
            touched: the new ranges of every epoch that changed.
            counts: what to add to the books.
            listed: per device that reported in this run, the epochs it still knows.
            reasons: how many samples of a stream in `counts` were refused for which reason.
            max_ranges: how many ranges a device may have; beyond it the oldest gaps are closed.
        """
        devices = {*map(itemgetter(0), touched), *map(itemgetter(0), counts), *listed}
        after = self.of(devices).after(touched, counts, listed, reasons)
        return self._next(run, self.delta.updated(bounded(after, max_ranges)))

    def _next(self, run: int, delta: LedgerRows) -> "Ledger":
        if self.bases and delta.count * DELTA_SHARE <= self.base.count:
            return Ledger(run, self.base, delta, needed_bases(self.bases, run))
        return Ledger(run, self.base.updated(delta), NO_ROWS, needed_bases((*self.bases, run), run))

    def of(self, devices: Iterable[str]) -> LedgerRows:
        """The states of those of these devices that the ledger knows."""
        wanted = pa.array(list(devices), pa.string())
        return self.base.of(wanted).updated(self.delta.of(wanted))

    def whole(self) -> LedgerRows:
        """The states of all devices."""
        return self.base.updated(self.delta)

    @property
    def books(self) -> dict[BooksKey, Counts]:
        """The books of every device and stream: for looking, not for what every run does."""
        return counts_of(self.whole().books)

    def books_by_stream(self) -> dict[str, Counts]:
        """The books of each stream over all its devices, by name."""
        totals = (
            self.whole()
            .books.group_by("stream", use_threads=False)
            .aggregate([(name, "sum") for name in COUNTS])
            .sort_by("stream")
        )
        rows = zip(totals["stream"].to_pylist(), *(totals[f"{name}_sum"].to_pylist() for name in COUNTS), strict=True)
        return {stream: Counts(*counts) for stream, *counts in rows}

    def unbalanced(self) -> list[BooksKey]:
        """The streams whose books do not balance: must be empty."""
        if not self.base.unbalanced():
            return self.delta.unbalanced()
        return self.whole().unbalanced()

    def devices(self) -> set[str]:
        """Every device with a settled sample."""
        chunks = [*self.base.settled["device"].chunks, *self.delta.settled["device"].chunks]
        return set(pa.chunked_array(chunks, pa.string()).unique().to_pylist())

    def devices_with_receipt(self) -> set[str]:
        """Every device to which the core has something to say: with a settled sample, or with books."""
        chunks = [*self.base.books["device"].chunks, *self.delta.books["device"].chunks]
        return (self.devices() | set(pa.chunked_array(chunks, pa.string()).unique().to_pylist())) - {""}


def needed_bases(bases: tuple[int, ...], run: int) -> tuple[int, ...]:
    """Of these bases, those that the ledgers of the last `KEPT_LEDGERS` runs up to `run` need."""
    oldest = run - KEPT_LEDGERS + 1
    while len(bases) > 1 and bases[1] <= oldest:
        bases = bases[1:]
    return bases


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


@dataclass(frozen=True, slots=True)
class Gap:
    """Seqs `[low, high)` of an epoch are missing. `is_awaited`: the device still knows the epoch and may send them."""

    device: str
    stream: str
    epoch: int
    low: int
    high: int
    is_awaited: bool

    @property
    def samples(self) -> int:
        """How many samples are missing."""
        return self.high - self.low


def gaps(ledger: Ledger, device: str = "", stream: str = "") -> list[Gap]:
    """All gaps of a device or stream, of all of them by default, by device, stream, epoch and seq."""
    whole = ledger.whole()
    settled, floors = whole.settled, floors_of(whole.books)
    for name, wanted in (("device", device), ("stream", stream)):
        if wanted:
            settled = settled.filter(pc.equal(settled[name], wanted))
    # What is missing before a span begins where the span before it ends, or at 0 if it is its epoch's first.
    before = np.zeros(settled.num_rows, np.int64)
    before[1:] = settled["high"].to_numpy()[:-1]
    before[~same_epoch(settled)] = 0
    is_after_gap = settled["low"].to_numpy() > before
    found = settled.filter(pa.array(is_after_gap)).append_column("from", pa.array(before[is_after_gap]))
    columns = [found[name].to_pylist() for name in ("device", "stream", "epoch", "from", "low", "asked")]
    found_gaps = (_above_floor(Gap(*row), floors) for row in zip(*columns, strict=True))
    return [gap for gap in found_gaps if gap is not None]


def _above_floor(gap: Gap, floors: Mapping[BooksKey, Floor]) -> Gap | None:
    below = floors.get((gap.device, gap.stream), NO_FLOOR).below(gap.epoch)
    return gap if below <= gap.low else replace(gap, low=below) if below < gap.high else None
