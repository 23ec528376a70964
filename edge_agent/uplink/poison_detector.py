"""Which envelope makes the broker end the connection, where the link itself is sound? A pure decision: no IO, no clock.

Some brokers and proxies answer a message they do not want by hanging up. Sent again first on every connection, it would
hold up all others for ever. But a link that merely breaks often must put no good envelope aside. So:

* What was unanswered at the end of several connections in a row makes us *careful*: one envelope under way at a time.
* One that was alone under way when the connection ended is *accused*: it is held back, others go, and once a connection has
  stood for a while it goes alone again. That is a *probe*; one that ends the connection is a *strike*.
* It is *convicted* when others passed meanwhile and it is most unlikely that a link that breaks as often as this one broke
  by itself just then, each time. A slow link and a large envelope need more strikes for that; a steady link, three.
* A stream none of whose envelopes passes between two accused is *barred* as a whole: it waits, and is tried again later.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from edge_agent.uplink.times import UplinkTimes
from schemas.ids import StreamName

CAREFUL_AFTER = 3
STRIKES = 3
_CHANCE = 1e-4
# The shortest a flight counts for: what is sent just as a link breaks is in flight for no time at all.
_SHORTEST_FLIGHT_S = 0.02
_CONTROLS = 8
# So many connections in a row that end before any probe: the link breaks by itself, and nobody is to blame.
_ACQUIT_AFTER = 4
_MAX_ACCUSED = 16
_BAR_CAP_S = 3_600.0


@dataclass(slots=True)
class _Charge:
    stream: StreamName
    flights_s: list[float] = field(default_factory=list)
    has_control: bool = False
    has_foreign_control: bool = False


@dataclass(slots=True)
class _Bar:
    probe_id: int
    wait_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Sentence:
    """What follows from the end of a connection: envelopes to park, streams that wait from now on."""

    park: tuple[int, ...] = ()
    bar: tuple[StreamName, ...] = ()


class Suspicion:
    """Told of what goes out and how connections end; says what may go next. Times are monotonic.

    Args:
        draw: a random number in [0, 1).
        times: how long to wait before a probe, and how long a barred stream waits.
    """

    def __init__(self, draw: Callable[[], float], times: UplinkTimes | None = None) -> None:
        self._draw = draw
        self._times = times or UplinkTimes()
        self._unanswered: dict[int, int] = {}  # id -> connections in a row that ended with it under way
        self._watched: set[int] = set()
        self._passes_left = 0
        self._charges: dict[int, _Charge] = {}
        self._failed: dict[StreamName, int] = {}  # accused of a stream since one of it passed
        self._bars: dict[StreamName, _Bar] = {}
        self._breaks = 0
        self._steady_s = 0.0
        self._idle_ends = 0
        self._began_s = 0.0
        self._next_probe_s = 0.0
        self._is_answered = False
        self._controls = 0
        self._probe: tuple[int, float] | None = None

    @property
    def is_careful(self) -> bool:
        """Whether only one message may be under way at a time."""
        return bool(self._watched or self._charges)

    @property
    def held(self) -> frozenset[int]:
        """Envelopes that go as probes alone."""
        return frozenset(self._charges) | {bar.probe_id for bar in self._bars.values()}

    @property
    def left_out(self) -> frozenset[StreamName]:
        """Streams of which nothing but probes goes now."""
        accused = {charge.stream for charge in self._charges.values() if self._failed.get(charge.stream, 0) > 1}
        return frozenset(accused | self._bars.keys())

    @property
    def barred(self) -> frozenset[StreamName]:
        """Streams that wait."""
        return frozenset(self._bars)

    def connected(self, now_s: float) -> None:
        """A new connection."""
        longest_s = max((flight_s for charge in self._charges.values() for flight_s in charge.flights_s), default=0.0)
        self._began_s = now_s
        self._next_probe_s = now_s + (0.5 + self._draw()) * max(self._times.steady_s, longest_s)
        self._is_answered = False
        self._controls = 0
        self._probe = None

    def accuse(self, id_: int, stream: StreamName) -> None:
        """This one was convicted before, and is given another chance."""
        self._charges[id_] = _Charge(stream)

    def retry_barred(self, now_s: float) -> None:
        """Streams that waited long enough are tried again, by one envelope each."""
        for stream, bar in self._bars.items():
            if bar.until_s <= now_s and bar.probe_id not in self._charges:
                self.accuse(bar.probe_id, stream)

    def probe(self, now_s: float) -> int | None:
        """The accused that may go now, where nothing else is under way."""
        if not self._charges or not self._is_answered or now_s < self._next_probe_s:
            return None
        return min(self._charges, key=lambda id_: (len(self._charges[id_].flights_s), id_))

    def may_send_others(self) -> bool:
        """Whether something else may go now, where nothing else is under way."""
        return not self._charges or (self._controls < _CONTROLS and len(self._charges) < _MAX_ACCUSED)

    def nothing_waits(self) -> None:
        """Forget watched envelopes: nothing waits in the spool, so they have left it."""
        self._watched.clear()

    def sent(self, id_: int, now_s: float) -> None:
        """An envelope went out."""
        if id_ in self._charges:
            self._steady_s += max(0.0, now_s - self._began_s)
            self._probe = (id_, now_s)
            self._idle_ends = 0
        else:
            self._controls += 1

    def answered(self) -> None:
        """The broker answered a message, whichever: this connection carries."""
        self._is_answered = True

    def passed(self, id_: int, stream: StreamName, now_s: float) -> None:
        """An envelope was answered: it ends no connection."""
        self.gone((id_,), now_s)
        self._failed.pop(stream, None)
        self._bars.pop(stream, None)
        for charge in self._charges.values():
            charge.has_control = True
            charge.has_foreign_control = charge.has_foreign_control or charge.stream != stream
        self._passes_left -= 1
        if self._passes_left <= 0:
            # What else was watched left the spool unseen, by a receipt or an eviction.
            self._watched.clear()

    def gone(self, ids: Iterable[int], now_s: float) -> None:
        """These are not waiting any more."""
        for id_ in ids:
            if self._probe is not None and self._probe[0] == id_:
                # From here on the connection stands for nobody in particular again.
                self._probe, self._began_s = None, now_s
            self._unanswered.pop(id_, None)
            self._watched.discard(id_)
            self._charges.pop(id_, None)
            for stream in [stream for stream, bar in self._bars.items() if bar.probe_id == id_]:
                del self._bars[stream]

    def ended(self, under_way: Sequence[tuple[int, StreamName]], now_s: float, *, is_by_peer: bool) -> Sentence:
        """The connection ended.

        Args:
            under_way: what was sent on it and not answered, in order.
            now_s: now.
            is_by_peer: the other side hung up, and said nothing that explains it otherwise.
        """
        if is_by_peer and self._probe is not None:
            return self._strike(*self._probe, now_s)
        if self.is_careful:
            self._broke(under_way if is_by_peer else (), now_s)
        elif is_by_peer and under_way:
            self._count(under_way)
        elif not is_by_peer:
            self._unanswered.clear()
        return Sentence()

    def _count(self, under_way: Sequence[tuple[int, StreamName]]) -> None:
        self._unanswered = {id_: self._unanswered.get(id_, 0) + 1 for id_, _ in under_way}
        self._watched = {id_ for id_, count in self._unanswered.items() if count >= CAREFUL_AFTER}
        if self._watched:
            self._unanswered.clear()
            self._passes_left = 2 * len(self._watched) + _CONTROLS
            self._breaks, self._steady_s, self._idle_ends = 0, 0.0, 0

    def _broke(self, under_way: Sequence[tuple[int, StreamName]], now_s: float) -> None:
        """It ended without a probe under way: whoever it was, it counts as a break of the link's own."""
        self._breaks += 1
        self._steady_s += max(0.0, now_s - self._began_s)
        self._probe = None
        for id_, stream in under_way if len(under_way) == 1 else ():
            if id_ not in self._charges:
                self._watched.discard(id_)
                self._charges[id_] = _Charge(stream)
                self._failed[stream] = self._failed.get(stream, 0) + 1
        if not under_way:
            self._idle_ends += 1
        if self._idle_ends >= _ACQUIT_AFTER:
            self._watched.clear()
            self._charges.clear()
            self._failed = {stream: count for stream, count in self._failed.items() if stream in self._bars}
            self._idle_ends = 0

    def _strike(self, id_: int, sent_s: float, now_s: float) -> Sentence:
        self._probe = None
        charge = self._charges[id_]
        charge.flights_s.append(max(_SHORTEST_FLIGHT_S, now_s - sent_s))
        stream = charge.stream
        if stream in self._bars:
            return self._bar(stream, id_, now_s)
        if self._failed.get(stream, 0) > 1:
            of_stream = [other for other in self._charges.values() if other.stream == stream]
            has_control = any(other.has_foreign_control for other in of_stream)
            if has_control and self._is_no_chance([flight_s for other in of_stream for flight_s in other.flights_s]):
                return self._bar(stream, id_, now_s)
        elif charge.has_control and self._is_no_chance(charge.flights_s):
            del self._charges[id_]
            return Sentence(park=(id_,))
        return Sentence()

    def _is_no_chance(self, flights_s: Sequence[float]) -> bool:
        """Whether a link that breaks by itself as often as this one hardly broke just then, each time."""
        breaks_per_s = (self._breaks + 1) / max(self._steady_s, _SHORTEST_FLIGHT_S)
        chance = math.prod(-math.expm1(-breaks_per_s * flight_s) for flight_s in flights_s)
        return len(flights_s) >= STRIKES and chance < _CHANCE

    def _bar(self, stream: StreamName, probe_id: int, now_s: float) -> Sentence:
        before = self._bars.get(stream)
        wait_s = self._times.first_bar_s if before is None else min(_BAR_CAP_S, 2 * before.wait_s)
        self._bars[stream] = _Bar(probe_id, wait_s, now_s + wait_s)
        self._charges = {id_: charge for id_, charge in self._charges.items() if charge.stream != stream}
        # What else was watched may be of the same stream, and nothing of that comes to clear it.
        self._watched.clear()
        return Sentence(bar=(stream,))
