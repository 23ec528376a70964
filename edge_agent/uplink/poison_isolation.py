"""Send envelopes one by one while one is suspected of making the broker hang up, and settle the suspicion. One thread."""

from collections.abc import Callable, Iterable, Sequence

import structlog

from edge_agent.spool.records import Envelope
from edge_agent.spool.spool import Spool
from edge_agent.uplink.poison_detector import PoisonDetector
from edge_agent.uplink.send_window import UplinkTimes
from edge_agent.uplink.session import Lost
from schemas.ids import StreamName

# How a parked envelope's reason begins: a new connection alone is no reason to try it again.
HANGS_UP = "the other side ends the connection when it gets this"
# What was parked for that is tried again so often, one at a time.
_RETRY_EVERY_S = 3_600.0

log = structlog.get_logger(__name__)
Park = Callable[[int, str], None]


class PoisonIsolation:
    """Reports events to the poison detector and applies its decisions to the spool.

    Args:
        spool: what is sent.
        park: parks an envelope, for a reason.
        draw: a random number in [0, 1).
        times: passed to the suspicion.
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
