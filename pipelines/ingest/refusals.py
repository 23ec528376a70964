"""Which reasons a work item refuses samples for, and how often: the kinds of them, without values of samples. No IO."""

from collections import Counter
from functools import lru_cache

from pipelines.ingest.work import RefusalCount
from pipelines.lake.quarantined import kind_of
from schemas.receipts import MAX_REASON_CHARS

MAX_KINDS = 16
OTHERS = "other reasons"

_kind = lru_cache(maxsize=4_096)(kind_of)


class RefusalTally:
    """Counts refusals by device, stream and kind of reason; beyond `MAX_KINDS` of one stream they are one kind."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Counter[str]] = {}

    def add(self, device: str, stream: str, reason: str, count: int) -> None:
        """Count refused samples. The ledger and receipts show the reason, so numbers, digests and quoted words are left out."""
        if not count:
            return
        tally = self._tallies.setdefault((device, stream), Counter())
        kind = "".join(sign if sign.isprintable() else " " for sign in _kind(reason[:2_000])[:MAX_REASON_CHARS])
        tally[kind if kind in tally or len(tally) < MAX_KINDS else OTHERS] += count

    def counts(self) -> tuple[RefusalCount, ...]:
        """The counts, by device, stream and reason."""
        return tuple(
            RefusalCount(*key, reason, count)
            for key in sorted(self._tallies)
            for reason, count in sorted(self._tallies[key].items())
        )
