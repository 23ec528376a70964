"""What the core holds of a device: settled ranges and the books that say how they were settled. No IO."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import msgspec

from schemas.ranges import Ranges

BooksKey: TypeAlias = tuple[str, str]
"""A device and one of its streams; the stream "" holds messages that told none."""


class EpochKey(NamedTuple):
    """One epoch of one device's stream."""

    device: str
    stream: str
    epoch: int


class Counts(msgspec.Struct, frozen=True):
    """The books of one device's stream, in samples."""

    received: int = 0
    committed: int = 0
    quarantined: int = 0
    duplicate: int = 0
    dropped: int = 0

    @property
    def is_balanced(self) -> bool:
        """Promise 3: received = committed + quarantined + duplicate. What was dropped was never received."""
        return self.received == self.committed + self.quarantined + self.duplicate

    def plus(self, other: "Counts") -> "Counts":
        """The sum, count by count."""
        return Counts(
            self.received + other.received,
            self.committed + other.committed,
            self.quarantined + other.quarantined,
            self.duplicate + other.duplicate,
            self.dropped + other.dropped,
        )


@dataclass(frozen=True, slots=True)
class DeviceState:
    """All that the core holds of one device. Never changed; a run makes the next one.

    `books` are by stream. `forgotten` holds epochs that the device no longer lists: still guarded against late copies, no
    longer in receipts.
    """

    settled: Mapping[EpochKey, Ranges] = field(default_factory=dict)
    books: Mapping[str, Counts] = field(default_factory=dict)
    forgotten: frozenset[EpochKey] = frozenset()

    def after(
        self, touched: Mapping[EpochKey, Ranges], counts: Mapping[str, Counts], listed: frozenset[EpochKey] | None
    ) -> "DeviceState":
        """The state after a run.

        Args:
            touched: the new ranges of every epoch that changed.
            counts: what to add to the books, by stream.
            listed: the epochs that the device still knows; None if it did not say so in this run.
        """
        settled = {**self.settled, **{key: ranges for key, ranges in touched.items() if ranges}}
        books = dict(self.books)
        for stream, more in counts.items():
            books[stream] = books.get(stream, Counts()).plus(more)
        forgotten = self.forgotten if listed is None else frozenset(settled) - listed
        return DeviceState(settled, books, forgotten - frozenset(touched))


def books_by_stream(books: Mapping[BooksKey, Counts]) -> dict[str, Counts]:
    """The books of each stream over all its devices."""
    total: dict[str, Counts] = {}
    for (_device, stream), counts in sorted(books.items()):
        total[stream] = total.get(stream, Counts()).plus(counts)
    return total
