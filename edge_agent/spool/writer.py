"""The writer thread: it alone changes the database. What arrives while it lingers or commits shares the next commit."""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from catchment.runtime.clock import Clock
from edge_agent.errors import SpoolError, SpoolFullError
from edge_agent.spool.changes import Removed
from edge_agent.spool.records import Append
from edge_agent.spool.transactions import Change, Transactions
from schemas.envelope import Span

_COMMIT_BYTES = 2 * 1024 * 1024
_COMMIT_SAMPLES = 10_000
# Callers wait when this much is not durable yet: memory stays bounded whatever the sources do.
_MAX_PENDING_BYTES = 2 * _COMMIT_BYTES
DISK_FULL_PAUSE_S = 0.5
# A body that lies in a file holds no memory while it waits; what is not durable yet must stay bounded all the same.
_FILE_SHARE = 4

_T = TypeVar("_T")
log = structlog.get_logger(__name__)


def _weight(append: Append) -> int:
    return append.row_bytes + (append.cost_bytes - append.row_bytes) // _FILE_SHARE


@dataclass(slots=True)
class _Waiting:
    appends: deque[tuple[Append, "Future[Span]"]] = field(default_factory=deque)
    # Appends that found no room, of streams that are never given up; what follows them in their stream waits with them.
    held: deque[tuple[Append, "Future[Span]"]] = field(default_factory=deque)
    others: deque[tuple[Change, "Future[Removed]"]] = field(default_factory=deque)
    append_bytes: int = 0
    append_samples: int = 0


def _split(taken: _Waiting) -> tuple[list[Append], list[Change]]:
    return [append for append, _ in taken.appends], [change for change, _ in taken.others]


