"""Decide which samples of arriving envelopes are new: the one place where duplicates are told apart. No IO.

1. Envelopes are judged in landing order: bridge, segment, row.
2. A sample is a duplicate if its seq is in its epoch's settled ranges, or an earlier envelope of the plan brought it.
3. What is left is fresh, and settled from then on: it will be committed or quarantined by this very run.
4. A range that its device reports as dropped is settled too, as far as it did not arrive before.
5. Below the floor of its stream (`schemas.receipts.Floor`) a sample that is not settled may be a copy of one that was: it is
   late, and is settled by quarantine, never as a row.
6. A stream beyond what one device may have is turned away: nothing of it is settled.

The cost is per envelope, never per sample, and grows with the logarithm of what is settled.

Seqs already claimed are kept as half-open spans in blocks: a claim costs about the same wherever it falls. One sorted list
would be rebuilt for each envelope that does not continue the one before it, which is quadratic for a device that sends its
newest samples first.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from pipelines.lake.books import BooksKey, EpochKey
from schemas.ranges import Ranges, Span
from schemas.receipts import NO_FLOOR, Floor

BLOCK_SPANS = 512
_low = itemgetter(0)

MAX_DEVICE_STREAMS = 1_000
"""How many streams the core keeps ranges and books of for one device."""


class SpanSet:
    """Sorted, disjoint spans that do not touch, held in blocks of at most twice `BLOCK_SPANS`.

    Args:
        spans: sorted, disjoint and not touching, as a `Ranges` has them.
    """

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        known = list(spans)
        self._blocks = [known[start : start + BLOCK_SPANS] for start in range(0, len(known), BLOCK_SPANS)] or [[]]
        self._lows = [block[0][0] for block in self._blocks if block] or [0]

    def spans(self) -> tuple[Span, ...]:
        """All spans in order."""
        return tuple(span for block in self._blocks for span in block)

    def claim(self, low: int, high: int) -> tuple[Span, ...]:
        """Add `[low, high)` and return what of it is new, in order."""
        if low >= high:
            return ()
        last = self._blocks[-1]
        if not last or low > last[-1][1]:
            self._insert(len(self._blocks) - 1, len(last), (low, high))
            return ((low, high),)
        place, index = self._find(low)
        block = self._blocks[place]
        if index < len(block) and block[index][0] <= low and high <= block[index][1]:
            return ()
        fresh, joined = self._take_touching(place, index, low, high)
        self._insert(place, index, joined)
        return fresh

    def _find(self, low: int) -> tuple[int, int]:
        """The block and index of the first span that ends at `low` or later."""
        place = max(0, bisect_right(self._lows, low) - 1)
        block = self._blocks[place]
        index = bisect_right(block, low, key=_low)
        return place, index - 1 if index and block[index - 1][1] >= low else index

    def _take_touching(self, place: int, index: int, low: int, high: int) -> tuple[tuple[Span, ...], Span]:
        """Remove the spans from here on that touch `[low, high)`; what of it they do not hold, and all of it as one span."""
        fresh: list[Span] = []
        at, start, end = low, low, high
        here, first = place, index
        while here < len(self._blocks):
            block = self._blocks[here]
            beyond = first
            while beyond < len(block) and block[beyond][0] <= high:
                known_low, known_high = block[beyond]
                if known_low > at:
                    fresh.append((at, known_low))
                at, start, end = max(at, known_high), min(start, known_low), max(end, known_high)
                beyond += 1
            is_emptied = beyond == len(block)
            del block[first:beyond]
            if not is_emptied:
                self._lows[here] = block[0][0]
                break
            here, first = here + 1, 0
        del self._blocks[place + 1 : here]
        del self._lows[place + 1 : here]
        if at < high:
            fresh.append((at, high))
        return tuple(fresh), (start, end)

    def _insert(self, place: int, index: int, span: Span) -> None:
        block = self._blocks[place]
        block.insert(index, span)
        self._lows[place] = block[0][0]
        if len(block) > 2 * BLOCK_SPANS:
            self._blocks[place : place + 1] = [block[:BLOCK_SPANS], block[BLOCK_SPANS:]]
            self._lows[place : place + 1] = [block[0][0], block[BLOCK_SPANS][0]]


class Head(NamedTuple):
    """The span an envelope claims: seqs `[first_seq, first_seq + samples)`."""

    key: EpochKey
    first_seq: int
    samples: int


class DropReport(NamedTuple):
    """A device's word that it gave up these seqs."""

    key: EpochKey
    spans: tuple[Span, ...]


