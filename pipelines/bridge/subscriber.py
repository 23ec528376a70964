"""The MQTT side: receives, queues what is not durable yet, and acknowledges what is durable, in the order in which it came.

The network loop is our own around paho's socket calls. While the inbox is full the socket is not read, and TCP slows the
broker down; blocking paho's own loop instead would stop its pings as well, and a slow disk would become a reconnect
storm. Every paho call happens on this one thread, so an ack can never meet a connection other than its own.
"""

import os
import random
import re
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from catchment.runtime.clock import Backoff, Clock
from catchment.runtime.mqtt_link import connect_properties, make_client
from pipelines.bridge.rows import BrokerMessage
from pipelines.config import CoreConfig
from pipelines.errors import ConfigError, PipelineError
from pipelines.refusals import PublishTracker, Refusals, broker_client_context, refused_filters
from schemas.ids import DeviceId
from schemas.reason_codes import NOT_AUTHORIZED, describe_reason
from schemas.topics import Topics

log = structlog.get_logger(__name__)

_OVERHEAD_BYTES = 2_048  # What Python's objects around one message weigh, so that tiny messages are bounded as well.
SESSION_TAKEN_OVER = 0x8E
# Not: server unavailable (0x88), server busy (0x89) and the like, which pass.
_REFUSED_FOR_GOOD = {0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C}
_CONNACK_TIMEOUT_S = 10.0
_RECONNECT_FIRST_S = 0.1
_RECONNECT_CAP_S = 10.0
# A connection that held so long counts as a good one: the next failure is a first one.
_STEADY_S = 10.0
_LAST_ACKS_S = 4.0
_GOODBYE_S = 1.0
_DISCONNECT = b"\xe0\x00"
_POLL_S = 0.2
_READS_PER_POLL = 64
_INSTANCE = re.compile(rb"[0-9]{13}-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message and how to acknowledge it: `mid` means something only in the connection that `generation` counts."""

    message: BrokerMessage
    mid: int
    qos: int
    generation: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Something to publish: to a device, or an empty body that takes back what the broker keeps under a topic."""

    topic: str
    body: bytes
    is_retained: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """Messages that are durable, in the order in which they came, and what to answer."""

    arrived: Sequence[Arrived]
    answers: Sequence[Answer]


class Inbox:
    """Holds messages from their arrival until they are durable. `put` never blocks: the network thread asks `is_full` first.

    A broker sends more than the Receive Maximum after partial acks, so the bound on memory must be our own.

    Args:
        max_bytes: `is_full` from here on.
        group_bytes: a group is taken without lingering once this much waits, and holds about this much at the most.
    """

    def __init__(self, max_bytes: int, group_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._group_bytes = group_bytes
        self._waiting: deque[Arrived] = deque()
        self._waiting_bytes = 0
        self._held_bytes = 0
        self._changed = threading.Condition()

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read for now."""
        return self._held_bytes >= self._max_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes that arrived and are not durable."""
        return self._held_bytes

    def put(self, arrived: Arrived) -> None:
        """Add a message."""
        size = _size(arrived)
        with self._changed:
            self._waiting.append(arrived)
            self._waiting_bytes += size
            self._held_bytes += size
            if len(self._waiting) == 1 or self._waiting_bytes >= self._group_bytes:
                self._changed.notify()

    def take(self, wait_s: float, linger_s: float) -> list[Arrived]:
        """The next group: waits for a first message, then lingers for company unless a full group waits already."""
        with self._changed:
            if not self._waiting and not self._changed.wait_for(lambda: bool(self._waiting), wait_s):
                return []
            self._changed.wait_for(lambda: self._waiting_bytes >= self._group_bytes, linger_s)
            group: list[Arrived] = []
            taken = 0
            while self._waiting and (not group or taken < self._group_bytes):
                arrived = self._waiting.popleft()
                taken += _size(arrived)
                group.append(arrived)
            self._waiting_bytes -= taken
            return group

    def release(self, group: Sequence[Arrived]) -> None:
        """Forget a group that is durable."""
        with self._changed:
            self._held_bytes -= sum(_size(arrived) for arrived in group)


def _size(arrived: Arrived) -> int:
    return arrived.message.size_bytes + _OVERHEAD_BYTES


class Subscriber:
    """One connection with a fixed client id and a session that outlives it.

    Args:
        config: broker and bridge sections.
        inbox: where messages go.
        clock: for time-outs and the time of arrival.

    Raises:
        ConfigError: a TLS file is missing or not what it should be.
    """

    def __init__(self, config: CoreConfig, inbox: Inbox, clock: Clock) -> None:
        self.connections = 0
        self.is_subscribed = False
        self.stale_acks = 0
        self._config = config
        self._inbox = inbox
        self._clock = clock
        topics = Topics(config.broker.namespace)
        self.refusals = Refusals(topics, clock)
        self._tracker = PublishTracker()
        self._filters = topics.bridge_filters()
        self._instance_topic = topics.bridge_instance(DeviceId(config.bridge.id))
        # The time first, so that of two words one is the later.
        self._instance = b"%013d-%s" % (clock.now_ms(), os.urandom(4).hex().encode())
        self._done: deque[Done] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_up = False
        self._arrivals = 0
        self._fatal: PipelineError | None = None
        self._misc_not_before_s = 0.0
        self._awake_at_s = 0.0
        self._client = self._make_client()

    def post(self, done: Done) -> None:
        """Hand over what is durable; any thread."""
        self._done.append(done)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the sockets, once nobody posts any more."""
        self._client.reinitialise()
        os.close(self._wake)

    def run(self, stop: Event) -> None:
        """Receive until stopped; then stop reading, acknowledge what still becomes durable, and say goodbye.

        Raises:
            ConfigError: the broker refuses this client for good, or another one runs with the same id.
        """
        backoff = Backoff(_RECONNECT_FIRST_S, _RECONNECT_CAP_S, random.random)
        while not stop.is_set():
            try:
                self._connect()
            except OSError as error:
                log.warning("broker_away", host=self._config.broker.host, port=self._config.broker.port, error=str(error))
            else:
                began_s = self._clock.monotonic_s()
                self._serve(stop)
                if self._clock.monotonic_s() - began_s >= _STEADY_S:
                    backoff.succeeded()
            if self._fatal is not None:
                raise self._fatal
            if not stop.is_set():
                stop.wait(backoff.next_s())
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """DISCONNECT, then read until the broker closes: closing over unread messages makes TCP take our last acks back."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket) and self._is_up:
            try:
                sock.settimeout(_GOODBYE_S)
                sock.sendall(_DISCONNECT)
                sock.shutdown(socket.SHUT_WR)
                until_s = self._clock.monotonic_s() + _GOODBYE_S
                while sock.recv(65_536):
                    if self._clock.monotonic_s() >= until_s:
                        raise TimeoutError("the broker keeps the connection open")
            except OSError as error:
                log.info("goodbye_cut_short", error=str(error))
        self._client.disconnect()
        self._client.loop_write()

    def _make_client(self) -> mqtt.Client:
        context = broker_client_context(self._config.broker)
        client = make_client(self._config.bridge.id, mqtt.Client, context=context, manual_ack=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        # With this set paho queues packets instead of writing each one from within `ack`; the loop below writes them.
        client.on_socket_register_write = lambda *_: None
        return client

    def _connect(self) -> None:
        bridge, broker = self._config.bridge, self._config.broker
        properties = connect_properties(session_expiry_s=bridge.session_expiry_s, receive_maximum=bridge.receive_maximum)
        self._is_up = False
        self._client.connect(broker.host, broker.port, broker.keepalive_s, clean_start=False, properties=properties)

    def _serve(self, stop: Event) -> None:
        """One connection, from CONNECT until it is gone or everything is acknowledged after a stop."""
        connack_by_s = self._clock.monotonic_s() + _CONNACK_TIMEOUT_S
        stopped_s: float | None = None
        while self._client.socket() is not None and self._fatal is None:
            now_s = self._clock.monotonic_s()
            if not self._is_up and now_s > connack_by_s:
                self._client.disconnect()
                return
            if stop.is_set():
                stopped_s = stopped_s or now_s
                if not self._is_up or self._inbox.held_bytes == 0 or now_s - stopped_s > _LAST_ACKS_S:
                    self._send_done()
                    self._log_unacknowledged()
                    return
            self._turn(is_reading=not (stop.is_set() or self._inbox.is_full))

    def _log_unacknowledged(self) -> None:
        if held_bytes := self._inbox.held_bytes:
            hint = "the disk is slow; the broker sends these messages again at the next start"
            log.warning("acks_left_out", held_bytes=held_bytes, hint=hint)

    def _turn(self, *, is_reading: bool) -> None:
        """Wait for the socket or for something durable, and do what can be done."""
        self._send_done()
        if self._client.want_write():
            self._client.loop_write()
        sock = self._client.socket()
        if sock is None:
            return
        # TLS may hold decrypted bytes that no select on the socket tells of.
        has_pending = is_reading and isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        readers: list[Any] = [self._wake, sock] if is_reading else [self._wake]
        writers = [sock] if self._client.want_write() else []
        readable, _, _ = select.select(readers, writers, [], 0 if has_pending else _POLL_S)
        if self._wake in readable:
            os.eventfd_read(self._wake)
        if has_pending or sock in readable:
            self._read_some()
        if self._client.socket() is not None:
            self._keep_alive(is_reading=is_reading)

    def _read_some(self) -> None:
        for _ in range(_READS_PER_POLL):
            before = self._arrivals
            self._client.loop_read()
            if self._arrivals == before or self._inbox.is_full:
                return

    def _keep_alive(self, *, is_reading: bool) -> None:
        """Pings by paho while the socket is read; else a packet of ours, for a PINGRESP could not be seen coming.

        An UNSUBSCRIBE of a filter that was never subscribed is answered and changes nothing, whatever the broker permits.
        After a pause paho's look at the clock waits until a PINGRESP that queued behind the messages has been read.
        """
        now_s = self._clock.monotonic_s()
        keepalive_s = max(self._client.keepalive, 1)
        if is_reading:
            if now_s >= self._misc_not_before_s:
                self._client.loop_misc()
            return
        self._misc_not_before_s = now_s + keepalive_s / 2
        if self._is_up and now_s - self._awake_at_s >= keepalive_s / 3:
            self._awake_at_s = now_s
            self._client.unsubscribe(f"{self._instance_topic}/awake")

    def _send_done(self) -> None:
        while self._done:
            done = self._done.popleft()
            for arrived in done.arrived:
                if arrived.qos == 0:
                    continue
                if arrived.generation == self.connections and self._is_up:
                    self._client.ack(arrived.mid, arrived.qos)
                else:
                    self.stale_acks += 1
            for answer in done.answers:
                self._publish(answer)
        if self._client.want_write():
            self._client.loop_write()

    def _on_connect(self, client: mqtt.Client, _data: Any, flags: mqtt.ConnectFlags, reason: ReasonCode, _more: Any) -> None:
        if reason.is_failure:
            log.error("broker_refused", reason=str(reason))
            if reason.value in _REFUSED_FOR_GOOD:
                self._fatal = ConfigError(
                    f"the broker refuses bridge {self._config.bridge.id!r}: {reason}; check its certificate and the broker's ACL"
                )
            return
        self.connections += 1
        self._is_up = True
        if self.connections > 1 and not flags.session_present:
            log.warning("session_lost", hint="the broker forgot its queue; agents send again what has no receipt")
        # Retained reports come once with a new subscription, not at every reconnect. What a device has the broker keep is
        # marked as such, so that it can be taken back, and that is not heard as a message again.
        once = SubscribeOptions(
            qos=1, noLocal=True, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
        )
        # Not every broker says who took a session over, and two bridges with one id would throw each other out permanently:
        # each process says once that it is the one, and one that comes back and reads another's word stops.
        if self.connections == 1:
            self._publish_instance()
        client.subscribe([*((topic, once) for topic in self._filters), (self._instance_topic, SubscribeOptions(qos=0))])

    def _on_subscribe(self, _client: mqtt.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _more: Any) -> None:
        refused = refused_filters([*self._filters, self._instance_topic], [reason.value for reason in reasons])
        if refused:
            refusals_text = ", ".join(f"{topic}: {describe_reason(code)}" for topic, code in refused.items())
            self._fatal = ConfigError(f"the broker refuses subscriptions ({refusals_text}); check its ACL for this bridge")
            return
        # Only from here on does the broker keep for us what comes.
        self.is_subscribed = True
        log.info("connected", generation=self.connections)

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, flags: mqtt.DisconnectFlags, reason: ReasonCode, _more: Any
    ) -> None:
        self._is_up = self.is_subscribed = False
        if flags.is_disconnect_packet_from_server and reason.value == SESSION_TAKEN_OVER:
            self._fatal = self._taken_over()
        log.warning("disconnected", reason=str(reason), from_broker=flags.is_disconnect_packet_from_server)

    def _hear_instance(self, word: bytes) -> None:
        """A later word than ours is another process that took over; an earlier one is what a killed broker still knew."""
        if word == self._instance:
            return
        if _INSTANCE.fullmatch(word) and word > self._instance:
            self._fatal = self._taken_over()
        else:
            self._publish_instance()

    def _publish(self, answer: Answer) -> None:
        """Answer a device; a refusal is counted, logged and shown in the heartbeat.

        A refused taking back of what the broker keeps is logged alone: a device must not be able to make a bridge look broken.
        """
        info = self._client.publish(answer.topic, answer.body, qos=1, retain=answer.is_retained)
        self._tracker.sent(info.mid, partial(self._note, answer))

    def _note(self, answer: Answer, code: int) -> None:
        self.refusals.judge(answer.topic, code, is_standing=not answer.is_retained)

    def _publish_instance(self) -> None:
        """Say that this process is the bridge. Who may not say so holds another role's certificate, and would hear nothing."""
        info = self._client.publish(self._instance_topic, self._instance, qos=1, retain=True)
        self._tracker.sent(info.mid, self._note_instance)

    def _note_instance(self, code: int) -> None:
        if self.refusals.judge(self._instance_topic, code) and code == NOT_AUTHORIZED:
            self._fatal = ConfigError(
                f"the broker refuses {self._instance_topic}: {describe_reason(code)}; the certificate's name must be the"
                f" bridge.id, {self._config.bridge.id!r}, and have an entry there"
            )

    def _on_publish(self, _client: mqtt.Client, _data: Any, mid: int, reason: ReasonCode, _more: Any) -> None:
        self._tracker.answered(mid, reason.value)

    def _taken_over(self) -> ConfigError:
        return ConfigError(
            f"another bridge with the id {self._config.bridge.id!r} took over the session; give each bridge its own bridge.id"
        )

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        properties = message.properties
        self._arrivals += 1
        if message.topic == self._instance_topic:
            self._hear_instance(bytes(message.payload))
            return
        arrived = BrokerMessage(
            topic=message.topic,
            payload=message.payload,
            content_type=getattr(properties, "ContentType", None),
            properties=tuple(getattr(properties, "UserProperty", ())),
            received_us=self._clock.now_ms() * 1000,
            is_retained=message.retain,
        )
        self._inbox.put(Arrived(arrived, message.mid, message.qos, self.connections))
