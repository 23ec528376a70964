"""Send receipts on a thread of their own: a broker that is slow, unavailable or refuses one device holds no run up.

A receipt goes by a connection that never makes its user wait for an answer, or by any publisher.
"""

import queue
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.reasoncodes import ReasonCode

from catchment.runtime.clock import Backoff, Clock
from catchment.runtime.mqtt_link import (
    MQTT_MAX_PACKET_BYTES,
    MQTT_RECEIVE_MAXIMUM,
    PubackClient,
    client_context,
    close_connection,
    make_client,
    open_connection,
)
from pipelines.config import CoreBrokerConfig
from pipelines.errors import RetryLaterError
from pipelines.ingest.admit import NO_BEYOND, Beyond
from pipelines.ingest.receipt_outbox import NOT_SENT, Broken, LinkLimits, ReceiptAnswer, ReceiptOutbox
from pipelines.ingest.receipts import Outgoing, PageBook, Publisher, ReceiptSink
from pipelines.lake.lake import Lake
from pipelines.lake.ledger import Ledger
from schemas.topics import Topics

CONNECT_WITHIN_S = 5.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 0.5
LAST_ANSWERS_S = 3.0
IDLE_FOR_S = 10.0


class DirectLink:
    """A publisher that waits for the broker, as a link: what is sent goes out, all of it at once, when answers are wanted."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._queued: dict[int, Outgoing] = {}
        self._numbers = count(1)

    def limits(self) -> LinkLimits:
        """The limits of MQTT itself; this link adds none."""
        return LinkLimits(MQTT_MAX_PACKET_BYTES, MQTT_RECEIVE_MAXIMUM)

    def send(self, message: Outgoing) -> int:
        """Queue it until the next call of `answers`."""
        number = next(self._numbers)
        self._queued[number] = message
        return number

    def answers(self) -> list[ReceiptAnswer | Broken]:
        """Publish what is queued: success for each message, or none of them was sent."""
        if not self._queued:
            return []
        queued, self._queued = self._queued, {}
        code = 0
        try:
            self._publisher.publish(dict(queued.values()))
        except RetryLaterError as error:
            log.warning("receipts_wait", messages=len(queued), reason=str(error))
            code = NOT_SENT
        return [ReceiptAnswer(number, code) for number in queued]

    def reset(self, reason: str) -> None:
        """There is no connection to give up."""


class MqttLink:
    """One paho client per connection, so that nothing of a broken one is sent again behind our back. Used by one thread.

    Args:
        broker: where it listens.
        client_id: this role's name at the broker.
        clock: monotonic time for pauses between attempts.
        wake: called, from paho's thread, when there is an answer; must not block.
    """

    def __init__(self, broker: CoreBrokerConfig, client_id: str, clock: Clock, wake: Callable[[], None]) -> None:
        self._broker = broker
        self._client_id = client_id
        self._clock = clock
        self._wake = wake
        self._numbers = count(1)
        self._connection: _Connection | None = None
        self._answers: queue.SimpleQueue[ReceiptAnswer | Broken] = queue.SimpleQueue()
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._due_s = float("-inf")

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect failed, or the connection ended since."""
        return self._connection is None and self._backoff.failures > 0

    def limits(self) -> LinkLimits | None:
        """The broker's limits; connects when it is time to, and waits for that at most `CONNECT_WITHIN_S` twice."""
        if self._connection is None and self._clock.monotonic_s() >= self._due_s:
            self._connect()
        return None if self._connection is None else self._connection.limits

    def send(self, message: Outgoing) -> int:
        """Hand over a retained message.

        Raises:
            RetryLaterError: the connection is gone.
        """
        if self._connection is None or self._connection.is_over:
            raise RetryLaterError(f"broker {self._broker.host}:{self._broker.port}: the connection is gone")
        number = next(self._numbers)
        self._connection.publish(number, message)
        return number

    def answers(self) -> list[ReceiptAnswer | Broken]:
        """Take the broker's answers and connection losses since the last call."""
        found: list[ReceiptAnswer | Broken] = []
        while not self._answers.empty():
            answer = self._answers.get_nowait()
            found.append(answer)
            if isinstance(answer, Broken):
                self.close()
                self._pause()
            else:
                self._backoff.succeeded()
        return found

    def reset(self, reason: str) -> None:
        """Give the connection up."""
        connection = self._connection
        if connection is not None:
            connection.end(reason)

    def close(self) -> None:
        """Disconnect for good."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> None:
        try:
            connection = _Connection(self._broker, self._client_id, self._answers, self._wake)
            connection.open()
        except OSError as error:
            self._pause()
            log.warning("receipts_wait", broker=f"{self._broker.host}:{self._broker.port}", reason=str(error))
            return
        self._connection = connection

    def _pause(self) -> None:
        """Wait before the next attempt: longer each time, but for a connection over which anything was answered."""
        self._due_s = self._clock.monotonic_s() + self._backoff.next_s()


class _Connection:
    """One connection, from CONNECT to its end, which is told once."""

    def __init__(
        self,
        broker: CoreBrokerConfig,
        client_id: str,
        answers: "queue.SimpleQueue[ReceiptAnswer | Broken]",
        wake: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._answers = answers
        self._wake = wake
        self._numbers: dict[int, int] = {}
        self.limits = LinkLimits(MQTT_MAX_PACKET_BYTES, MQTT_RECEIVE_MAXIMUM)
        self.is_over = False
        tls = broker.tls
        context = None if tls is None else client_context(tls.ca, tls.cert, tls.key)
        self._client = make_client(client_id, PubackClient, context=context)
        self._client.max_inflight_messages_set(MQTT_RECEIVE_MAXIMUM)
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish

    def open(self) -> None:
        """Connect.

        Raises:
            OSError: the broker cannot be reached, or refuses.
        """
        broker = self._broker
        found = open_connection(self._client, broker.host, broker.port, keepalive_s=broker.keepalive_s, within_s=CONNECT_WITHIN_S)
        self.limits = LinkLimits(found.max_packet_bytes, found.receive_maximum)

    def publish(self, number: int, message: Outgoing) -> None:
        """Send; the answer bears `number`.

        Raises:
            RetryLaterError: the connection is gone.
        """
        # Paho's thread may have the answer before `publish` has returned: the number waits for it, or it for the number.
        info = self._client.publish(message.topic, message.body, qos=1, retain=True)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            raise RetryLaterError(f"not sent: {mqtt.error_string(info.rc)}")
        self._settle(info.mid, number)

    def end(self, reason: str) -> None:
        """Close it, and tell of the end."""
        if not self.is_over:
            self.is_over = True
            self._answers.put(Broken(reason))
            self._wake()

    def close(self) -> None:
        """Disconnect and end the network thread; nothing is told."""
        self.is_over = True
        close_connection(self._client)

    def _settle(self, mid: int, value: int) -> None:
        """Join a message's number and its answer, whichever comes second; an answer is kept as -1 - code."""
        first = self._numbers.setdefault(mid, value)
        if first == value:
            return
        del self._numbers[mid]
        number, code = (first, -1 - value) if value < 0 else (value, -1 - first)
        self._answers.put(ReceiptAnswer(number, code))
        self._wake()

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, code: ReasonCode, _p: Any) -> None:
        self.end(str(code))

    def _on_publish(self, _c: Any, _u: Any, mid: int, code: ReasonCode, _p: Any) -> None:
        self._settle(mid, -1 - self._client.take_code(mid, code.value))