class BeyondSpan(NamedTuple):
    """Samples of a stream too many: settled by quarantine, and in no ledger, which such streams would grow without end."""

    stream: str
    epoch: int
    low: int
    high: int


Beyond: TypeAlias = Mapping[str, Sequence[BeyondSpan]]
"""By device."""
NO_BEYOND: Beyond = MappingProxyType({})

FreshSpans: TypeAlias = tuple[Span, ...]
"""The fresh seq spans of one envelope, in order; empty if all of it is known."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of admission: the floors of streams, and the streams that each device has already."""

    floors: Mapping[BooksKey, Floor] = field(default_factory=lambda: MappingProxyType({}))
    streams: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    max_streams: int = MAX_DEVICE_STREAMS


@dataclass(slots=True)
class Admission:
    """The changes by a plan's envelopes.

    `fresh_by_place` has one entry per judged item in order (for `DropReport`: what was newly settled by it); `touched` the new
    settled ranges of every epoch that changed. By the index of their item: `late` has the spans of an envelope that are below
    the floor and not settled, `turned_away` the items of streams that are too many.
    """

    fresh_by_place: list[FreshSpans] = field(default_factory=list)
    touched: dict[EpochKey, Ranges] = field(default_factory=dict)
    late: dict[int, FreshSpans] = field(default_factory=dict)
    turned_away: set[int] = field(default_factory=set)


def admit(arrivals: Iterable[Head | DropReport], settled: Mapping[EpochKey, Ranges], bounds: Bounds | None = None) -> Admission:
    """Judge arrivals in order against what was settled before them.

    Args:
        arrivals: heads and drop reports in landing order.
        settled: the ledger before this run.
        bounds: floors and known streams before this run; None: no floors, no streams.
    """
    bounds = bounds or Bounds()
    admission = Admission()
    sets: dict[EpochKey, SpanSet] = {}
    streams: dict[str, set[str]] = {}
    for index, arrival in enumerate(arrivals):
        key = arrival.key
        known = sets.get(key)
        if known is None:
            if not _has_room(key, streams, bounds):
                admission.turned_away.add(index)
                admission.fresh_by_place.append(())
                continue
            known = sets[key] = SpanSet(settled.get(key, Ranges()).spans)
        is_head = isinstance(arrival, Head)
        spans = ((arrival.first_seq, arrival.first_seq + arrival.samples),) if isinstance(arrival, Head) else arrival.spans
        fresh = tuple(span for low, high in spans for span in known.claim(low, high))
        below = bounds.floors.get((key.device, key.stream), NO_FLOOR).below(key.epoch)
        if below and fresh and fresh[0][0] < below:
            late = tuple((low, min(high, below)) for low, high in fresh if low < below)
            fresh = tuple((max(low, below), high) for low, high in fresh if high > below)
            if is_head:
                admission.late[index] = late
        admission.fresh_by_place.append(fresh)
    admission.touched = {key: Ranges(known.spans()) for key, known in sets.items()}
    return admission


def _has_room(key: EpochKey, streams: dict[str, set[str]], bounds: Bounds) -> bool:
    """Whether the device may have this stream; it counts as the device's from here on."""
    known = streams.get(key.device)
    if known is None:
        known = streams[key.device] = set(bounds.streams.get(key.device, ()))
    if key.stream in known:
        return True
    if len(known) >= bounds.max_streams:
        return False
    known.add(key.stream)
    return True
