"""The uplink: leases envelopes, sends them, listens for acknowledgements and receipts, and starts over when the line breaks.

Only a receipt deletes. An acknowledgement of the broker merely frees the window.
"""

import queue
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from edge_agent.clock import Clock
from edge_agent.config import UplinkConfig
from edge_agent.errors import BrokerUnavailableError
from edge_agent.spool.records import Envelope
from edge_agent.spool.spool import Spool
from edge_agent.uplink.backoff import Backoff
from edge_agent.uplink.downlink import Downlink, ModelDesk
from edge_agent.uplink.flight import Flight
from edge_agent.uplink.parts import PartSender
from edge_agent.uplink.reasons import Verdict, judge
from edge_agent.uplink.report import Reporter
from edge_agent.uplink.session import Acked, Arrived, Events, Lost, Message, Session, Woken
from schemas.envelope import ARROW_STREAM, EnvelopeHead
from schemas.ids import DeviceId
from schemas.topics import Topics

_TICK_S = 0.25
_EVENTS_AT_ONCE = 256
_RECONNECT_FIRST_S = 0.5
_RECONNECT_CAP_S = 30.0
_REFUSED_FIRST_S = 0.2
_REFUSED_CAP_S = 15.0
_OBJECT_ANSWER_S = 10.0

_log = structlog.get_logger(__name__)
_Connect = Callable[[Events], Session]


@dataclass(slots=True)
class Progress:
    """What the uplink has done, for health and metrics. Written by its thread, read by any."""

    is_connected: bool = False
    sent_count: int = 0
    not_sent_count: int = 0
    resent_count: int = 0
    parked_count: int = 0
    last_ack_s: float = float("-inf")


