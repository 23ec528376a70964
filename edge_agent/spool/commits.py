"""One transaction of the spool: appends with eviction where the quota asks for it, and other changes beside them."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.spool import changes
from edge_agent.spool.changes import Removed
from edge_agent.spool.database import RESERVE_BYTES, used_bytes
from edge_agent.spool.objects import ObjectStore
from edge_agent.spool.quota import choose_victims
from edge_agent.spool.records import Append, DropReason
from schemas.envelope import Span

# Freed beyond what is needed, so that a full spool does not evict at every append.
_EVICT_AT_LEAST_BYTES = 256 * 1024
_CANDIDATES = 512
# The soft limit keeps a little below the hard page cap, which stays the last resort.
_SLACK_BYTES = 512 * 1024

Change = Callable[[sqlite3.Connection], Removed]


def soft_limit_bytes(max_bytes: int) -> int:
    """What a quota leaves for samples: a spool that holds this much is full."""
    return max_bytes - RESERVE_BYTES - _SLACK_BYTES


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction did: the spans given to each append, the outcome of each change, what left the spool."""

    spans: tuple[Span, ...]
    outcomes: tuple[Removed, ...]
    removed: Removed


class Ledgerhand:
    """Carries out transactions for the one epoch that is open. Used by the writer thread alone."""

    def __init__(self, db: sqlite3.Connection, epoch: int, max_bytes: int, objects: ObjectStore) -> None:
        self.epoch = epoch
        self._db = db
        self._objects = objects
        self._soft_limit_bytes = soft_limit_bytes(max_bytes)
        self._next_seq: dict[str, int] = {}
        self._next_id = 1 + db.execute("SELECT coalesce(max(id), 0) FROM envelope").fetchone()[0]

    def commit(self, appends: Sequence[Append], others: Sequence[Change], in_flight: frozenset[int]) -> Committed:
        """Do all of it durably, or none of it.

        Raises:
            sqlite3.Error: none of it was done.
        """
        before = dict(self._next_seq)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [other(self._db) for other in others]
            removed = sum(outcomes, Removed())
            spans = []
            for append in appends:
                removed += self._make_room(append, in_flight)
                span, dropped = self._append(append)
                spans.append(span)
                removed += dropped
            self._db.execute("COMMIT")
        except BaseException:
            self._next_seq = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return Committed(tuple(spans), tuple(outcomes), removed)

    def evict(self, need_bytes: int, priority: int, in_flight: frozenset[int]) -> Removed:
        """Free space on its own: the disk filled up before the quota did. Frees nothing where nothing may go."""

        def change(db: sqlite3.Connection) -> Removed:
            victims = choose_victims(changes.candidates(db, in_flight, _CANDIDATES), need_bytes, priority)
            return changes.drop(db, victims.ids, DropReason.EVICTED)

        return self.commit((), (change,), in_flight).removed

    def _append(self, append: Append) -> tuple[Span, Removed]:
        if self._missing_bytes(append) > 0:
            return self._drop_incoming(append)
        first_seq = self._next_seq.get(append.stream, 0)
        self._next_seq[append.stream] = changes.insert(self._db, append, self.epoch, first_seq, self._next_id)
        self._next_id += len(append.envelopes)
        return Span(self.epoch, first_seq, append.count), Removed()

    def _drop_incoming(self, append: Append) -> tuple[Span, Removed]:
        first_seq = self._next_seq.get(append.stream, 0)
        span = Span(self.epoch, first_seq, append.count)
        changes.capture(self._db, append, self.epoch, span.end_seq)
        changes.count_dropped(self._db, append.stream, self.epoch, (first_seq, span.end_seq), DropReason.EVICTED)
        self._next_seq[append.stream] = span.end_seq
        unnamed = [envelope.large.digest for envelope in append.envelopes if envelope.large is not None]
        orphans = tuple(d for d in unnamed if not self._db.execute("SELECT 1 FROM envelope WHERE digest = ?", (d,)).fetchone())
        return span, Removed((), orphans)

    def _missing_bytes(self, append: Append) -> int:
        # The large payloads of this batch are already among the objects' bytes: only its rows come on top.
        large_bytes = sum(envelope.large.size_bytes for envelope in append.envelopes if envelope.large)
        rows_bytes = append.cost_bytes - large_bytes
        return used_bytes(self._db) + self._objects.total_bytes - self._leaving_bytes + rows_bytes - self._soft_limit_bytes

    _leaving_bytes = 0

    def _make_room(self, append: Append, in_flight: frozenset[int]) -> Removed:
        removed = Removed()
        self._leaving_bytes = 0
        while (missing := self._missing_bytes(append)) > 0 and append.cost_bytes <= self._soft_limit_bytes:
            need = max(missing, _EVICT_AT_LEAST_BYTES)
            victims = choose_victims(changes.candidates(self._db, in_flight, _CANDIDATES), need, append.priority)
            if not victims.ids:
                break
            gone = changes.drop(self._db, victims.ids, DropReason.EVICTED)
            # Their files are deleted only after the commit, but they count as free from here on.
            self._leaving_bytes += sum(self._objects.size_of(digest) for digest in gone.orphans)
            removed += gone
        return removed
