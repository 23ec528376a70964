"""The rollout room's way to the broker: one client, its subscriptions restored after every break, and whether it may serve.

A broker's access rules may grant a subscription and then deliver nothing of it (Mosquitto does). Every client may ask for
pieces in its own name, so the model server asks in the name of its own certificate, and must hear itself.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from catchment.runtime.clock import Clock, SystemClock
from catchment.runtime.mqtt_link import PubackClient, close_connection, make_client
from pipelines.config import CoreBrokerConfig
from pipelines.errors import ConfigError, RetryLaterError
from pipelines.refusals import PublishTracker, Refusals, broker_client_context, refusal_error, refused_filters
from schemas.errors import IdError
from schemas.ids import DeviceId
from schemas.reason_codes import describe_reason
from schemas.rollout import PieceRequest, encode_piece_request
from schemas.topics import Topics

log = structlog.get_logger(__name__)

_CONNECT_S = 10.0

Handler = Callable[[MQTTMessage], None]
AnswerHandler = Callable[[int], None]
_WITHIN_S = 10.0
_REQUEST = encode_piece_request(PieceRequest("metadata/timestamp.json", 0, 1))


class BrokerLink:
    """A connection that comes back by itself, and on which no refusal of the broker goes unnoticed.

    Args:
        config: where the broker is.
        client_id: this role's name at the broker.
        filters: what to subscribe to, each time again.
        unkept: those of them of which retained messages are not wanted; they come marked when they are retained by then.
        handler: called with each message, on the link's own thread; must not raise.
        clock: for how often refusals are logged.

    Raises:
        ConfigError: a TLS file is missing or not what it should be.
    """

    def __init__(
        self,
        config: CoreBrokerConfig,
        client_id: str,
        filters: tuple[str, ...],
        handler: Handler,
        clock: Clock | None = None,
        unkept: tuple[str, ...] = (),
    ) -> None:
        self.refusals = Refusals(Topics(config.namespace), clock or SystemClock())
        self._config = config
        self._filters = filters
        self._unkept = unkept
        self._handler = handler
        self._tracker = PublishTracker()
        self._refused_filters: dict[str, int] = {}
        self._connack = ""
        self.connections = 0
        self._ready = threading.Event()
        self._client = make_client(client_id, PubackClient, context=broker_client_context(config), reconnects=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 30)

    @property
    def is_ready(self) -> bool:
        """Whether it is connected and its subscriptions stand."""
        return self._ready.is_set()

    def open(self, timeout_s: float = _CONNECT_S) -> None:
        """Connect and wait until the subscriptions stand.

        Raises:
            RetryLaterError: the broker cannot be reached within the time-out.
            ConfigError: it refuses a subscription.
        """
        place = f"broker {self._config.host}:{self._config.port}"
        try:
            self._client.connect_async(self._config.host, self._config.port, self._config.keepalive_s)
            self._client.loop_start()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{place}: {error}") from error
        if not self._ready.wait(timeout_s):
            self.close()
            reason = f"refuses the connection ({self._connack})" if self._connack else f"does not answer within {timeout_s:g} s"
            raise RetryLaterError(f"{place} {reason}; is it running, and does it know this role's certificate?")
        if self._refused_filters:
            self.close()
            raise refusal_error(*next(iter(self._refused_filters.items())))

    def publish(
        self,
        topic: str,
        body: bytes,
        *,
        retain: bool = False,
        properties: Properties | None = None,
        on_answer: AnswerHandler | None = None,
    ) -> MQTTMessageInfo:
        """Hand a message to the broker, at least once; a refusal is counted and logged.

        Args:
            topic: where to.
            body: the message.
            retain: whether the broker keeps it.
            properties: of MQTT 5.
            on_answer: called with the reason code of the broker's answer, on the link's or the caller's thread.
        """
        info = self._client.publish(topic, body, qos=1, retain=retain, properties=properties)

        def note(code: int) -> None:
            self.refusals.judge(topic, code)
            if on_answer is not None:
                on_answer(code)

        self._tracker.sent(info.mid, note)
        return info

    def probe(self, topic: str, body: bytes, properties: Properties, *, retain: bool = False) -> None:
        """Publish a message whose refusal means nothing."""
        info = self._client.publish(topic, body, qos=1, retain=retain, properties=properties)
        self._tracker.sent(info.mid, lambda _code: None)

    def wait_published(self, infos: list[MQTTMessageInfo], timeout_s: float) -> None:
        """Wait until the broker has answered them all; the handlers have been called by then.

        Raises:
            RetryLaterError: it has not in time.
        """
        for info in infos:
            info.wait_for_publish(timeout_s)
            if not info.is_published():
                raise RetryLaterError(f"the broker did not acknowledge within {timeout_s:g} s; do it again")

    def close(self) -> None:
        """Leave."""
        close_connection(self._client)

    def _on_connect(
        self, client: Client, userdata: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del userdata, flags, properties
        if reason.is_failure:
            self._connack = str(reason)
            log.warning("broker_refused_connection", reason=str(reason))
            return
        self.connections += 1
        if self._filters:
            plain = SubscribeOptions(qos=1)
            never = SubscribeOptions(
                qos=1, noLocal=False, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
            )
            client.subscribe([(text, never if text in self._unkept else plain) for text in self._filters])
        else:
            self._ready.set()

    def _on_subscribe(
        self, client: Client, userdata: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        del client, userdata, mid, properties
        codes = [reason.value for reason in reasons]
        for text, code in zip(self._filters, codes, strict=False):
            self.refusals.judge(text, code)
        self._refused_filters = refused_filters(self._filters, codes)
        for text, code in self._refused_filters.items():
            log.error("broker_refused_subscription", filter=text, reason=describe_reason(code))
        self._ready.set()

    def _on_publish(self, client: Client, userdata: object, mid: int, reason: ReasonCode, properties: Properties | None) -> None:
        del client, userdata, properties
        self._tracker.answered(mid, self._client.take_code(mid, reason.value))

    def _on_disconnect(self, client: Client, userdata: object, flags: object, reason: ReasonCode, properties: object) -> None:
        del client, userdata, flags, properties
        self._ready.clear()
        log.info("broker_connection_ended", reason=str(reason))

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        del client, userdata
        self._handler(message)


def expiring(seconds: int | None) -> Properties | None:
    """The properties of a message that the broker drops after so long; None: it keeps it."""
    if seconds is None:
        return None
    found = Properties(PacketTypes.PUBLISH)
    found.MessageExpiryInterval = min(seconds, 2**32 - 1)
    return found


def reply_properties(correlation: bytes, user: list[tuple[str, str]]) -> Properties:
    """The properties of an answer."""
    found = Properties(PacketTypes.PUBLISH)
    found.CorrelationData = correlation
    found.UserProperty = user
    return found


class RightsProbe:
    """Sends a request to itself after each connection.

    Args:
        broker: whose certificate names this role.
        topics: of the namespace.
        link: the model server's connection.
        clock: for how long to wait.
    """

    def __init__(self, broker: CoreBrokerConfig, topics: Topics, link: BrokerLink, clock: Clock) -> None:
        self._role = _common_name(broker)
        self._topics = topics
        self._link = link
        self._clock = clock
        self._mark = b"probe-" + os.urandom(8).hex().encode()
        self._probed_connection = 0
        self._sent_s = 0.0
        self._is_heard = True
        self._is_logged = False

    @property
    def trouble(self) -> str:
        """Why no device can be served; empty if nothing says so."""
        if self._is_heard or self._clock.monotonic_s() - self._sent_s < _WITHIN_S:
            return ""
        return (
            f"the broker delivers no requests of devices to the role {str(self._role)!r}: give the model server a certificate"
            " named `models`, or let this role read models/get/+ (deploy/broker/acl)"
        )

    def step(self) -> None:
        """Send a request after a new connection, and log one that did not come back."""
        if self._role is None or not self._link.is_ready:
            return
        if self._probed_connection != self._link.connections:
            self._probed_connection = self._link.connections
            self._is_heard, self._is_logged, self._sent_s = False, False, self._clock.monotonic_s()
            self._link.probe(self._topics.model_get(self._role), _REQUEST, reply_properties(self._mark, []))
        elif self.trouble and not self._is_logged:
            self._is_logged = True
            log.error("piece_requests_not_delivered", reason=self.trouble)

    def is_ours(self, device: DeviceId, correlation: bytes) -> bool:
        """Whether a request is the one this process sent to itself."""
        if device != self._role or correlation != self._mark:
            return False
        self._is_heard = True
        return True


def _common_name(broker: CoreBrokerConfig) -> DeviceId | None:
    """The name the broker knows this role by; None where it cannot be known."""
    if broker.tls is None:
        return None
    from cryptography import x509  # noqa: PLC0415  # with TLS only
    from cryptography.x509.oid import NameOID  # noqa: PLC0415  # likewise

    try:
        subject = x509.load_pem_x509_certificate(Path(broker.tls.cert).read_bytes()).subject
        return DeviceId(str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
    except (OSError, ValueError, IndexError, IdError) as error:
        log.warning("certificate_name_unknown", path=broker.tls.cert, error=str(error))
        return None
