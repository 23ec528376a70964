"""Do the books balance? The devices' and the core's, against each other and against what the devices say they made."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from schemas.reported import StreamBooks


class AgentLedger(msgspec.Struct, frozen=True):
    """What `edge-agent books --json` tells."""

    device: str
    books: tuple[StreamBooks, ...]


class CoreStreamBooks(msgspec.Struct, frozen=True):
    """The core's books of one stream: one of the rows that `catchment books --json` tells."""

    stream: str
    received: int
    committed: int
    quarantined: int
    duplicate: int
    dropped: int = 0
    discarded: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether promise 3 holds."""
        return self.received == self.committed + self.quarantined + self.discarded + self.duplicate


def faults(
    agents: Sequence[AgentLedger], core: Sequence[CoreStreamBooks], made: Mapping[str, int], rows: Mapping[str, int]
) -> list[str]:
    """All that does not add up; empty when every captured sample is committed or accounted for.

    Args:
        agents: every device's books.
        core: the core's books.
        made: stream -> samples that the devices say they made, for streams where that is known.
        rows: stream -> rows in the lake.
    """
    found: list[str] = []
    captured: Counter[str] = Counter()
    settled: Counter[str] = Counter()
    for agent in agents:
        for book in agent.books:
            captured[book.stream] += book.captured
            settled[book.stream] += book.settled
            if not book.is_balanced:
                found.append(f"{agent.device} {book.stream}: captured {book.captured} is not settled + spooled + dropped: {book}")
            if book.spooled:
                found.append(f"{agent.device} {book.stream}: {book.spooled} samples still wait on the device")
    for stream, count in made.items():
        if captured[stream] != count:
            found.append(f"{stream}: the devices made {count} samples, their agents captured {captured[stream]}")
    known = {book.stream: book for book in core}
    for stream, count in settled.items():
        book_of_core = known.get(stream)
        if book_of_core is None:
            found.append(f"{stream}: {count} samples settled on devices, the core knows nothing of them")
            continue
        found += _core_faults(book_of_core, count, rows.get(stream, 0))
    return found


def _core_faults(book: CoreStreamBooks, settled: int, rows: int) -> list[str]:
    found = []
    if not book.is_balanced:
        found.append(f"{book.stream}: received is not committed + quarantined + discarded + duplicate: {book}")
    of_core = book.committed + book.quarantined + book.discarded
    if of_core != settled:
        found.append(f"{book.stream}: devices hold {settled} as settled, the core {of_core}")
    if book.committed != rows:
        found.append(f"{book.stream}: the core's books say {book.committed} rows, the lake has {rows}")
    return found
