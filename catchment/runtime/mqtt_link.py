"""Connect to the broker, the same way for every role: TLS context, client, and the broker's answer with a deadline and a cause.

MQTT 5 and, where TLS is used, mutual TLS 1.3 at least. How a role comes back after a break stays with the role: agent and
receipts make a new client each time, so that nothing of a broken connection is sent again unseen; the bridge keeps its session
and drives the socket itself; the model server lets paho connect again.
"""

import queue
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

Password = Callable[[], str]

# In a PUBACK: where its reason code stands, which ones MQTT 5 lists, and the one of these that says nothing more.
_CODE_AT = 2
_LISTED = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})
_UNSPECIFIED = 0x80

CONNECT_WITHIN_S = 10.0
# What a broker that announces no limit is trusted with: MQTT's own.
MQTT_MAX_PACKET_BYTES = 268_435_455
MQTT_RECEIVE_MAXIMUM = 65_535
_C = TypeVar("_C", bound=mqtt.Client)


class TlsFileError(OSError):
    """A file of the TLS configuration cannot be used; the message names its key, the file and what to do."""


def client_context(ca: Path | str, cert: Path | str, key: Path | str, password: Password | None = None) -> ssl.SSLContext:
    """The context of a client that shows a certificate and judges the server's by one authority.

    Args:
        ca: the broker's authority, PEM.
        cert: this client's certificate with its chain, PEM.
        key: its private key, PEM.
        password: gives the key's password; None: an encrypted key is refused, because nobody is there to type one.

    Raises:
        TlsFileError: one of the files cannot be read, is not what it should be, or certificate and key do not belong together.
    """
    for name, file in (("ca", ca), ("cert", cert), ("key", key)):
        _check_readable(name, file)
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (ssl.SSLError, OSError) as error:
        raise TlsFileError(f"tls.ca {ca}: not a certificate in PEM ({_reason(error)}); give the broker's authority") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # From Python 3.13 on, an authority that says too little of itself (no key usage) is refused, which 3.11 takes: a new
    # release of the system must not cut devices off. Chain, name, dates and purpose are judged all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def refuse() -> str:
        # Without it OpenSSL would ask the terminal, and a service would wait for an answer.
        raise TlsFileError(f"tls.key {key}: is encrypted; write it in clear, mode 0600: openssl pkey -in KEY -out PLAIN")

    try:
        context.load_cert_chain(str(cert), str(key), password or refuse)
    except ssl.SSLError as error:
        raise TlsFileError(
            f"tls.cert {cert} and tls.key {key}: {_reason(error)}; give a certificate and its own key, both in PEM"
        ) from error
    return context


def _check_readable(name: str, file: Path | str) -> None:
    try:
        with Path(file).open("rb"):
            return
    except OSError as error:
        raise TlsFileError(f"tls.{name} {file}: {error.strerror}; correct the path, or who may read it") from error


def _reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)).replace("_", " ").lower()