class ReceiptSender:
    """Publishes receipts until the block is left.

    Args:
        lake: the lake, for what is retained on the broker.
        broker: the broker.
        client_id: this role's name at the broker.
        clock: monotonic time.
    """

    def __init__(self, lake: Lake, broker: CoreBrokerConfig, client_id: str, clock: Clock) -> None:
        self._clock = clock
        self._wake = Event()
        self._stop = Event()
        self._link = MqttLink(broker, client_id, clock, self._wake.set)
        self._outbox = ReceiptOutbox(self._link, Topics(broker.namespace), clock, PageBook(lake))
        self._thread: Thread | None = None
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.drain(LAST_ANSWERS_S)
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(LAST_ANSWERS_S)

    @property
    def pending(self) -> int:
        """The number of devices that wait for a receipt."""
        return self._outbox.pending

    @property
    def failing(self) -> Mapping[str, str]:
        """Devices whose receipt cannot be published, and why; each is tried again."""
        return self._outbox.failing

    def mark_pending(self, ledger: Ledger, devices: Iterable[str], beyond: Beyond = NO_BEYOND) -> None:
        """Publish the receipts of these devices as `ledger`, or one after it, has them."""
        self._outbox.mark_pending(ledger, devices, beyond)

    def step(self) -> None:
        """See to it that the thread is at work.

        Raises:
            RuntimeError: it failed; the run loop ends, and begins again with every receipt.
        """
        if self.failure is not None:
            raise RuntimeError("receipts are no longer published") from self.failure
        if self._thread is None:
            self._thread = Thread(target=self._run, name="receipts", daemon=True)
            self._thread.start()
        self._wake.set()

    def drain(self, idle_for_s: float = IDLE_FOR_S) -> None:
        """Wait until every receipt that can be published is; no longer than `idle_for_s` after the last one that was."""
        self.step()
        taken, since_s = self._outbox.taken, self._clock.monotonic_s()
        while self.pending > len(self.failing) and not self._link.is_away and self.failure is None:
            if self._outbox.taken != taken:
                taken, since_s = self._outbox.taken, self._clock.monotonic_s()
            if self._clock.monotonic_s() - since_s > idle_for_s:
                break
            self._stop.wait(0.01)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._outbox.step()
                self._wake.wait(LOOK_EVERY_S)
                self._wake.clear()
        except Exception as error:  # the run loop must hear of whatever ended this thread
            log.exception("receipts_ended")
            self.failure = error
        finally:
            self._link.close()


def sink_of(publisher: Publisher | ReceiptSender, lake: Lake, topics: Topics, clock: Clock) -> ReceiptSink:
    """The sender as it is; a publisher that waits for the broker behind an outbox of its own."""
    if isinstance(publisher, ReceiptSender):
        return publisher
    return ReceiptOutbox(DirectLink(publisher), topics, clock, PageBook(lake))
