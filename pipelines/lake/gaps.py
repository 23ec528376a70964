"""Gaps: seqs that a device must have used, since later ones are here, and that have not come. No IO.

A seq counts from 0 without gaps, so a gap is a sample on its way, or lost. It closes when the sample comes, late or again, or
when its device reports that it dropped it. An epoch that its device no longer lists will not be sent again: what is missing
of it is lost, unless somebody finds the device's disk. Below the floor of its stream a gap is closed and counted as such.

Stands alone because it is a decision without IO.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.books import BooksKey
from pipelines.lake.ledger import Ledger
from pipelines.lake.ledger_books import floors_of
from pipelines.lake.ledger_rows import same_epoch
from schemas.receipts import NO_FLOOR, Floor


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
