"""Find the envelope that makes the broker end the connection, where the link itself is sound, and send around it.

Some brokers and proxies answer a message they do not want by hanging up. Sent again first on every connection, it would
hold up all others permanently. But a link that merely breaks often must not park a good envelope. So:

* What was unanswered at the end of several connections in a row makes us *careful*: one envelope under way at a time.
* One that was alone under way when the connection ended is a *suspect*: it is paused, others go, and once a connection has
  stood for a while it goes alone again. That is a *probe*; one that ends the connection has *failed*.
* It is *parked* when others passed meanwhile and it is most unlikely that a link that breaks as often as this one broke
  by itself just then, each time. A slow link and a large envelope need more failed probes for that; a steady link, three.
* A stream none of whose envelopes passes between two suspects is *paused* as a whole: it waits, and is tried again later.

`PoisonDetector` decides, without IO and without a clock. `PoisonIsolation` reports events to it and applies its decisions to the
spool, on the uplink's one thread.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from edge_agent.spool.records import Envelope
from edge_agent.spool.spool import Spool
from edge_agent.uplink.send_window import UplinkTimes
from edge_agent.uplink.session import Lost
from schemas.ids import StreamName

log = structlog.get_logger(__name__)

CAREFUL_AFTER = 3
MIN_FAILED_PROBES = 3
_CHANCE = 1e-4
# The shortest time in flight that counts: what is sent just as a link breaks is in flight for no time at all.
_MIN_IN_FLIGHT_S = 0.02
_CONTROLS = 8
# So many connections in a row that end before any probe: the link breaks by itself, and no envelope is the cause.
_CLEAR_AFTER = 4
_MAX_SUSPECTS = 16
_MAX_PAUSE_S = 3_600.0


@dataclass(slots=True)
class _Suspect:
    stream: StreamName
    in_flight_times_s: list[float] = field(default_factory=list)
    has_control: bool = False
    has_foreign_control: bool = False


@dataclass(slots=True)
class _Pause:
    probe_id: int
    wait_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Actions:
    """Actions after the end of a connection: envelopes to park, streams to pause."""

    park: tuple[int, ...] = ()
    pause: tuple[StreamName, ...] = ()


class PoisonDetector:
    """Learns from sent envelopes and ended connections; decides what may be sent next. Times are monotonic.

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
        self._suspects: dict[int, _Suspect] = {}
        self._failed: dict[StreamName, int] = {}  # suspects of a stream since one of it passed
        self._pauses: dict[StreamName, _Pause] = {}
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
        return bool(self._watched or self._suspects)

    @property
    def held(self) -> frozenset[int]:
        """Envelopes that go as probes alone."""
        return frozenset(self._suspects) | {pause.probe_id for pause in self._pauses.values()}

    @property
    def left_out(self) -> frozenset[StreamName]:
        """Streams of which nothing but probes goes now."""
        suspected = {suspect.stream for suspect in self._suspects.values() if self._failed.get(suspect.stream, 0) > 1}
        return frozenset(suspected | self._pauses.keys())

    @property
    def paused(self) -> frozenset[StreamName]:
        """Streams that wait."""
        return frozenset(self._pauses)

    def connected(self, now_s: float) -> None:
        """A new connection."""
        longest_s = max(
            (in_flight_s for suspect in self._suspects.values() for in_flight_s in suspect.in_flight_times_s), default=0.0
        )
        self._began_s = now_s
        self._next_probe_s = now_s + (0.5 + self._draw()) * max(self._times.steady_s, longest_s)
        self._is_answered = False
        self._controls = 0
        self._probe = None

    def add_suspect(self, id_: int, stream: StreamName) -> None:
        """Suspect an envelope that was parked before, so that it gets another probe."""
        self._suspects[id_] = _Suspect(stream)

    def retry_paused(self, now_s: float) -> None:
        """Streams that waited long enough are tried again, by one envelope each."""
        for stream, pause in self._pauses.items():
            if pause.until_s <= now_s and pause.probe_id not in self._suspects:
                self.add_suspect(pause.probe_id, stream)

    def probe(self, now_s: float) -> int | None:
        """The suspect that may go now, where nothing else is under way."""
        if not self._suspects or not self._is_answered or now_s < self._next_probe_s:
            return None
        return min(self._suspects, key=lambda id_: (len(self._suspects[id_].in_flight_times_s), id_))

    def may_send_others(self) -> bool:
        """Whether something else may go now, where nothing else is under way."""
        return not self._suspects or (self._controls < _CONTROLS and len(self._suspects) < _MAX_SUSPECTS)

    def nothing_waits(self) -> None:
        """Forget watched envelopes: nothing waits in the spool, so they have left it."""
        self._watched.clear()

    def sent(self, id_: int, now_s: float) -> None:
        """An envelope went out."""
        if id_ in self._suspects:
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
        self._pauses.pop(stream, None)
        for suspect in self._suspects.values():
            suspect.has_control = True
            suspect.has_foreign_control = suspect.has_foreign_control or suspect.stream != stream
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
            self._suspects.pop(id_, None)
            for stream in [stream for stream, pause in self._pauses.items() if pause.probe_id == id_]:
                del self._pauses[stream]

    def ended(self, under_way: Sequence[tuple[int, StreamName]], now_s: float, *, is_by_peer: bool) -> Actions:
        """The connection ended.

        Args:
            under_way: what was sent on it and not answered, in order.
            now_s: now.
            is_by_peer: the other side hung up, and said nothing that explains it otherwise.
        """
        if is_by_peer and self._probe is not None:
            return self._probe_failed(*self._probe, now_s)
        if self.is_careful:
            self._broke(under_way if is_by_peer else (), now_s)
        elif is_by_peer and under_way:
            self._count(under_way)
        elif not is_by_peer:
            self._unanswered.clear()
        return Actions()

    def _count(self, under_way: Sequence[tuple[int, StreamName]]) -> None:
        self._unanswered = {id_: self._unanswered.get(id_, 0) + 1 for id_, _ in under_way}
        self._watched = {id_ for id_, count in self._unanswered.items() if count >= CAREFUL_AFTER}
        if self._watched:
            self._unanswered.clear()
            self._passes_left = 2 * len(self._watched) + _CONTROLS
            self._breaks, self._steady_s, self._idle_ends = 0, 0.0, 0

    def _broke(self, under_way: Sequence[tuple[int, StreamName]], now_s: float) -> None:
        """Count an end without a probe under way as a break of the link's own."""
        self._breaks += 1
        self._steady_s += max(0.0, now_s - self._began_s)
        self._probe = None
        for id_, stream in under_way if len(under_way) == 1 else ():
            if id_ not in self._suspects:
                self._watched.discard(id_)
                self._suspects[id_] = _Suspect(stream)
                self._failed[stream] = self._failed.get(stream, 0) + 1
        if not under_way:
            self._idle_ends += 1
        if self._idle_ends >= _CLEAR_AFTER:
            self._watched.clear()
            self._suspects.clear()
            self._failed = {stream: count for stream, count in self._failed.items() if stream in self._pauses}
            self._idle_ends = 0

    def _probe_failed(self, id_: int, sent_s: float, now_s: float) -> Actions:
        self._probe = None
        suspect = self._suspects[id_]
        suspect.in_flight_times_s.append(max(_MIN_IN_FLIGHT_S, now_s - sent_s))
        stream = suspect.stream
        if stream in self._pauses:
            return self._pause_stream(stream, id_, now_s)
        if self._failed.get(stream, 0) > 1:
            of_stream = [other for other in self._suspects.values() if other.stream == stream]
            has_control = any(other.has_foreign_control for other in of_stream)
            if has_control and self._is_unlikely([in_flight_s for other in of_stream for in_flight_s in other.in_flight_times_s]):
                return self._pause_stream(stream, id_, now_s)
        elif suspect.has_control and self._is_unlikely(suspect.in_flight_times_s):
            del self._suspects[id_]
            return Actions(park=(id_,))
        return Actions()

    def _is_unlikely(self, in_flight_times_s: Sequence[float]) -> bool:
        """Whether a link that breaks by itself as often as this one hardly broke just then, each time."""
        breaks_per_s = (self._breaks + 1) / max(self._steady_s, _MIN_IN_FLIGHT_S)
        chance = math.prod(-math.expm1(-breaks_per_s * in_flight_s) for in_flight_s in in_flight_times_s)
        return len(in_flight_times_s) >= MIN_FAILED_PROBES and chance < _CHANCE

    def _pause_stream(self, stream: StreamName, probe_id: int, now_s: float) -> Actions:
        before = self._pauses.get(stream)
        wait_s = self._times.first_pause_s if before is None else min(_MAX_PAUSE_S, 2 * before.wait_s)
        self._pauses[stream] = _Pause(probe_id, wait_s, now_s + wait_s)
        self._suspects = {id_: suspect for id_, suspect in self._suspects.items() if suspect.stream != stream}
        # What else was watched may be of the same stream, and nothing of that comes to clear it.
        self._watched.clear()
        return Actions(pause=(stream,))