class SpoolWriter:
    """Owns the writing connection's thread.

    Args:
        transactions: carries out the transactions.
        linger_ms: how long an append may wait for company.
        in_flight: which envelopes the uplink holds.
        on_removed: told, after each commit, what left the spool.
        clock: monotonic time for lingering.
        disk_full_pause_s: pause before what found no room is tried again, unless something changes.
    """

    def __init__(
        self,
        transactions: Transactions,
        linger_ms: int,
        in_flight: Callable[[], frozenset[int]],
        on_removed: Callable[[Removed], None],
        clock: Clock,
        disk_full_pause_s: float = DISK_FULL_PAUSE_S,
    ) -> None:
        self._transactions = transactions
        self._disk_full_pause_s = disk_full_pause_s
        self._linger_s = linger_ms / 1000
        self._in_flight = in_flight
        self._on_removed = on_removed
        self._clock = clock
        self._waiting = _Waiting()
        self._changed = threading.Condition()
        self._is_closing = False
        self._stopping: set[str] = set()
        self._refused: set[str] = set()
        self.failure: SpoolError | None = None
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    @property
    def held_count(self) -> int:
        """Appends that wait for room."""
        with self._changed:
            return len(self._waiting.held)

    def append(self, append: Append) -> "Future[Span]":
        """Hand in a batch; the future is done when it is durable. Waits while too much is pending.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        future: Future[Span] = Future()
        with self._changed:
            self._changed.wait_for(lambda: self._may_come_in(append))
            self._refuse_if_over()
            self._waiting.appends.append((append, future))
            self._waiting.append_bytes += _weight(append)
            self._waiting.append_samples += append.count
            self._changed.notify_all()
        return future

    def change(self, change: Change) -> "Future[Removed]":
        """Hand in another change; the future is done when it is durable.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        future: Future[Removed] = Future()
        with self._changed:
            self._refuse_if_over()
            self._waiting.others.append((change, future))
            self._changed.notify_all()
        return future

    def on_source_stopping(self, source: str, *, is_gone: bool) -> None:
        """A source is to stop: what finds no room is refused, and all that follows it, instead of waiting. Until it is gone."""
        with self._changed:
            if is_gone:
                self._stopping.discard(source)
                self._refused.discard(source)
            else:
                self._stopping.add(source)
                # What waits for room now must hear of it at once: a pause on a full disk is long for who shuts down.
                self._changed.notify_all()

    def close(self) -> None:
        """Commit what is pending, then stop."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()

    def _may_come_in(self, append: Append) -> bool:
        if self.failure is not None or self._is_closing or append.source in self._stopping:
            return True
        is_held = append.waits_for_room and any(held.stream == append.stream for held, _ in self._waiting.held)
        return not is_held and self._waiting.append_bytes <= _MAX_PENDING_BYTES

    def _refuse_if_over(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._is_closing:
            raise SpoolError("the spool is closed; open it again")

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            try:
                self._commit(taken)
            except Exception as error:  # noqa: BLE001 # whatever it is, callers must hear of it: nobody may wait permanently
                self._fail(taken, error)
                return

    def _take(self) -> _Waiting | None:
        with self._changed:
            while not (self._waiting.appends or self._waiting.others or self._is_closing or self._is_held_one_leaving()):
                if not self._changed.wait(self._disk_full_pause_s if self._waiting.held else None) and self._waiting.held:
                    break
            deadline_s = self._clock.monotonic_s() + self._linger_s
            while self._may_linger() and (left_s := deadline_s - self._clock.monotonic_s()) > 0:
                self._changed.wait(left_s)
            taken, self._waiting = self._waiting, _Waiting()
            if self._is_closing:
                self._give_back(taken)
            taken.appends.extendleft(reversed(taken.held))
            # Still told as held, so that more of these streams does not come in meanwhile.
            self._waiting.held, taken.held = taken.held, deque()
            self._changed.notify_all()
        return taken if taken.appends or taken.others else None

    def _is_held_one_leaving(self) -> bool:
        return any(append.source in self._stopping for append, _ in self._waiting.held)

    def _give_back(self, taken: _Waiting) -> None:
        """At the end what found no room is not stored: its sources come back to it at the next start."""
        error = SpoolFullError("the spool was closed before there was room; the source comes back to this at the next start")
        held = {append.stream for append, _ in taken.held}
        for append, future in (*taken.held, *taken.appends):
            if append.stream in held:
                future.set_exception(error)
        taken.appends = deque(entry for entry in taken.appends if entry[0].stream not in held)
        taken.held.clear()

    def _may_linger(self) -> bool:
        waiting = self._waiting
        is_little = waiting.append_bytes < _COMMIT_BYTES and waiting.append_samples < _COMMIT_SAMPLES
        return is_little and not waiting.others and not self._is_closing

    def _refuse(self, source: str, future: "Future[Span]") -> None:
        # All that follows is refused, too, should there be room again: else its position would skip this.
        self._refused.add(source)
        future.set_exception(SpoolFullError("there was no room when the source stopped; its successor comes back to this"))

    def _commit(self, taken: _Waiting) -> None:
        for append, future in taken.appends:
            if append.source in self._refused:
                self._refuse(append.source, future)
        taken.appends = deque(entry for entry in taken.appends if entry[0].source not in self._refused)
        while (done := self._tried(lambda: self._transactions.commit(*_split(taken), self._in_flight()))) is None:
            self._make_way(taken)
            if self._is_given_up(taken):
                return
        self._on_removed(done.removed)
        for (_, change_future), outcome in zip(taken.others, done.outcomes, strict=True):
            change_future.set_result(outcome)
        held: deque[tuple[Append, Future[Span]]] = deque()
        for (append, append_future), span in zip(taken.appends, done.spans, strict=True):
            if span is None and append.source in self._stopping:
                self._refuse(append.source, append_future)
            elif span is None:
                held.append((append, append_future))
            else:
                append_future.set_result(span)
        with self._changed:
            if held and not self._waiting.held:
                log.warning("spool_full", stream=held[0][0].stream)
            self._waiting.held = held
            self._changed.notify_all()

    def _is_given_up(self, taken: _Waiting) -> bool:
        """On a full disk sources that stop wait no longer, and at the end nobody does. Whether nothing is left to be written."""
        for append, future in taken.appends:
            if self._is_closing or append.source in self._stopping:
                self._refuse(append.source, future)
        taken.appends = deque(entry for entry in taken.appends if entry[0].source not in self._refused)
        if self._is_closing:
            for _, change_future in taken.others:
                change_future.set_exception(SpoolFullError("the disk was full when the spool was closed; this is done again"))
            taken.others.clear()
        return not taken.appends and not taken.others

    def _make_way(self, taken: _Waiting) -> None:
        """The page cap or the disk itself is reached: deletes go first and alone, then eviction, then waiting."""
        self._transactions.free_disk()
        if taken.others and (done := self._tried(lambda: self._transactions.commit((), _split(taken)[1], self._in_flight()))):
            for (_, future), outcome in zip(taken.others, done.outcomes, strict=True):
                future.set_result(outcome)
            taken.others.clear()
            self._on_removed(done.removed)
            if done.removed.ids:
                return
        priority = max((append.eviction_priority for append, _ in taken.appends), default=-1)
        need_bytes = 2 * sum(append.cost_bytes for append, _ in taken.appends)
        removed = self._tried(lambda: self._transactions.evict(need_bytes, priority, self._in_flight()))
        if removed is not None and removed.ids:
            self._on_removed(removed)
            return
        log.warning("disk_full", hint="free some disk")
        with self._changed:
            if not (self._is_closing or any(append.source in self._stopping for append, _ in taken.appends)):
                self._changed.wait(self._disk_full_pause_s)
            taken.others.extend(self._waiting.others)
            self._waiting.others.clear()

    def _tried(self, act: Callable[[], _T]) -> _T | None:
        """Return the result; None when the disk or the database is full, and nothing was done."""
        try:
            return act()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            return None

    def _fail(self, taken: _Waiting, error: Exception) -> None:
        failure = SpoolError(f"the spool cannot be written: {error}; it is checked and repaired at the next start")
        failure.__cause__ = error
        log.error("spool_broken", error=str(error))
        with self._changed:
            self.failure = failure
            left, self._waiting = self._waiting, _Waiting()
            self._changed.notify_all()
        for batch in (taken, left):
            for _, append_future in (*batch.appends, *batch.held):
                if not append_future.done():
                    append_future.set_exception(failure)
            for _, change_future in batch.others:
                if not change_future.done():
                    change_future.set_exception(failure)
