"""Which envelopes go next while a backlog waits: old and new ones share the link. Pure bookkeeping over ids.

Ids grow in the order of capture, so one number parts the backlog from what came after it. The parting moves up from time
to time: "new" then means now again, and nothing is forgotten, for the backlog goes on from its oldest.
"""

from dataclasses import dataclass
from enum import Enum, auto


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
        """Which lane to ask first, and which if that one is empty."""
        if self._fresh_credit > 0 or self.fresh_share >= 1:
            return Lane.FRESH, Lane.OLD
        return Lane.OLD, Lane.FRESH

    def bounds(self, lane: Lane) -> tuple[int, int | None]:
        """The ids a lane gives out: above the first, up to the second."""
        return (self._old_cursor, self.parting) if lane is Lane.OLD else (max(self._fresh_cursor, self.parting), None)

    def passed(self, lane: Lane, id_: int) -> None:
        """A lane gave out or passed over everything up to this id."""
        if lane is Lane.OLD:
            self._old_cursor = max(self._old_cursor, id_)
        else:
            self._fresh_cursor = max(self._fresh_cursor, id_)

    def sent(self, lane: Lane, size_bytes: int, *, are_both_waiting: bool) -> None:
        """So many bytes of a lane were given out. Only competition moves the balance: an idle lane saves nothing up."""
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
        """Look at everything again: what was passed over before may go now."""
        self._old_cursor = self._fresh_cursor = 0