# How a parked envelope's reason begins: a new connection alone is no reason to try it again.
HANGS_UP = "the other side ends the connection when it gets this"
# What was parked for that is tried again so often, one at a time.
_RETRY_EVERY_S = 3_600.0


Park = Callable[[int, str], None]


class PoisonIsolation:
    """Reports events to the poison detector and applies its decisions to the spool.

    Args:
        spool: what is sent.
        park: parks an envelope, for a reason.
        draw: a random number in [0, 1).
        times: passed to the detector.
    """

    def __init__(self, spool: Spool, park: Park, draw: Callable[[], float], times: UplinkTimes) -> None:
        self._spool = spool
        self._park = park
        self._detector = PoisonDetector(draw, times)
        self._streams: dict[int, StreamName] = {}  # of what is under way
        self._held: frozenset[int] = frozenset()
        self._left_out: frozenset[StreamName] = frozenset()
        self._retried_id = 0
        self._retry_s: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether only one message may be under way at a time."""
        return self._detector.is_careful

    @property
    def paused(self) -> tuple[str, ...]:
        """Streams that wait, for the other side hangs up on each of their envelopes."""
        return tuple(sorted(self._detector.paused))

    def may_send_others(self) -> bool:
        """Whether something other than a suspect may go, where nothing is under way."""
        return self._detector.may_send_others()

    def connected(self, now_s: float) -> None:
        """A new connection."""
        self._detector.connected(now_s)

    def next_alone(self, now_s: float) -> list[Envelope]:
        """The one envelope that may go now, where nothing is under way; none when it is time to wait."""
        while (id_ := self._detector.probe(now_s)) is not None:
            envelope = self._spool.lease(id_)
            if envelope is not None:
                return [envelope]
            self.forget([id_], now_s)
        if not self._detector.may_send_others():
            return []
        envelopes = self._spool.next_unsent(1)
        if not envelopes:
            self._detector.nothing_waits()
        return envelopes

    def sent(self, envelope: Envelope, now_s: float) -> None:
        """Note that an envelope was sent."""
        self._streams[envelope.id] = envelope.stream
        self._detector.sent(envelope.id, now_s)

    def answered(self) -> None:
        """The broker answered a message, whichever."""
        self._detector.answered()

    def passed(self, id_: int, now_s: float) -> None:
        """The broker answered this envelope, whatever it said."""
        stream = self._streams.pop(id_, None)
        if stream is not None:
            # It stays leased until a receipt comes, as any other.
            self._held -= {id_}
            self._detector.passed(id_, stream, now_s)
            self._hold()

    def forget(self, ids: Iterable[int], now_s: float) -> None:
        """These left the spool."""
        gone = list(ids)
        for id_ in gone:
            self._streams.pop(id_, None)
        if gone:
            self._detector.gone(gone, now_s)
            self._hold()

    def ended(self, ids: Sequence[int], now_s: float, lost: Lost | None) -> list[int]:
        """The connection ended; returns which of these, unanswered on it, may be sent again in their turn.

        Args:
            ids: in the order they were sent.
            now_s: now.
            lost: how it ended; None: by our own hand.
        """
        if lost is not None:
            under_way = [(id_, self._streams[id_]) for id_ in ids if id_ in self._streams]
            actions = self._detector.ended(under_way, now_s, is_by_peer=lost.is_by_peer)
            for id_ in actions.park:
                self._park(id_, f"{HANGS_UP} ({lost.reason}), alone, again and again, and takes others")
            for stream in actions.pause:
                log.error("stream_paused", stream=stream, reason=lost.reason)
            self._hold()
        self._streams.clear()
        return [id_ for id_ in ids if id_ not in self._held]

    def look(self, now_s: float) -> None:
        """Retry parked envelopes and paused streams when it is time."""
        self._detector.retry_paused(now_s)
        if self._retry_s is None:
            self._retry_s = now_s + _RETRY_EVERY_S
        if now_s >= self._retry_s:
            self._retry_s = now_s + _RETRY_EVERY_S
            self._retry_parked()
        self._hold()

    def _retry_parked(self) -> None:
        id_ = self._spool.oldest_parked(HANGS_UP, self._retried_id)
        self._retried_id = id_ or 0
        if id_ is None:
            return
        self._spool.replay([id_])
        envelope = self._spool.lease(id_)
        if envelope is not None:
            self._detector.add_suspect(id_, envelope.stream)

    def _hold(self) -> None:
        """Keep the leases of suspects, give back those of others, and leave out their streams."""
        held = self._detector.held
        if held != self._held:
            released, self._held = self._held - held, held
            self._spool.release(released - self._streams.keys())
        if self._detector.left_out != self._left_out:
            self._left_out = self._detector.left_out
            self._spool.leave_out(self._left_out)
