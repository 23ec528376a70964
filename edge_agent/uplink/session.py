"""The seam to the broker, and its paho adapter: one object per connection, MQTT 5, QoS 1, clean start.

Nothing of a connection outlives it: the spool is the store, so an acknowledgement of an old connection can never be
taken for one of a new.
"""

import errno
import queue
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from catchment.runtime.mqtt_link import (
    MQTT_RECEIVE_MAXIMUM,
    BrokerLimits,
    RefusedByBrokerError,
    UnreachableBrokerError,
    client_context,
    connect_properties,
    make_client,
    open_connection,
)
from edge_agent.config import BrokerConfig
from edge_agent.errors import BrokerUnavailableError
from edge_agent.identity import refuse_password
from edge_agent.uplink.keepalive import KeepaliveClient


# What the broker's answer to a message means for it, and what the end of a connection may mean: over MQTT 5 reason codes.
class PubackAction(Enum):
    """The next step for a message, by the broker's answer to it."""

    TAKEN = auto()  # the broker has it; now a receipt is awaited
    NOT_SENT = auto()  # nobody will get it: send it again after a while, and nothing else meanwhile
    NEVER = auto()  # this very message will be refused again: park it


NO_SUBSCRIBERS = 0x10
_NOT_SENT = frozenset({NO_SUBSCRIBERS, 0x87, 0x97})  # nobody listens, not authorised, over a quota
_NEVER = frozenset({0x90, 0x95, 0x99})  # topic invalid, packet too large, payload format invalid
MAX_TRIES = 8


def puback_action(code: int, tries: int) -> PubackAction:
    """Judge a PUBACK.

    Args:
        code: its MQTT 5 reason code.
        tries: how often this message was sent, this time included.
    """
    if code == 0:
        return PubackAction.TAKEN
    if code in _NEVER or (code not in _NOT_SENT and tries >= MAX_TRIES):
        return PubackAction.NEVER
    return PubackAction.NOT_SENT


# Reasons of a DISCONNECT that have nothing to do with a message: busy, shutting down, keep alive, taken over, moved, by hand, ...
_OTHERWISE = frozenset({0x00, 0x04, 0x89, 0x8B, 0x8D, 0x8E, 0x98, 0x9C, 0x9D, 0x9F, 0xA0})
_UNSPECIFIED = 0x80
_OWN_SIDE = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EBADF, errno.ENOTCONN})


def is_hung_up(code: int, broke_errno: int, *, has_reason: bool) -> bool:
    """Whether the other side ended the connection, perhaps for a message it was sent.

    Args:
        code: of the DISCONNECT; what paho puts in its place where there was none.
        broke_errno: how the socket failed; 0: it was closed.
        has_reason: there was a DISCONNECT from the broker.
    """
    if has_reason:
        return code not in _OTHERWISE
    return code == _UNSPECIFIED and broke_errno not in _OWN_SIDE


# What is under way may take so long to leave before a goodbye.
_GOODBYE_S = 2.0
# How many messages the broker may send us before we acknowledge one.
_RECEIVE_MAXIMUM = 32

Properties = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Acked:
    """The broker answered message `mid` with MQTT 5 reason `code`."""

    mid: int
    code: int


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The broker answered a subscription: each filter with its MQTT 5 reason code."""

    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """A message came down."""

    topic: str
    body: bytes
    properties: tuple[tuple[str, str], ...]
    correlation: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone.

    Attributes:
        reason: as the broker or paho tells it.
        is_by_peer: the other side hung up, and said nothing that explains it otherwise.
    """

    reason: str
    is_by_peer: bool = False


@dataclass(frozen=True, slots=True)
class Woken:
    """Event: the spool changed, so there may be something to send."""


Event = Acked | Subscribed | MessageArrived | Lost | Woken
Events = queue.SimpleQueue[Event]


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish, with all that counts against the broker's packet limit."""

    topic: str
    body: bytes
    properties: tuple[tuple[str, str], ...] = ()
    content_type: str = ""
    response_topic: str = ""
    correlation: bytes = b""
    is_retained: bool = False

    @property
    def packet_bytes(self) -> int:
        """An upper bound of the packet's size (MQTT 5 section 3.3)."""
        named = sum(len(name.encode()) + len(value.encode()) + 5 for name, value in self.properties)
        words = len(self.topic.encode()) + len(self.content_type) + len(self.response_topic) + len(self.correlation)
        # Kind, both lengths, packet id, and what stands before each word: 22 at most.
        return len(self.body) + named + words + 24


class Session(Protocol):
    """One live connection."""

    @property
    def max_packet_bytes(self) -> int:
        """The broker closes the connection on anything larger."""
        ...

    @property
    def receive_maximum(self) -> int:
        """The number of messages that may be unacknowledged."""
        ...

    def publish(self, message: OutgoingMessage) -> int:
        """Send with QoS 1; the returned number comes back in `Acked`.

        Raises:
            BrokerUnavailableError: the connection is gone.
        """
        ...

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for topics with QoS 1; the broker's answer comes as `Subscribed`."""
        ...

    def pace(self, bytes_per_s: int) -> None:
        """Spread what is sent evenly, also within a long message; 0: as fast as it goes."""
        ...

    def close(self) -> None:
        """Say goodbye."""
        ...


