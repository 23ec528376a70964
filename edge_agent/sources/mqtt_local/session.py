"""A subscription at a broker next to the agent: messages as they come, acknowledged on request alone."""

import re
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from catchment.runtime.mqtt_link import RefusedByBrokerError, close_connection, connect_properties, make_client, open_connection
from edge_agent.errors import SourceError

_FAILED = 0x80
_SHARED = re.compile(r"^\$share/[^/]+/")


@dataclass(frozen=True, slots=True)
class BrokerAccess:
    """The broker's address, and our credentials.

    Attributes:
        receive_maximum: messages not acknowledged, at most.
        is_trial: no session is kept and nothing needs an acknowledgement: who else listens loses nothing.
    """

    host: str
    port: int
    client_id: str
    username: str
    password: str
    ca: str
    keepalive_s: int
    session_expiry_s: int
    receive_maximum: int
    is_trial: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """One message.

    Attributes:
        id: its packet id; 0 for one that needs no acknowledgement, below 0 for one that the broker gave earlier.
        at_us: when it came, where that was not now.
    """

    id: int
    is_again: bool
    topic: str
    body: bytes
    at_us: int = 0


class Subscription:
    """One connection. It ends with the first failure; a new one goes on with the broker's session.

    Args:
        access: to the broker.
        topics: filters.
        max_message_bytes: announced to the broker, which sends no larger message.

    Raises:
        SourceError: the broker does not answer.
    """

    def __init__(self, access: BrokerAccess, topics: tuple[str, ...], max_message_bytes: int) -> None:
        self._is_trial = access.is_trial
        # A share of a group's messages would be missing to the group.
        self._topics = tuple(_SHARED.sub("", topic) for topic in topics) if access.is_trial else topics
        self._waiting: deque[Received] = deque()
        self._ready = threading.Condition()
        self._failure = ""
        self._client = make_client(access.client_id, Client, manual_ack=True)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        if access.username:
            self._client.username_pw_set(access.username, access.password or None)
        properties = connect_properties(
            session_expiry_s=access.session_expiry_s,
            receive_maximum=access.receive_maximum,
            max_packet_bytes=max_message_bytes,
        )
        try:
            if access.ca:
                self._client.tls_set(access.ca)
            open_connection(
                self._client,
                access.host,
                access.port,
                keepalive_s=access.keepalive_s,
                clean_start=access.is_trial,
                properties=properties,
            )
        except RefusedByBrokerError as error:
            self._fail(f"the broker refuses: {error}; is username and password_file right?")
        except OSError as error:
            raise SourceError(f"broker {access.host} port {access.port} does not answer: {error}; it is tried again") from error

    def take(self, most: int, wait_s: float) -> list[Received]:
        """At most so many messages; waits for the first.

        Raises:
            SourceError: the connection is over, and all that had come was taken.
        """
        with self._ready:
            if not self._waiting and not self._failure:
                self._ready.wait(wait_s)
            if not self._waiting and self._failure:
                raise SourceError(self._failure)
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def acknowledge(self, message: Received) -> None:
        """The message is stored: the broker may forget it. On a dead connection nothing is sent, and it comes again."""
        if message.id > 0 and not self._failure:
            self._client.ack(message.id, 1)

    def close(self) -> None:
        """Leave; the broker keeps the session."""
        close_connection(self._client)

    def _fail(self, reason: str) -> None:
        with self._ready:
            self._failure = self._failure or reason
            self._ready.notify()

    def _on_connect(self, client: Client, _: Any, __: ConnectFlags, reason: ReasonCode, ___: Properties | None) -> None:
        if reason.is_failure:
            self._fail(f"the broker refuses: {reason}; is username and password_file right?")
            return
        # What is retained is a sample once, not again at each connection.
        options = SubscribeOptions(qos=0 if self._is_trial else 1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        try:
            client.subscribe([(topic, options) for topic in self._topics])
        except ValueError as error:
            self._fail(f"cannot subscribe to {', '.join(self._topics)}: {error}")

    def _on_subscribe(self, _: Client, __: Any, ___: int, reasons: list[ReasonCode], ____: Properties | None) -> None:
        refused = [topic for topic, reason in zip(self._topics, reasons, strict=False) if reason.value >= _FAILED]
        if refused:
            self._fail(f"the broker refuses the subscription to {', '.join(refused)}; may this user read there?")

    def _on_disconnect(self, _: Client, __: Any, ___: DisconnectFlags, reason: ReasonCode, ____: Properties | None) -> None:
        self._fail(f"the connection to the local broker is over: {reason}")

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        with self._ready:
            self._waiting.append(Received(message.mid if message.qos else 0, message.dup, message.topic, bytes(message.payload)))
            self._ready.notify()
