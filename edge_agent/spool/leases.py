"""Lease envelopes for sending, and choose the next ones."""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from edge_agent.spool import database
from edge_agent.spool.records import Envelope


# Which envelopes go next while a backlog waits: old and new ones share the link. Pure bookkeeping over ids.
# Ids grow in the order of capture, so one number parts the backlog from what came after it. The parting moves up from time
# to time: "new" then means now again, and nothing is forgotten, for the backlog goes on from its oldest.
class Lane(Enum):
    """One of two queues over the same spool."""

    OLD = auto()
    FRESH = auto()


@dataclass(slots=True)
class Lanes:
    """Two cursors and what parts them.

    Args:
        fresh_share: of the bytes sent while both lanes have something, the share of the fresh one.
    """

    fresh_share: float = 0.5
    parting: int = 0
    _old_cursor: int = 0
    _fresh_cursor: int = 0
    _fresh_credit: float = 0.0

    def part(self, newest_id: int) -> None:
        """All up to this id is backlog from now on. The old cursor skips nothing that was not given out."""
        if newest_id <= self.parting:
            return
        if self._old_cursor >= self.parting:
            # The backlog is given out, and so is all that the fresh cursor passed.
            self._old_cursor = max(self._old_cursor, self._fresh_cursor)
        self.parting = newest_id
        self._fresh_cursor = max(self._fresh_cursor, newest_id)

    def order(self) -> tuple[Lane, Lane]:
        """The lane to read first, and the one to read if that is empty."""
        if self._fresh_credit > 0 or self.fresh_share >= 1:
            return Lane.FRESH, Lane.OLD
        return Lane.OLD, Lane.FRESH

    def bounds(self, lane: Lane) -> tuple[int, int | None]:
        """The ids a lane gives out: above the first, up to the second."""
        return (self._old_cursor, self.parting) if lane is Lane.OLD else (max(self._fresh_cursor, self.parting), None)

    def passed(self, lane: Lane, id_: int) -> None:
        """A lane gave out or skipped everything up to this id."""
        if lane is Lane.OLD:
            self._old_cursor = max(self._old_cursor, id_)
        else:
            self._fresh_cursor = max(self._fresh_cursor, id_)

    def sent(self, lane: Lane, size_bytes: int, *, are_both_waiting: bool) -> None:
        """Count bytes of a lane as leased. Only competition moves the balance: an idle lane saves nothing up."""
        if not are_both_waiting:
            self._fresh_credit = 0.0
        elif lane is Lane.OLD:
            self._fresh_credit += size_bytes * self.fresh_share
        else:
            self._fresh_credit -= size_bytes * (1 - self.fresh_share)

    def released(self, id_: int) -> None:
        """This id may be given out again."""
        if id_ <= self.parting:
            self._old_cursor = min(self._old_cursor, id_ - 1)
        else:
            self._fresh_cursor = min(self._fresh_cursor, id_ - 1)

    def start_over(self) -> None:
        """Look at everything again: what was skipped before may go now."""
        self._old_cursor = self._fresh_cursor = 0


_CHUNK_ROWS = 64
# So many rows are skipped in one go, with the spool's lock held; more of them are for the next call.
MAX_PASSED_ROWS = 20_000
# While old and new share the link, they take turns by so much.
_TURN_BYTES = 256 * 1024