class PubackClient(mqtt.Client):
    """Keeps the connection when a message is refused with an unlisted code, and tells that code.

    Mosquitto answers a message above its `message_size_limit` with 0x95, which MQTT 5 gives to other packets alone. Paho would
    break the connection, and the same message would break the next one, permanently.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unlisted: dict[int, int] = {}

    def take_code(self, mid: int, listed: int) -> int:
        """The reason code the broker answered a message with, where paho tells a listed one."""
        return self._unlisted.pop(mid, listed)

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        body = self._in_packet["packet"]
        if cmd == "PUBACK" and len(body) > _CODE_AT and body[_CODE_AT] not in _LISTED:
            self._unlisted[int.from_bytes(body[:_CODE_AT])] = body[_CODE_AT]
            body = bytearray(body)
            body[_CODE_AT] = _UNSPECIFIED
            self._in_packet["packet"] = body
        return super()._handle_pubackcomp(cmd)


class UnreachableBrokerError(OSError):
    """The broker cannot be reached."""


class RefusedByBrokerError(OSError):
    """The broker refuses the connection, ends it while it is made, or does not answer in time; the message is the cause."""


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """The limits that the broker announced.

    Attributes:
        max_packet_bytes: it closes the connection on anything larger.
        receive_maximum: how many messages may be unacknowledged.
    """

    max_packet_bytes: int = MQTT_MAX_PACKET_BYTES
    receive_maximum: int = MQTT_RECEIVE_MAXIMUM


def make_client(
    client_id: str,
    kind: type[_C],
    *,
    context: ssl.SSLContext | None = None,
    websocket_path: str | None = None,
    manual_ack: bool = False,
    reconnects: bool = False,
) -> _C:
    """A client that is not connected yet.

    Args:
        client_id: this role's name at the broker.
        kind: `PubackClient`, or a class on top of it.
        context: TLS; None: none.
        websocket_path: path of the WebSocket; None: plain TCP.
        manual_ack: whether messages are acknowledged by `ack` alone.
        reconnects: whether paho's own loop connects again after a break.
    """
    client = kind(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=mqtt.MQTTv5,
        transport="tcp" if websocket_path is None else "websockets",
        manual_ack=manual_ack,
        reconnect_on_failure=reconnects,
    )
    if websocket_path is not None:
        client.ws_set_options(path=websocket_path)
    if context is not None:
        client.tls_set_context(context)
    return client


def connect_properties(
    *, session_expiry_s: int | None = None, receive_maximum: int | None = None, max_packet_bytes: int | None = None
) -> Properties:
    """The properties of a CONNECT; None: the protocol's default."""
    properties = Properties(PacketTypes.CONNECT)
    if session_expiry_s is not None:
        properties.SessionExpiryInterval = session_expiry_s
    if receive_maximum is not None:
        properties.ReceiveMaximum = receive_maximum
    if max_packet_bytes is not None:
        properties.MaximumPacketSize = max_packet_bytes
    return properties


def open_connection(
    client: mqtt.Client,
    host: str,
    port: int,
    *,
    keepalive_s: int = 30,
    clean_start: bool = True,
    properties: Properties | None = None,
    within_s: float = CONNECT_WITHIN_S,
) -> BrokerLimits:
    """Connect, start the network thread, and wait until the broker has taken the connection.

    The client's own `on_connect` and `on_disconnect` are called as well, on the network thread. After an error the network
    thread has ended.

    Args:
        client: made by `make_client`, not connected.
        host: the broker's.
        port: the broker's.
        keepalive_s: of the connection.
        clean_start: whether the broker drops the session that it may have.
        properties: of the CONNECT.
        within_s: how long the broker may take to answer.

    Raises:
        UnreachableBrokerError: the broker cannot be reached, or its address cannot be.
        RefusedByBrokerError: the broker refuses, hangs up, or does not answer in time.
    """
    answers = _Answers(client)
    try:
        client.connect(host, port, keepalive_s, clean_start=clean_start, properties=properties)
    except (OSError, ValueError) as error:
        raise UnreachableBrokerError(str(error)) from error
    client.loop_start()
    try:
        refusal = answers.first.get(timeout=within_s)
    except queue.Empty:
        refusal = f"no answer within {within_s:g} s"
    if refusal:
        client.on_disconnect = None  # what ends here was never begun
        close_connection(client)
        raise RefusedByBrokerError(refusal)
    return answers.limits


def close_connection(client: mqtt.Client) -> None:
    """Say goodbye, and wait until the network thread has ended. Also after a break, and more than once."""
    client.disconnect()
    client.loop_stop()


class _Answers:
    """Listens to the first answer of the broker, in front of the client's own callbacks."""

    def __init__(self, client: mqtt.Client) -> None:
        self.first: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.limits = BrokerLimits()
        self._on_connect: Any = client.on_connect
        self._on_disconnect: Any = client.on_disconnect
        client.on_connect = self._connected
        client.on_connect_fail = lambda *_: self.first.put("the connection broke while it was made")
        client.on_disconnect = self._disconnected

    def _connected(self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Properties | None) -> None:
        self.limits = BrokerLimits(
            getattr(properties, "MaximumPacketSize", MQTT_MAX_PACKET_BYTES),
            getattr(properties, "ReceiveMaximum", MQTT_RECEIVE_MAXIMUM),
        )
        if self._on_connect is not None:
            self._on_connect(client, data, flags, reason, properties)
        self.first.put(str(reason) if reason.is_failure else "")

    def _disconnected(
        self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self.first.put(str(reason))
        if self._on_disconnect is not None:
            self._on_disconnect(client, data, flags, reason, properties)
