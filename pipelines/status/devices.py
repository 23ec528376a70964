"""Which devices stand out: the core refuses all that one of their streams sends, or their settled ranges are many. No IO."""

from dataclasses import dataclass

import pyarrow.compute as pc

from pipelines.lake.ledger import Ledger
from pipelines.lake.ledger_books import IN_ROW
from schemas.receipts import ALL_REFUSED_FROM

MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class RefusedDevice:
    """The core refuses all that a stream of a device sends: `samples` in a row, mostly for `reason`.

    Stream "": messages that named none. `others`: so many more streams of the device are refused entirely, with fewer samples.
    """

    device: str
    stream: str
    samples: int
    reason: str
    others: int = 0


@dataclass(frozen=True, slots=True)
class CrowdedDevice:
    """A device with many settled ranges."""

    device: str
    ranges: int


@dataclass(frozen=True, slots=True)
class Devices:
    """What a person should know of single devices: the first of each kind, and how many there are.

    `refused` has one entry for each device, `refused_streams` counts the streams of all.
    """

    refused: tuple[RefusedDevice, ...] = ()
    refused_count: int = 0
    refused_streams: int = 0
    crowded: tuple[CrowdedDevice, ...] = ()
    ranges: int = 0


def devices_of(ledger: Ledger) -> Devices:
    """Look through the ledger, column by column."""
    whole = ledger.whole()
    committed, quarantined, in_row = (whole.books[name].to_numpy() for name in ("committed", "quarantined", IN_ROW))
    is_total = (quarantined > 0) & ((in_row >= ALL_REFUSED_FROM) | (committed == 0))
    books = whole.books.filter(is_total).sort_by([("device", "ascending"), (IN_ROW, "descending"), ("stream", "ascending")])
    first = books.group_by("device", use_threads=False).aggregate(
        [("stream", "first"), (IN_ROW, "first"), ("reason", "first"), ("stream", "count")]
    )
    names = ("device", "stream_first", f"{IN_ROW}_first", "reason_first", "stream_count")
    rows = zip(*(first.slice(0, MAX_NAMED)[name].to_pylist() for name in names), strict=True)
    refused = tuple(RefusedDevice(device, stream, samples, why, count - 1) for device, stream, samples, why, count in rows)
    counts = pc.value_counts(whole.settled["device"].combine_chunks())
    order = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])[:MAX_NAMED]
    crowded = tuple(CrowdedDevice(row["values"], row["counts"]) for row in counts.take(order).to_pylist())
    return Devices(refused, first.num_rows, books.num_rows, crowded, whole.settled.num_rows)
