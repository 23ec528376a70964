"""The books: how many samples of each device's stream came, and what became of them. No IO."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import msgspec

BooksKey: TypeAlias = tuple[str, str]
"""A device and one of its streams; the stream "" holds messages that told none."""


class EpochKey(NamedTuple):
    """One epoch of one device's stream."""

    device: str
    stream: str
    epoch: int


class Counts(msgspec.Struct, frozen=True):
    """The books of one device's stream, in samples: `quarantined` wait there, `discarded` were discarded by a person.

    `closed` are seqs of gaps that were closed unseen, because the device had more ranges than the ledger keeps.
    """

    received: int = 0
    committed: int = 0
    quarantined: int = 0
    discarded: int = 0
    duplicate: int = 0
    dropped: int = 0
    closed: int = 0

    @property
    def is_balanced(self) -> bool:
        """Promise 3: received = committed + quarantined + discarded + duplicate. What was dropped was never received."""
        return self.received == self.committed + self.quarantined + self.discarded + self.duplicate

    def plus(self, other: "Counts") -> "Counts":
        """The sum, count by count."""
        return Counts(
            self.received + other.received,
            self.committed + other.committed,
            self.quarantined + other.quarantined,
            self.discarded + other.discarded,
            self.duplicate + other.duplicate,
            self.dropped + other.dropped,
            self.closed + other.closed,
        )


def books_by_stream(books: Mapping[BooksKey, Counts]) -> dict[str, Counts]:
    """The books of each stream over all its devices."""
    total: dict[str, Counts] = {}
    for (_device, stream), counts in sorted(books.items()):
        total[stream] = total.get(stream, Counts()).plus(counts)
    return total