class Leases:
    """Gives out each envelope once, until it is released. The caller holds the spool's lock.

    Args:
        load: reads one envelope; None when it is gone or rotten.
    """

    def __init__(self, load: Callable[[int], Envelope | None]) -> None:
        self._load = load
        self._ids: set[int] = set()
        self._lanes = Lanes()
        self._min_priority = 0
        self._left_out: frozenset[str] = frozenset()
        self._held_boot = ""
        self._is_cut_short = False

    @property
    def ids(self) -> frozenset[int]:
        """The ids of all leased envelopes."""
        return frozenset(self._ids)

    @property
    def is_cut_short(self) -> bool:
        """Whether the last `take` stopped looking before it had seen everything."""
        return self._is_cut_short

    def tune(self, fresh_share: float, min_priority: int) -> None:
        """Set how the lanes share, and the least priority that is sent."""
        self._lanes.fresh_share = fresh_share
        if min_priority < self._min_priority:
            self._lanes.start_over()
        self._min_priority = min_priority

    def leave_out(self, streams: Collection[str]) -> None:
        """Give out nothing of these streams from now on."""
        if self._left_out - set(streams):
            self._lanes.start_over()
        self._left_out = frozenset(streams)

    def hold_boot(self, boot: str) -> None:
        """Give out nothing whose times rest on the unset clock of this boot; "": hold nothing any more."""
        if self._held_boot and self._held_boot != boot:
            self._lanes.start_over()
        self._held_boot = boot

    def lease(self, id_: int) -> Envelope | None:
        """This one, whatever its turn; None when it is gone."""
        self._ids.add(id_)
        envelope = self._load(id_)
        if envelope is None:
            self._ids.discard(id_)
        return envelope

    def part(self, newest_id: int) -> None:
        """Count envelopes up to this id as old from now on."""
        self._lanes.part(newest_id)

    def take(self, db: sqlite3.Connection, limit_bytes: int) -> list[Envelope]:
        """Lease the next envelopes of the lane whose turn it is: as many as fit, but one at least if there is any."""
        self._is_cut_short = False
        for lane, other in (order := self._lanes.order(), order[::-1]):
            are_both = self._peek(db, lane) and self._peek(db, other)
            taken = self._take(db, lane, min(limit_bytes, _TURN_BYTES) if are_both else limit_bytes)
            if taken:
                self._lanes.sent(lane, sum(len(envelope.body) for envelope in taken), are_both_waiting=are_both)
                return taken
        return []

    def add(self, id_: int) -> None:
        """This one is not to be given out."""
        self._ids.add(id_)

    def release(self, ids: Iterable[int]) -> None:
        """These may be given out again."""
        for id_ in ids:
            self._ids.discard(id_)
            self._lanes.released(id_)

    def forget(self, ids: Iterable[int]) -> list[int]:
        """These left the spool; returns those that were given out."""
        gone = [id_ for id_ in ids if id_ in self._ids]
        self._ids.difference_update(gone)
        return gone

    def _take(self, db: sqlite3.Connection, lane: Lane, limit_bytes: int) -> list[Envelope]:
        taken: list[Envelope] = []
        total_bytes = 0
        for id_ in self._free(db, lane):
            envelope = self._load(id_)
            if envelope is None:
                continue
            total_bytes += len(envelope.body)
            if taken and total_bytes > limit_bytes:
                break
            taken.append(envelope)
            self._ids.add(id_)
            self._lanes.passed(lane, id_)
            if total_bytes >= limit_bytes or len(taken) >= _CHUNK_ROWS:
                break
        return taken

    def _peek(self, db: sqlite3.Connection, lane: Lane) -> bool:
        return next(self._free(db, lane), None) is not None

    def _free(self, db: sqlite3.Connection, lane: Lane) -> Iterator[int]:
        """Ids of a lane that may be given out. The cursor passes what may not, so that it is looked at once."""
        for _ in range(MAX_PASSED_ROWS // _CHUNK_ROWS):
            after_id, upto_id = self._lanes.bounds(lane)
            is_choosy = self._min_priority > 0 or bool(self._left_out) or bool(self._held_boot)
            rows = database.ready_after(db, after_id, upto_id, _CHUNK_ROWS, with_value=is_choosy)
            for id_, priority, stream, boot in rows:
                is_wanted = priority >= self._min_priority and stream not in self._left_out
                if id_ not in self._ids and is_wanted and not (boot and boot == self._held_boot):
                    yield id_
                else:
                    self._lanes.passed(lane, id_)
            if len(rows) < _CHUNK_ROWS:
                if upto_id is not None:
                    self._lanes.passed(lane, upto_id)
                return
        self._is_cut_short = True
