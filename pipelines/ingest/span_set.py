"""A growing set of seqs as half-open spans, in blocks: a claim costs about the same wherever it falls. No IO.

One sorted list would be rebuilt for each envelope that does not continue the one before it, which is quadratic for a device
that sends its newest samples first.
"""

from bisect import bisect_right
from collections.abc import Iterable
from operator import itemgetter

from schemas.ranges import Span

BLOCK_SPANS = 512
_low = itemgetter(0)


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