class Forwarder:
    """The uplink's thread.

    Args:
        spool: what is sent, and where receipts go.
        connect: makes a session whose events go to the queue given.
        config: windows and times.
        topics: of the namespace.
        device: this device.
        reporter: the device's books.
        models: the models' room, None without `[model]`.
        clock: monotonic time.
    """

    def __init__(
        self,
        spool: Spool,
        connect: _Connect,
        config: UplinkConfig,
        topics: Topics,
        device: DeviceId,
        reporter: Reporter,
        models: ModelDesk | None,
        clock: Clock,
    ) -> None:
        self._spool = spool
        self._connect = connect
        self._topics = topics
        self._device = device
        self._reporter = reporter
        self._clock = clock
        self._events: Events = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self._flight = Flight(config.window_bytes, config.unsettled_bytes, config.resend_after_s)
        self._parts = PartSender(spool, topics, device, config.part_bytes, min(_OBJECT_ANSWER_S, config.resend_after_s))
        self._downlink = Downlink(spool, self._parts, models, topics, device)
        self._reconnect = Backoff(_RECONNECT_FIRST_S, _RECONNECT_CAP_S, random.random)
        self._refused = Backoff(_REFUSED_FIRST_S, _REFUSED_CAP_S, random.random)
        self._paused_until_s = float("-inf")
        self.progress = Progress()

    def run(self, stop: threading.Event) -> None:
        """Send until told to stop.

        Raises:
            SpoolError: the spool is broken.
        """
        self._spool.listen(lambda: self._events.put(Woken()))
        while not stop.is_set():
            self._events = queue.SimpleQueue()
            try:
                session = self._connect(self._events)
            except BrokerUnavailableError as error:
                wait_s = self._reconnect.next_s()
                _log.warning("broker unavailable", error=str(error), retry_in_s=round(wait_s, 1))
                stop.wait(wait_s)
                continue
            try:
                self._serve(session, stop)
            except BrokerUnavailableError as error:
                _log.warning("connection lost", error=str(error))
            finally:
                self.progress.is_connected = False
                session.close()
                self._spool.release(self._flight.lost())
            stop.wait(0 if stop.is_set() else self._reconnect.next_s())

    def hand_policies_to(self, taker: Callable[[bytes], None]) -> None:
        """Give edge policies that come down to the rules' room; it must not block."""
        self._downlink.hand_policies_to(taker)

    def request_model_piece(self, body: bytes, correlation: bytes) -> None:
        """Ask the model server; the answer comes down with the same correlation data. From any thread."""
        self._requests.put((body, correlation))
        self._events.put(Woken())

    def _serve(self, session: Session, stop: threading.Event) -> None:
        session.subscribe([self._topics.down_filter(self._device), self._topics.model_data(self._device)])
        self._parts.connected()
        self._reporter.connected()
        self._spool.unpark_all()
        self.progress.is_connected = True
        _log.info("connected", max_packet_bytes=session.max_packet_bytes)
        while not stop.is_set():
            for event in self._next_events():
                self._handle(event)
            now_s = self._clock.monotonic_s()
            self._flight.forget(self._spool.take_removed())
            late = self._flight.overdue(now_s)
            self.progress.resent_count += len(late)
            self._spool.release(late)
            self._tell(session)
            if now_s >= self._paused_until_s:
                self._parts.step(session, now_s)
                self._send(session, now_s)

    def _next_events(self) -> list[Acked | Arrived | Lost | Woken]:
        found: list[Acked | Arrived | Lost | Woken] = []
        try:
            found.append(self._events.get(timeout=_TICK_S))
            while len(found) < _EVENTS_AT_ONCE:
                found.append(self._events.get_nowait())
        except queue.Empty:
            return found
        return found

    def _handle(self, event: Acked | Arrived | Lost | Woken) -> None:
        match event:
            case Acked(mid, code):
                self._acked(mid, code)
            case Arrived():
                self._downlink.handle(event)
            case Lost(reason):
                raise BrokerUnavailableError(f"the broker went away: {reason}")
            case Woken():
                return

    def _acked(self, mid: int, code: int) -> None:
        self._reconnect.succeeded()
        if self._parts.acked(mid, is_taken=code == 0):
            self._after(judge(code, 1), code)
            return
        id_ = self._flight.acked(mid) if code == 0 else self._flight.refused(mid)
        if id_ is None:
            return
        verdict = judge(code, self._flight.tries(id_))
        if verdict is Verdict.NEVER:
            self._park(id_, f"the broker refuses it with reason 0x{code:02x}")
        elif verdict is Verdict.NOT_SENT:
            self._spool.release([id_])
        self._after(verdict, code)

    def _after(self, verdict: Verdict, code: int) -> None:
        if verdict is Verdict.TAKEN:
            self.progress.last_ack_s = self._clock.monotonic_s()
            self._refused.succeeded()
        elif verdict is Verdict.NOT_SENT:
            self.progress.not_sent_count += 1
            now_s = self._clock.monotonic_s()
            if now_s >= self._paused_until_s:
                wait_s = self._refused.next_s()
                self._paused_until_s = now_s + wait_s
                _log.warning("broker has nobody to give samples to; waiting", reason=f"0x{code:02x}", retry_in_s=round(wait_s, 1))

    def _send(self, session: Session, now_s: float) -> None:
        # After a refusal one message goes ahead alone: a whole window would only be refused again.
        most = 1 if self._refused.failures else session.receive_maximum
        while self._flight.unacked_count < most and (room_bytes := self._flight.room_bytes()) > 0:
            envelopes = self._spool.next_unsent(room_bytes if most > 1 else 1)
            if not envelopes:
                return
            for position, envelope in enumerate(envelopes):
                try:
                    self._publish(session, envelope, now_s)
                except BrokerUnavailableError:
                    self._spool.release(left.id for left in envelopes[position:])
                    raise

    def _publish(self, session: Session, envelope: Envelope, now_s: float) -> None:
        head = EnvelopeHead(
            device=self._device,
            stream=envelope.stream,
            content_type=ARROW_STREAM,
            span=envelope.span,
            contract_version=envelope.contract_version,
            encoding=envelope.encoding,
            created_us=envelope.created_us,
        )
        topic = self._topics.up(self._device, envelope.stream)
        message = Message(topic, envelope.body, tuple(head.to_properties()), content_type=ARROW_STREAM)
        if message.packet_bytes > session.max_packet_bytes:
            limit = f"{message.packet_bytes} bytes are above the broker's packet limit of {session.max_packet_bytes}"
            self._park(envelope.id, f"{limit}; raise max_packet_size there or lower max_samples here")
            return
        mid = session.publish(message)
        self._flight.sent(mid, envelope.id, len(envelope.body), now_s)
        self.progress.sent_count += 1

    def _park(self, id_: int, reason: str) -> None:
        _log.error("envelope parked", id=id_, reason=reason)
        self.progress.parked_count += 1
        self._spool.park(id_, reason)

    def _tell(self, session: Session) -> None:
        report = self._reporter.due()
        if report is not None:
            session.publish(
                Message(self._topics.reported(self._device), report, content_type="application/json", is_retained=True)
            )
        while not self._requests.empty():
            body, correlation = self._requests.get_nowait()
            session.publish(
                Message(
                    self._topics.model_get(self._device),
                    body,
                    content_type="application/json",
                    response_topic=self._topics.model_data(self._device),
                    correlation=correlation,
                )
            )
