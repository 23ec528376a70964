"""The core's state after a run: settled ranges and the books that say how they were settled. No IO."""

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
    """The books of one device's stream, in samples: `quarantined` wait there, `discarded` were let go of by a person."""

    received: int = 0
    committed: int = 0
    quarantined: int = 0
    discarded: int = 0
    duplicate: int = 0
    dropped: int = 0

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
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """The state of the core after run `run`. Never changed; a run makes the next one.

    `forgotten` holds epochs that their device no longer lists: still guarded against late copies, no longer in receipts.
    """

    run: int = 0
    settled: Mapping[EpochKey, Ranges] = field(default_factory=dict)
    books: Mapping[BooksKey, Counts] = field(default_factory=dict)
    forgotten: frozenset[EpochKey] = frozenset()

    def after(
        self,
        run: int,
        touched: Mapping[EpochKey, Ranges],
        counts: Mapping[BooksKey, Counts],
        listed: Mapping[str, frozenset[EpochKey]],
    ) -> "Ledger":
        """The ledger after a run.

        Args:
            run: its number.
            touched: the new ranges of every epoch that changed.
            counts: what to add to the books.
            listed: per device that reported in this run, the epochs it still knows.
        """
        settled = {**self.settled, **touched}
        books = dict(self.books)
        for key, more in counts.items():
            books[key] = books.get(key, Counts()).plus(more)
        forgotten = self.forgotten
        if listed:
            quiet = {key for key in settled if key[0] in listed and key not in listed[key[0]]}
            forgotten = frozenset(key for key in forgotten if key[0] not in listed) | quiet
        return Ledger(run, settled, books, forgotten - frozenset(touched))

    def unbalanced(self) -> list[BooksKey]:
        """The streams whose books do not balance: must be empty."""
        return [key for key, counts in self.books.items() if not counts.is_balanced]

    def devices(self) -> set[str]:
        """Every device with a settled sample."""
        return {key[0] for key in self.settled}


def books_by_stream(books: Mapping[BooksKey, Counts]) -> dict[str, Counts]:
    """The books of each stream over all its devices."""
    total: dict[str, Counts] = {}
    for (_device, stream), counts in sorted(books.items()):
        total[stream] = total.get(stream, Counts()).plus(counts)
    return total
