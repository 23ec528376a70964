"""The rollout room's way to the broker: one paho client, with its subscriptions restored after every break."""

import threading
from collections.abc import Callable

import structlog
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from catchment.runtime.clock import Clock, SystemClock
from catchment.runtime.mqtt_link import PubackClient, close_connection, make_client
from pipelines.config import BrokerConfig
from pipelines.errors import ConfigError, RetryLaterError
from pipelines.refusals import PublishTracker, Refusals, broker_client_context, refusal_error, refused_filters
from schemas.reason_codes import describe_reason
from schemas.topics import Topics

_CONNECT_S = 10.0

log = structlog.get_logger(__name__)
Handler = Callable[[MQTTMessage], None]
AnswerHandler = Callable[[int], None]


class BrokerLink:
    """A connection that comes back by itself, and on which no refusal of the broker goes unnoticed.

    Args:
        config: where the broker is.
        client_id: this role's name at the broker.
        filters: what to subscribe to, each time anew.
        unkept: those of them of which retained messages are not wanted; they come marked when they are retained by then.
        handler: called with each message, on the link's own thread; must not raise.
        clock: for how often refusals are logged.

    Raises:
        ConfigError: a TLS file is missing or not what it should be.
    """

    def __init__(
        self,
        config: BrokerConfig,
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
    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    found.MessageExpiryInterval = min(seconds, 2**32 - 1)
    return found


def reply_properties(correlation: bytes, user: list[tuple[str, str]]) -> Properties:
    """The properties of an answer."""
    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    found.CorrelationData = correlation
    found.UserProperty = user
    return found