class PahoSession:
    """A connection by paho. Its network thread only puts events into a queue.

    Raises:
        BrokerUnavailableError: the broker cannot be reached, does not answer, or refuses.
    """

    def __init__(self, broker: BrokerConfig, client_id: str, events: Events) -> None:
        self._events = events
        self._is_over = threading.Event()
        self._is_gone = threading.Event()
        self._client = self._make_client(broker, client_id)
        self._client.max_inflight_messages_set(MQTT_RECEIVE_MAXIMUM)
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        self._filters: dict[int, tuple[str, ...]] = {}
        self._subscribing = threading.Lock()
        self._client.on_message = self._on_message
        limits = self._connect(broker)
        self.max_packet_bytes, self.receive_maximum = limits.max_packet_bytes, limits.receive_maximum

    def publish(self, message: OutgoingMessage) -> int:
        """Send with QoS 1.

        Raises:
            BrokerUnavailableError: the connection is gone.
        """
        properties = PahoProperties(PacketTypes.PUBLISH)
        if message.properties:
            properties.UserProperty = list(message.properties)
        if message.content_type:
            properties.ContentType = message.content_type
        if message.response_topic:
            properties.ResponseTopic = message.response_topic
        if message.correlation:
            properties.CorrelationData = message.correlation
        sent = self._client.publish(message.topic, message.body, qos=1, retain=message.is_retained, properties=properties)
        if sent.rc != mqtt.MQTT_ERR_SUCCESS or self._is_over.is_set():
            raise BrokerUnavailableError(f"not sent: {mqtt.error_string(sent.rc)}")
        return sent.mid

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for topics with QoS 1; the broker's answer comes as `Subscribed`."""
        with self._subscribing:
            _, mid = self._client.subscribe([(text, SubscribeOptions(qos=1)) for text in filters])
            if mid is not None:
                self._filters[mid] = tuple(filters)

    def pace(self, bytes_per_s: int) -> None:
        """Spread what is sent evenly, also within a long message; 0: as fast as it goes."""
        self._client.pacer.retune(bytes_per_s)

    def close(self) -> None:
        """Say goodbye and end the network thread; a long message under way is cut off, and sent again another time."""
        self._is_over.set()
        if self._client.disconnect() == mqtt.MQTT_ERR_SUCCESS and not self._is_gone.wait(_GOODBYE_S):
            self._client.cut_off()
        self._client.loop_stop()

    @staticmethod
    def _make_client(broker: BrokerConfig, client_id: str) -> KeepaliveClient:
        try:
            context = None if broker.tls is None else tls_context(broker)
        except OSError as error:
            raise BrokerUnavailableError(f"broker {broker.host}:{broker.port} cannot be reached: {error}") from error
        path = broker.path if broker.transport == "websockets" else None
        return make_client(client_id, KeepaliveClient, context=context, websocket_path=path)

    def _connect(self, broker: BrokerConfig) -> BrokerLimits:
        place = f"broker {broker.host}:{broker.port}"
        hello = connect_properties(receive_maximum=_RECEIVE_MAXIMUM)
        try:
            return open_connection(self._client, broker.host, broker.port, keepalive_s=broker.keepalive_s, properties=hello)
        except UnreachableBrokerError as error:
            raise BrokerUnavailableError(f"{place} cannot be reached: {error}") from error
        except RefusedByBrokerError as error:
            self._is_over.set()
            raise BrokerUnavailableError(f"{place} refuses: {error}") from error

    def _on_disconnect(self, _c: mqtt.Client, _u: Any, flags: mqtt.DisconnectFlags, code: ReasonCode, _p: Any) -> None:
        self._is_gone.set()
        if not self._is_over.is_set():
            self._is_over.set()
            has_reason = flags.is_disconnect_packet_from_server
            is_hung = is_hung_up(code.value, self._client.broke_errno, has_reason=has_reason)
            silent = "closed without a reason" if is_hung else str(code)
            self._events.put(Lost(f"DISCONNECT 0x{code.value:02x}, {code}" if has_reason else silent, is_hung))

    def _on_publish(self, _c: mqtt.Client, _u: Any, mid: int, code: ReasonCode, _p: Any) -> None:
        self._events.put(Acked(mid, self._client.take_code(mid, code.value)))

    def _on_subscribe(self, _c: mqtt.Client, _u: Any, mid: int, codes: list[ReasonCode], _p: Any) -> None:
        with self._subscribing:
            filters = self._filters.pop(mid, ())
        self._events.put(Subscribed(tuple((text, code.value) for text, code in zip(filters, codes, strict=False))))

    def _on_message(self, _c: mqtt.Client, _u: Any, message: mqtt.MQTTMessage) -> None:
        properties = message.properties
        named = tuple(getattr(properties, "UserProperty", ()))
        correlation = getattr(properties, "CorrelationData", b"")
        self._events.put(MessageArrived(message.topic, bytes(message.payload), named, correlation))


def tls_context(broker: BrokerConfig) -> ssl.SSLContext:
    """Mutual TLS 1.3 as configured.

    Raises:
        TlsFileError: a file cannot be read, or is not what it should be; an OSError.
        ValueError: no TLS is configured.
    """
    if broker.tls is None:
        raise ValueError("no TLS files are configured")
    return client_context(broker.tls.ca, broker.tls.cert, broker.tls.key, refuse_password)
