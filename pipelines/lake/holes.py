"""Holes: seqs that a device must have used, since later ones are here, and that have not come. No IO.

A seq counts from 0 without holes, so a hole is a sample on its way, or lost. It closes when the sample comes, late or again, or
when its device reports that it dropped it. An epoch that its device no longer lists will not be sent again: what is missing
of it is lost, unless somebody finds the device's disk.
"""

from dataclasses import dataclass

from pipelines.lake.books import Ledger
from schemas.ranges import Ranges, Span


@dataclass(frozen=True, slots=True)
class Hole:
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


def holes(ledger: Ledger, device: str = "", stream: str = "") -> list[Hole]:
    """All holes of a device or stream, of all of them by default, by device, stream, epoch and seq."""
    return [
        Hole(*key, low, high, key not in ledger.forgotten)
        for key in sorted(ledger.settled)
        if device in ("", key.device) and stream in ("", key.stream)
        for low, high in _gaps(ledger.settled[key])
    ]


def _gaps(settled: Ranges) -> tuple[Span, ...]:
    if not settled:
        return ()
    return Ranges(((0, settled.spans[-1][1]),)).minus(settled).spans
