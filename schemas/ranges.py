"""Sets of sequence numbers as sorted, disjoint, half-open ranges: the arithmetic of receipts and of the ledger.

A settled epoch of a million samples is one pair. Every operation is pure; a `Ranges` never changes.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self, TypeAlias

from schemas.errors import SchemaError

Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ranges:
    """An immutable set of integers, held as half-open spans ``(low, high)``.

    Raises:
        SchemaError: the spans are empty, unsorted, touching or overlapping (use `Ranges.of` for any order).
    """

    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        floor = -1
        for low, high in self.spans:
            if low <= floor or high <= low:
                raise SchemaError(f"ranges must be sorted, disjoint and not empty; found [{low}, {high}) after {floor}")
            floor = high

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Self:
        """The union of spans in any order; empty ones are ignored, touching ones are joined."""
        merged: list[Span] = []
        for low, high in sorted(span for span in spans if span[0] < span[1]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    @property
    def count(self) -> int:
        """The number of integers in the set."""
        return sum(high - low for low, high in self.spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __contains__(self, number: int) -> bool:
        return self.covers(number, number + 1)

    def covers(self, low: int, high: int) -> bool:
        """Whether every integer of ``[low, high)`` is in the set; an empty span always is."""
        if low >= high:
            return True
        index = bisect_right(self.spans, low, key=lambda span: span[0]) - 1
        return index >= 0 and self.spans[index][1] >= high

    def union(self, other: Iterable[Span]) -> "Ranges":
        """All integers in either."""
        return Ranges.of((*self.spans, *other))

    def minus(self, other: "Ranges") -> "Ranges":
        """The integers of this set that are not in the other."""
        kept: list[Span] = []
        for low, high in self.spans:
            start = low
            for cut_low, cut_high in other.overlapping(low, high):
                if cut_low > start:
                    kept.append((start, cut_low))
                start = max(start, cut_high)
            if start < high:
                kept.append((start, high))
        return Ranges(tuple(kept))

    def overlapping(self, low: int, high: int) -> Iterator[Span]:
        """This set's spans that share an integer with ``[low, high)``, whole, in order."""
        index = max(0, bisect_right(self.spans, low, key=lambda span: span[0]) - 1)
        while index < len(self.spans) and self.spans[index][0] < high:
            if self.spans[index][1] > low:
                yield self.spans[index]
            index += 1

    def gaps(self, below: int) -> "Ranges":
        """The integers of ``[0, below)`` that are missing: the gaps of an epoch."""
        return Ranges.of([(0, below)]).minus(self)
