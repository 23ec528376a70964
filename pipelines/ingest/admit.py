"""Which samples of arriving envelopes are new: the one place where duplicates are told apart. No IO.

1. Envelopes are judged in landing order: bridge, segment, row.
2. A sample is a duplicate if its seq is in its epoch's settled ranges, or an earlier envelope of the plan brought it.
3. What is left is fresh, and settled from then on: it will be committed or quarantined by this very run.
4. A range that its device reports as dropped is settled too, as far as it did not arrive before.

The cost is per envelope, never per sample: an envelope is one span, and devices mostly send their spans in order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from pipelines.lake.books import EpochKey
from schemas.ranges import Ranges, Span


class Head(NamedTuple):
    """The span an envelope claims: seqs `[first_seq, first_seq + samples)`."""

    key: EpochKey
    first_seq: int
    samples: int


class Dropped(NamedTuple):
    """A device's word that it gave up these seqs."""

    key: EpochKey
    spans: tuple[Span, ...]


Verdict: TypeAlias = tuple[Span, ...]
"""The fresh seq spans of one envelope, in order; empty if all of it is known."""


@dataclass(slots=True)
class Admission:
    """What a plan's envelopes change.

    `verdicts` has one entry per judged item in order (for `Dropped`: what was newly settled by it); `touched` the new
    settled ranges of every epoch that changed.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    touched: dict[EpochKey, Ranges] = field(default_factory=dict)


def admit(arrivals: Iterable[Head | Dropped], settled: Mapping[EpochKey, Ranges]) -> Admission:
    """Judge arrivals in order against what was settled before them.

    Args:
        arrivals: heads and drop reports in landing order.
        settled: the ledger before this run.
    """
    spans: dict[EpochKey, list[Span]] = {}
    verdicts: list[Verdict] = []
    for arrival in arrivals:
        known = spans.get(arrival.key)
        if known is None:
            known = spans[arrival.key] = list(settled.get(arrival.key, Ranges()).spans)
        if isinstance(arrival, Head):
            verdicts.append(_claim(known, arrival.first_seq, arrival.first_seq + arrival.samples))
        else:
            verdicts.append(tuple(span for low, high in arrival.spans for span in _claim(known, low, high)))
    return Admission(verdicts, {key: Ranges(tuple(known)) for key, known in spans.items()})


def _claim(known: list[Span], low: int, high: int) -> Verdict:
    """Take `[low, high)` into `known` and return what of it is new."""
    if not known or low > known[-1][1]:
        known.append((low, high))
        return ((low, high),)
    if low == known[-1][1]:
        known[-1] = (known[-1][0], high)
        return ((low, high),)
    before = Ranges(tuple(known))
    fresh = Ranges(((low, high),)).minus(before)
    if fresh:
        known[:] = before.union(fresh).spans
    return fresh.spans
