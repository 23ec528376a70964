"""Which samples of arriving envelopes are new: the one place where duplicates are told apart. No IO.

1. Envelopes are judged in landing order: bridge, segment, row.
2. A sample is a duplicate if its seq is in its epoch's settled ranges, or an earlier envelope of the plan brought it.
3. What is left is fresh, and settled from then on: it will be committed or quarantined by this very run.
4. A range that its device reports as dropped is settled too, as far as it did not arrive before.
5. Below the floor of its stream (`schemas.receipts.Floor`) a sample that is not settled may be a copy of one that was: it is
   late, and is settled by quarantine, never as a row.
6. A stream beyond what one device may have is turned away: nothing of it is settled.

The cost is per envelope, never per sample, and grows with the logarithm of what is settled.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from pipelines.ingest.span_set import SpanSet
from pipelines.lake.books import BooksKey, EpochKey
from schemas.ranges import Ranges, Span
from schemas.receipts import NO_FLOOR, Floor

MAX_DEVICE_STREAMS = 1_000
"""How many streams the core keeps ranges and books of for one device."""


class Head(NamedTuple):
    """The span an envelope claims: seqs `[first_seq, first_seq + samples)`."""

    key: EpochKey
    first_seq: int
    samples: int


class DropReport(NamedTuple):
    """A device's word that it gave up these seqs."""

    key: EpochKey
    spans: tuple[Span, ...]


FreshSpans: TypeAlias = tuple[Span, ...]
"""The fresh seq spans of one envelope, in order; empty if all of it is known."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What admission keeps to: the floors of streams, and which streams each device has already."""

    floors: Mapping[BooksKey, Floor] = field(default_factory=lambda: MappingProxyType({}))
    streams: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    max_streams: int = MAX_DEVICE_STREAMS


@dataclass(slots=True)
class Admission:
    """What a plan's envelopes change.

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
