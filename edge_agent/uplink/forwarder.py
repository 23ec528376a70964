"""The uplink: leases envelopes, sends them, listens for acknowledgements and receipts, and starts over when the line breaks.

Only a receipt deletes. An acknowledgement of the broker merely frees the window.
"""

import queue
import random
import threading
from collections.abc import Callable

import msgspec
import structlog

from catchment.runtime.clock import Backoff, Clock
from edge_agent.config import UplinkConfig
from edge_agent.errors import BrokerUnavailableError
from edge_agent.spool.spool import Spool
from edge_agent.uplink.downlink import Downlink, ModelMessages, ModelRequest
from edge_agent.uplink.outbox import Outbox, UplinkProgress
from edge_agent.uplink.poison import HANGS_UP
from edge_agent.uplink.send_window import UplinkTimes
from edge_agent.uplink.session import Acked, Event, Events, Lost, MessageArrived, OutgoingMessage, Session, Subscribed, Woken
from schemas.ids import DeviceId
from schemas.reported import DocumentReport, ModelReport, PolicyReport, Reported, encode_reported
from schemas.topics import Topics

# Telling the core the device's books: on connect, when they changed, and every minute anyway.
_UNCHANGED_INTERVALS = 12


class Reporter:
    """Makes the retained report, when it is time.

    Args:
        spool: has the books.
        device: this device.
        version: the agent's version.
        models: what the models' room says of itself.
        interval_s: how often at most.
        clock: wall clock for the report, monotonic for the interval.
        policy: what the rules' room says of itself.
        documents: what was taken of the signed documents.
    """

    def __init__(
        self,
        spool: Spool,
        device: DeviceId,
        version: str,
        models: Callable[[], tuple[ModelReport, ...]],
        interval_s: float,
        clock: Clock,
        policy: Callable[[], PolicyReport | None] = lambda: None,
        documents: Callable[[], tuple[DocumentReport, ...]] = tuple,
    ) -> None:
        self._spool = spool
        self._device = device
        self._version = version
        self._models = models
        self._interval_s = interval_s
        self._clock = clock
        self._policy = policy
        self._documents = documents
        self._last_report: Reported | None = None
        self._looked_s = float("-inf")
        self._last_report_s = float("-inf")

    def connected(self) -> None:
        """A new connection: the next report is due at once."""
        self._last_report = None
        self._looked_s = float("-inf")

    def refused(self) -> None:
        """Have the report sent again at the next interval: the broker did not take the last one."""
        self._last_report = None

    def due(self) -> bytes | None:
        """The report to publish, None when it is not time or nothing changed."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < self._interval_s:
            return None
        self._looked_s = now_s
        report = self._make()
        is_news = self._last_report is None or msgspec.structs.replace(report, at_ms=self._last_report.at_ms) != self._last_report
        if not is_news and now_s - self._last_report_s < _UNCHANGED_INTERVALS * self._interval_s:
            return None
        self._last_report, self._last_report_s = report, now_s
        return encode_reported(report)

    def _make(self) -> Reported:
        return Reported(
            device=str(self._device),  # msgspec encodes str itself, not what is derived from it
            at_ms=self._clock.now_ms(),
            agent_version=self._version,
            books=self._spool.books(),
            epochs=self._spool.epochs(),
            models=self._models(),
            policy=self._policy(),
            documents=self._documents() or msgspec.UNSET,
        )


_TICK_S = 1.0
_TURN_S = 5.0
_EVENTS_AT_ONCE = 256
# So long after a message could not be sent, paho has reported why.
_LAST_WORDS_S = 1.0
_LAST_BATCHES = 64
_RECONNECT_CAP_S = 30.0

# A refused subscription is asked for again: the broker's rules may have been corrected without a new connection.
_SUBSCRIBE_AGAIN_S = 60.0

_JSON = "application/json"

log = structlog.get_logger(__name__)
_Connect = Callable[[Events], Session]


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
        times: waiting times that no operator sets.
    """

    def __init__(  # noqa: PLR0913, PLR0917 # the last has a default that only tests change
        self,
        spool: Spool,
        connect: _Connect,
        config: UplinkConfig,
        topics: Topics,
        device: DeviceId,
        reporter: Reporter,
        models: ModelMessages | None,
        clock: Clock,
        times: UplinkTimes | None = None,
    ) -> None:
        times = times or UplinkTimes()
        self._spool = spool
        self._connect = connect
        self._topics = topics
        self._device = device
        self._reporter = reporter
        self._clock = clock
        self._events: Events = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[ModelRequest] = queue.SimpleQueue()
        self.progress = UplinkProgress()
        self._outbox = Outbox(spool, config, topics, device, self.progress, clock, times)
        self._downlink = Downlink(spool, self._outbox.parts, models, topics, device)
        self._downlink.hand_shares_to(self._outbox.over_share)
        self._reconnect = Backoff(times.first_reconnect_s, _RECONNECT_CAP_S, random.random)
        self.last_wait_s = 0.0
        self._filters = (topics.down_filter(device), topics.receipt_page_filter(device), topics.model_data(device))
        self._subscribed_s = float("-inf")
        self._control: dict[int, str] = {}  # messages of our own that are no envelope, by number
        self._news: queue.SimpleQueue[UplinkConfig] = queue.SimpleQueue()

    def run(self, stop: threading.Event) -> None:
        """Send until it is stopped.

        Raises:
            SpoolError: the spool is broken.
        """
        self._spool.listen(lambda: self._events.put(Woken()))
        while not stop.is_set():
            self._events = queue.SimpleQueue()
            self.progress.last_loop_s = self._clock.monotonic_s()
            try:
                session = self._connect(self._events)
            except BrokerUnavailableError as error:
                wait_s = self._reconnect.next_s()
                log.warning("broker_unavailable", error=str(error), retry_in_s=round(wait_s, 1))
                self._wait(stop, wait_s)
                continue
            how: Lost | None = None
            try:
                self._serve(session, stop)
            except BrokerUnavailableError as error:
                log.warning("connection_lost", error=str(error))
                how = self._last_words()
            finally:
                self.progress.is_connected = False
                session.close()
                self._outbox.lost(how)
            self._wait(stop, self._reconnect.next_s())

    def _wait(self, stop: threading.Event, wait_s: float) -> None:
        """Wait, but come round often enough to be seen alive."""
        self.last_wait_s = wait_s
        until_s = self._clock.monotonic_s() + wait_s
        while not stop.is_set() and (left_s := until_s - self._clock.monotonic_s()) > 0:
            self.progress.last_loop_s = self._clock.monotonic_s()
            stop.wait(min(left_s, _TURN_S))

    def wake(self) -> None:
        """Let the uplink's thread look at once whether it is to stop, instead of within a second. From any thread."""
        self._events.put(Woken())

    def retune(self, config: UplinkConfig) -> None:
        """Another rate, schedule, share or least priority from now on. From any thread."""
        self._news.put(config)
        self._events.put(Woken())

    @property
    def parts_sent(self) -> int:
        """Parts of large payloads published since the start."""
        return self._outbox.parts.parts_sent

    def hand_policies_to(self, taker: Callable[[bytes], None]) -> None:
        """Give edge policies that come down to the rules' room; it must not block."""
        self._downlink.hand_policies_to(taker)

    def request_model_piece(self, request: ModelRequest) -> None:
        """Ask the model server; the answer comes down with the same correlation data. From any thread."""
        self._requests.put(request)
        self._events.put(Woken())

    def _serve(self, session: Session, stop: threading.Event) -> None:
        self._control.clear()
        self._subscribe(session)
        self._outbox.connected(session)
        self._reporter.connected()
        self._spool.unpark_all(but_for=HANGS_UP)
        self.progress.is_connected = True
        log.info("connected", max_packet_bytes=session.max_packet_bytes)
        wait_s = 0.0
        while not stop.is_set():
            events = self._next_events(min(wait_s, _TICK_S))
            for event in events:
                self._handle(event)
            while not self._news.empty():
                self._outbox.retune(self._news.get_nowait())
            now_s = self.progress.last_loop_s = self._clock.monotonic_s()
            if now_s - self._subscribed_s >= _SUBSCRIBE_AGAIN_S and self.progress.refused_topics.keys() & set(self._filters):
                self._subscribe(session)
            self._tell(session)
            wait_s = self._outbox.step(session, now_s, has_news=bool(events))

    def _subscribe(self, session: Session) -> None:
        self._subscribed_s = self._clock.monotonic_s()
        session.subscribe(self._filters)

    def _last_words(self) -> Lost | None:
        """Return the answers that came before the connection ended, and its end; None when that is not known."""
        for _ in range(_LAST_BATCHES):
            for event in (events := self._next_events(_LAST_WORDS_S)):
                if isinstance(event, Lost):
                    return event
                self._handle(event)
            if not events:
                break
        return None

    def _next_events(self, wait_s: float) -> list[Event]:
        found: list[Event] = []
        try:
            found.append(self._events.get(timeout=wait_s))
            while len(found) < _EVENTS_AT_ONCE:
                found.append(self._events.get_nowait())
        except queue.Empty:
            return found
        return found

    def _handle(self, event: Event) -> None:
        match event:
            case Acked(mid, code):
                self._reconnect.succeeded()
                self._note_control(mid, code)
                self._outbox.acked(mid, code)
            case Subscribed(answers):
                for topic, code in answers:
                    self.progress.note_answer(topic, code)
            case MessageArrived():
                if self._downlink.handle(event):
                    self.progress.last_receipt_s = self._clock.monotonic_s()
            case Lost(reason):
                self._events.put(event)
                raise BrokerUnavailableError(f"the broker went away: {reason}")
            case Woken():
                return

    def _tell(self, session: Session) -> None:
        """Send control messages, which bypass the rate limit: they are small and do not come from the spool."""
        report = self._reporter.due()
        if report is not None:
            topic = self._topics.reported(self._device)
            self._publish(session, OutgoingMessage(topic, report, content_type=_JSON, is_retained=True))
        while not self._requests.empty():
            request = self._requests.get_nowait()
            answer_to = self._topics.model_data(self._device)
            message = OutgoingMessage(
                self._topics.model_get(self._device),
                request.body,
                content_type=_JSON,
                response_topic=answer_to,
                correlation=request.correlation,
            )
            self._publish(session, message)

    def _note_control(self, mid: int, code: int) -> None:
        """Notice a refused report or request: what is refused is sent again, and shown meanwhile."""
        topic = self._control.pop(mid, None)
        if topic is not None and self.progress.note_answer(topic, code) and topic == self._topics.reported(self._device):
            self._reporter.refused()

    def _publish(self, session: Session, message: OutgoingMessage) -> None:
        self._control[session.publish(message)] = message.topic
        self._outbox.control_sent(message.packet_bytes)
