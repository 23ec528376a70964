"""Keep the send window: envelopes sent and not acknowledged, or acknowledged and not settled. Pure: no IO, no clock.

The waiting times of the uplink that no operator sets stand here, too.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

_MAX_DOUBLINGS = 6
_MAX_UNSETTLED = 50_000
_FIRST_WINDOW_BYTES = 512 * 1024
_MIN_WINDOW_BYTES = 32 * 1024
_FAST_ACK_S = 0.5
_SLOW_ACK_S = 1.5


@dataclass(frozen=True, slots=True)
class UplinkTimes:
    """Times in seconds.

    Attributes:
        first_reconnect_s: wait before the first attempt to connect again; it doubles.
        steady_s: how long a connection has stood, times a random 0.5 to 1.5, before a suspect envelope is sent alone.
        first_pause_s: how long a stream without a right waits at first; it doubles.
        fresh_for_s: what was not sent by then is old, and shares the link with what is newer.
        careful_turn_s: how often the next envelope is looked for while one at a time goes.
    """

    first_reconnect_s: float = 0.5
    # Links also break right after they are made.
    steady_s: float = 1.0
    first_pause_s: float = 60.0
    fresh_for_s: float = 60.0
    careful_turn_s: float = 0.1


@dataclass(slots=True)
class _InFlight:
    body_bytes: int
    sent_s: float
    due_s: float


@dataclass(slots=True)
class ByteWindow:
    """The limit of unacknowledged bytes: what the link carries in about a second, so that nothing waits long behind it.

    Without it a slow link would hold minutes of samples that a break sends again, and that all else must wait for.

    Args:
        max_bytes: never more.
    """

    max_bytes: int
    now_bytes: int = 0
    _shrunk_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.now_bytes = min(self.max_bytes, _FIRST_WINDOW_BYTES)

    def acked(self, size_bytes: int, sent_s: float, now_s: float) -> None:
        """Widen or shrink the window by how fast these bytes were acknowledged."""
        if now_s - sent_s < _FAST_ACK_S:
            self.now_bytes = min(self.max_bytes, self.now_bytes + size_bytes)
        elif now_s - sent_s > _SLOW_ACK_S and sent_s >= self._shrunk_s:
            # What was sent before the last shrinking tells nothing about the window since.
            self._shrunk_s = now_s
            self.now_bytes = max(min(self.max_bytes, _MIN_WINDOW_BYTES), self.now_bytes // 2)


@dataclass(slots=True)
class SendWindow:
    """The windows: bytes in memory until the broker acknowledges, bytes in doubt until the core settles.

    Args:
        window_bytes: bodies that may be unacknowledged, at most.
        unsettled_bytes: bodies that may be unsettled.
        resend_after_s: what is not settled by then is sent again, each time after twice as long.
    """

    window_bytes: int
    unsettled_bytes: int
    resend_after_s: float
    _unacked: dict[int, int] = field(default_factory=dict)  # mid -> id
    _in_flight: dict[int, _InFlight] = field(default_factory=dict)  # id -> its size and when it is sent again
    _tries: dict[int, int] = field(default_factory=dict)
    _due: list[tuple[float, int]] = field(default_factory=list)
    _unacked_bytes: int = 0
    _in_flight_bytes: int = 0
    _window: ByteWindow = field(init=False)

    def __post_init__(self) -> None:
        self._window = ByteWindow(self.window_bytes)

    @property
    def unacked_count(self) -> int:
        """Messages the broker has not acknowledged."""
        return len(self._unacked)

    @property
    def unsettled_count(self) -> int:
        """Envelopes sent and not settled."""
        return len(self._in_flight)

    def available_bytes(self) -> int:
        """Return the bytes of bodies that may be sent now."""
        if len(self._in_flight) >= _MAX_UNSETTLED:
            return 0
        return max(0, min(self._window.now_bytes - self._unacked_bytes, self.unsettled_bytes - self._in_flight_bytes))

    def sent(self, mid: int, id_: int, body_bytes: int, now_s: float) -> None:
        """An envelope went out as message `mid`."""
        tries = self._tries.get(id_, 0)
        self._tries[id_] = tries + 1
        due_s = now_s + self.resend_after_s * 2 ** min(tries, _MAX_DOUBLINGS)
        self._unacked[mid] = id_
        self._unacked_bytes += body_bytes
        self._in_flight[id_] = _InFlight(body_bytes, now_s, due_s)
        self._in_flight_bytes += body_bytes
        heapq.heappush(self._due, (due_s, id_))

    def acked(self, mid: int, now_s: float) -> int | None:
        """The broker has message `mid`; its envelope's id, None if it is not ours or gone already."""
        id_ = self._unacked.pop(mid, None)
        if id_ is not None and (in_flight := self._in_flight.get(id_)) is not None:
            self._unacked_bytes -= in_flight.body_bytes
            self._window.acked(in_flight.body_bytes, in_flight.sent_s, now_s)
        return id_

    def refused(self, mid: int, now_s: float) -> int | None:
        """The broker did not take message `mid`: its envelope is not under way. Returns its id, None if it is gone."""
        id_ = self.acked(mid, now_s)
        if id_ is None or id_ not in self._in_flight:
            return None
        self._land(id_)
        return id_

    def tries(self, id_: int) -> int:
        """Return how often an envelope was sent."""
        return self._tries.get(id_, 0)

    def forget(self, ids: Iterable[int]) -> None:
        """These left the spool."""
        gone = set(ids)
        for mid in [mid for mid, id_ in self._unacked.items() if id_ in gone]:
            self._unacked_bytes -= self._in_flight[self._unacked.pop(mid)].body_bytes
        for id_ in gone:
            self._tries.pop(id_, None)
            if id_ in self._in_flight:
                self._land(id_)

    def lost(self) -> list[int]:
        """The connection is gone: what was not acknowledged is not under way any more; its ids, to be sent again."""
        ids = [id_ for id_ in self._unacked.values() if id_ in self._in_flight]
        self._unacked.clear()
        self._unacked_bytes = 0
        for id_ in ids:
            self._land(id_)
        return ids

    def overdue(self, now_s: float) -> list[int]:
        """Acknowledged envelopes that were not settled in time; they are not under way any more."""
        late: list[int] = []
        unacked = set(self._unacked.values()) if self._due and self._due[0][0] <= now_s else set()
        while self._due and self._due[0][0] <= now_s:
            due_s, id_ = heapq.heappop(self._due)
            in_flight = self._in_flight.get(id_)
            if in_flight is None or in_flight.due_s != due_s:
                continue
            if id_ in unacked:
                # The broker is slow, not the core: the same message is still on its way.
                in_flight.due_s = now_s + self.resend_after_s
                heapq.heappush(self._due, (in_flight.due_s, id_))
                continue
            self._land(id_)
            late.append(id_)
        return late

    def hasten(self, due_s: float) -> None:
        """Have what is acknowledged and not settled sent again from `due_s` on: the core did not take it, or not all of it."""
        unacked = set(self._unacked.values())
        for id_, in_flight in self._in_flight.items():
            if id_ not in unacked and in_flight.due_s > due_s:
                in_flight.due_s = due_s
                self._tries[id_] = 1
                heapq.heappush(self._due, (due_s, id_))

    def _land(self, id_: int) -> None:
        self._in_flight_bytes -= self._in_flight.pop(id_).body_bytes
