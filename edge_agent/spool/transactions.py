"""One transaction of the spool: appends with eviction where room is lacking, and other changes next to them."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from edge_agent.spool import changes
from edge_agent.spool.changes import Removed
from edge_agent.spool.database import LARGE_PAGE_BYTES
from edge_agent.spool.payload_files import BodyFiles, SpoolObjects
from edge_agent.spool.quota import choose_victims
from edge_agent.spool.records import Append, DropReason
from edge_agent.spool.space_budget import ReserveFile, SpaceBudget
from schemas.envelope import Span

# Freed beyond what is needed, so that a full spool does not evict at every append.
EVICT_AT_LEAST_BYTES = 256 * 1024
_EVICT_SHARE = 256
_CANDIDATES = 512
# With this much to spare, appends are not measured one by one: more than callers can have put into files meanwhile.
_SPARE_BYTES = 32 * 1024 * 1024
# Near the quota, a transaction with more rows than this finds the log at its beginning: the reserve holds no more next to it.
_HEAVY_BYTES = 256 * 1024

log = structlog.get_logger(__name__)
Change = Callable[[sqlite3.Connection], Removed]


@dataclass(frozen=True, slots=True)
class Committed:
    """The result of a transaction.

    Attributes:
        spans: the seqs given to each append; None where it must wait for room.
        outcomes: of each change.
        removed: all that left the spool.
    """

    spans: tuple[Span | None, ...]
    outcomes: tuple[Removed, ...]
    removed: Removed


class Transactions:
    """Carries out transactions for the one epoch that is open. Used by the writer thread alone.

    Args:
        db: the writing connection.
        epoch: the open one.
        budget: how much there is.
        objects: the large payloads.
        bodies: the bodies in files; synced before the rows that name them are committed.
        reserve_file: deleted when the disk is full.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        epoch: int,
        budget: SpaceBudget,
        objects: SpoolObjects,
        bodies: BodyFiles,
        reserve_file: ReserveFile,
    ) -> None:
        self._reserve_file = reserve_file
        self.epoch = epoch
        self._db = db
        self._budget = budget
        self._objects = objects
        self._bodies = bodies
        self._next_seq: dict[str, int] = {}
        self._next_id = 1 + db.execute("SELECT coalesce(max(id), 0) FROM envelope").fetchone()[0]
        # Files of what this transaction removes are deleted only after its commit, but count as free from here on.
        self._freed_bytes = 0
        budget.count_database(db)

    def commit(self, appends: Sequence[Append], others: Sequence[Change], in_flight: frozenset[int]) -> Committed:
        """Do all of it durably, or none of it.

        Raises:
            sqlite3.Error: none of it was done.
            OSError: likewise; the bodies of these appends may be lost.
        """
        before = dict(self._next_seq)
        if sum(append.row_bytes for append in appends) > _HEAVY_BYTES and self._budget.for_rows_bytes() < _SPARE_BYTES:
            self._begin_log_anew()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [other(self._db) for other in others]
            removed = sum(outcomes, Removed())
            self._freed_bytes = self._sizes_of(removed)
            spans, removed = self._append_all(appends, removed, in_flight)
            if appends:
                self._bodies.sync()
            self._db.execute("COMMIT")
        except BaseException:
            self._next_seq = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._budget.count_database(self._db)
        self._reserve_file.take()
        return Committed(tuple(spans), tuple(outcomes), removed)

    def free_disk(self) -> None:
        """Delete the reserve file and write the log again from its beginning: the disk is full."""
        self._reserve_file.drop()
        self._begin_log_anew()

    def _begin_log_anew(self) -> None:
        try:
            self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.OperationalError as error:
            # The log keeps what could not be carried over: nothing is lost by that.
            log.warning("wal_not_checkpointed", error=str(error))

    def evict(self, need_bytes: int, priority: int, in_flight: frozenset[int]) -> Removed:
        """Free space on its own: the disk filled up before the quota did. Frees nothing where nothing may go."""

        def change(db: sqlite3.Connection) -> Removed:
            victims = choose_victims(changes.candidates(db, in_flight, _CANDIDATES), need_bytes, priority)
            return changes.drop(db, victims.ids, DropReason.EVICTED)

        return self.commit((), (change,), in_flight).removed

    def make_room_for_file(self, size_bytes: int, priority: int, in_flight: frozenset[int]) -> Change:
        """A change that frees room for a file of so many bytes, if what is worth no more may go."""

        def change(_: sqlite3.Connection) -> Removed:
            self._freed_bytes = 0
            return self._evict_until(partial(self._lacking_for_file, size_bytes), priority, in_flight)

        return change

    def _append_all(
        self, appends: Sequence[Append], removed: Removed, in_flight: frozenset[int]
    ) -> tuple[list[Span | None], Removed]:
        spans: list[Span | None] = []
        waiting: set[str] = set()
        spare_bytes = self._budget.for_rows_bytes() - _SPARE_BYTES if appends else 0
        for append in appends:
            if append.stream in waiting:
                # Its source's positions must become durable in their order.
                spans.append(None)
                continue
            most_bytes = append.row_bytes + LARGE_PAGE_BYTES * len(append.envelopes)
            if most_bytes <= spare_bytes:
                spare_bytes -= most_bytes
                spans.append(self._insert(append))
                continue
            if append.cost_bytes <= self._budget.soft_limit_bytes:
                removed += self._evict_until(partial(self._lacking, append.row_bytes), append.eviction_priority, in_flight)
            if self._lacking(append.row_bytes) <= 0:
                spans.append(self._insert(append))
            elif append.waits_for_room and append.cost_bytes <= self._budget.soft_limit_bytes:
                waiting.add(append.stream)
                spans.append(None)
            else:
                span, dropped = self._drop_incoming(append)
                spans.append(span)
                removed += dropped
        return spans, removed

    def _insert(self, append: Append) -> Span:
        first_seq = self._next_seq.get(append.stream, 0)
        self._next_seq[append.stream] = changes.insert(self._db, append, self.epoch, first_seq, self._next_id)
        self._next_id += len(append.envelopes)
        return Span(self.epoch, first_seq, append.count)

    def _drop_incoming(self, append: Append) -> tuple[Span, Removed]:
        first_seq = self._next_seq.get(append.stream, 0)
        span = Span(self.epoch, first_seq, append.count)
        changes.capture(self._db, append, self.epoch, span.end_seq)
        changes.count_dropped(self._db, append.stream, self.epoch, (first_seq, span.end_seq), DropReason.EVICTED)
        self._next_seq[append.stream] = span.end_seq
        unnamed = [envelope.large.digest for envelope in append.envelopes if envelope.large is not None]
        orphans = tuple(d for d in unnamed if not self._db.execute("SELECT 1 FROM envelope WHERE digest = ?", (d,)).fetchone())
        return span, Removed((), orphans, tuple(append.body_files))

    def _lacking(self, rows_bytes: int) -> int:
        # Bodies and large payloads in files are counted already: only rows come on top.
        self._budget.count_database(self._db)
        return rows_bytes - self._freed_bytes - self._budget.for_rows_bytes()

    def _lacking_for_file(self, size_bytes: int) -> int:
        self._budget.count_database(self._db)
        return size_bytes - self._freed_bytes - self._budget.for_files_bytes()

    def _evict_until(self, lacking: Callable[[], int], priority: int, in_flight: frozenset[int]) -> Removed:
        removed = Removed()
        while (missing := lacking() - self._just_left(removed)) > 0:
            need = max(missing, EVICT_AT_LEAST_BYTES, self._budget.soft_limit_bytes // _EVICT_SHARE)
            victims = choose_victims(changes.candidates(self._db, in_flight, _CANDIDATES), need, priority)
            if not victims.ids:
                break
            removed += changes.drop(self._db, victims.ids, DropReason.EVICTED)
        self._freed_bytes += self._sizes_of(removed)
        return removed

    def _just_left(self, removed: Removed) -> int:
        return self._sizes_of(removed) if removed.ids else 0

    def _sizes_of(self, removed: Removed) -> int:
        objects_bytes = sum(self._objects.size_of(digest) for digest in removed.orphans)
        return objects_bytes + self._bodies.freed_bytes(removed.body_files)
