"""Drift: how far the values of some runs are spread otherwise than those of reference runs (population stability index).

Below 0.1 nothing has happened, from 0.25 on the population is another one: the usual reading of the index.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

GROUPS = 10
NULLS = "(null)"
SHIFTED, DRIFTED = 0.1, 0.25


class Reading(StrEnum):
    """What an index says."""

    STABLE = "stable"
    SHIFTED = "shifted"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Drift:
    """The index, and the group of values that adds most to it."""

    psi: float
    most: str

    @property
    def reading(self) -> Reading:
        """In words."""
        if self.psi >= DRIFTED:
            return Reading.DRIFTED
        return Reading.SHIFTED if self.psi >= SHIFTED else Reading.STABLE


def drift(reference: Mapping[str, int], current: Mapping[str, int], *, is_numeric: bool) -> Drift | None:
    """Compare two spreads; None if one of them is empty.

    Args:
        reference: counts per bin, nulls under `NULLS`.
        current: likewise.
        is_numeric: the bins are whole numbers with an order: they are put together to about ten groups, each with its share of
            the reference, so that empty bins do not make noise.
    """
    if not sum(reference.values()) or not sum(current.values()):
        return None
    cuts = _cuts(reference) if is_numeric else None
    before, after = _grouped(reference, cuts), _grouped(current, cuts)
    names = sorted({*before, *after})
    # Half a value in each group: an empty group would be infinitely far away.
    weight_before, weight_after = (sum(counts.values()) + 0.5 * len(names) for counts in (before, after))
    parts = {}
    for name in names:
        p, q = (before[name] + 0.5) / weight_before, (after[name] + 0.5) / weight_after
        parts[name] = (q - p) * math.log(q / p)
    return Drift(sum(parts.values()), max(names, key=lambda name: parts[name]))


def bounds_of(bin_: str) -> str:
    """A numeric bin as numbers: quarters of powers of two."""
    number = int(bin_)
    if number == 0:
        return "0"
    exponent = (abs(number) - 5_000) / 4
    low, high = 2**exponent, 2 ** (exponent + 0.25)
    return f"{low:.3g} to {high:.3g}" if number > 0 else f"{-high:.3g} to {-low:.3g}"


def _cuts(reference: Mapping[str, int]) -> list[int]:
    """The upper bins of groups that hold about equal shares of the reference."""
    ordered = sorted(int(name) for name in reference if name != NULLS)
    whole = sum(reference[str(number)] for number in ordered)
    cuts: list[int] = []
    filled = 0
    for number in ordered:
        filled += reference[str(number)]
        if filled >= whole * (len(cuts) + 1) / GROUPS:
            cuts.append(number)
    return cuts


def _grouped(counts: Mapping[str, int], cuts: Sequence[int] | None) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, count in counts.items():
        if cuts is None or name == NULLS:
            found[name] += count
            continue
        place = bisect_left(cuts, int(name))
        found[str(cuts[place]) if place < len(cuts) else "above"] += count
    return found
