"""Which devices stand out: the core refuses all that one of their streams sends, or their settled ranges are many. No IO."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from pipelines.lake.ledger import Ledger
from pipelines.lake.ledger_books import IN_ROW
from schemas.receipts import ALL_REFUSED_FROM

MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class RefusedDevice:
    """The core refuses all that a stream of a device sends: `samples` in a row, mostly for `reason`.

    Stream "": messages that named none.
    """

    device: str
    stream: str
    samples: int
    reason: str


@dataclass(frozen=True, slots=True)
class CrowdedDevice:
    """A device with many settled ranges."""

    device: str
    ranges: int


@dataclass(frozen=True, slots=True)
class Devices:
    """What a person should know of single devices: the first of each kind by name, and how many there are."""

    refused: tuple[RefusedDevice, ...] = ()
    refused_count: int = 0
    crowded: tuple[CrowdedDevice, ...] = ()
    ranges: int = 0


def devices_of(ledger: Ledger) -> Devices:
    """Look through the ledger, column by column."""
    whole = ledger.whole()
    committed, quarantined, in_row = (whole.books[name].to_numpy() for name in ("committed", "quarantined", IN_ROW))
    places = np.flatnonzero((quarantined > 0) & ((in_row >= ALL_REFUSED_FROM) | (committed == 0)))
    columns = [whole.books[name].take(places[:MAX_NAMED]).to_pylist() for name in ("device", "stream", IN_ROW, "reason")]
    refused = tuple(
        RefusedDevice(device, stream, samples, reason) for device, stream, samples, reason in zip(*columns, strict=True)
    )
    counts = pc.value_counts(whole.settled["device"].combine_chunks())
    order = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])[:MAX_NAMED]
    rows = counts.take(order).to_pylist()
    crowded = tuple(CrowdedDevice(row["values"], row["counts"]) for row in rows)
    return Devices(refused, len(places), crowded, whole.settled.num_rows)
