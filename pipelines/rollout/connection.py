"""The rollout room's way to the broker: one paho client, with its subscriptions restored after every break."""

import threading
from collections.abc import Callable

import structlog
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from catchment.runtime.tls import TlsFileError, client_context
from pipelines.config import BrokerConfig
from pipelines.errors import ConfigError, RetryLaterError

_CONNECT_S = 10.0

log = structlog.get_logger(__name__)
Handler = Callable[[MQTTMessage], None]


class BrokerLink:
    """A connection that comes back by itself.

    Args:
        config: where the broker is.
        client_id: this role's name at the broker.
        filters: what to subscribe to, each time anew.
        handler: called with each message, on the link's own thread; must not raise.
    """

    def __init__(self, config: BrokerConfig, client_id: str, filters: tuple[str, ...], handler: Handler) -> None:
        self._config = config
        self._filters = filters
        self._handler = handler
        self._ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 30)
        if config.tls is not None:
            try:
                self._client.tls_set_context(client_context(config.tls.ca, config.tls.cert, config.tls.key))
            except TlsFileError as error:
                raise ConfigError(f"broker.{error}") from error

    def open(self, timeout_s: float = _CONNECT_S) -> None:
        """Connect and wait until the subscriptions stand.

        Raises:
            RetryLaterError: the broker cannot be reached within the time-out.
        """
        try:
            self._client.connect_async(self._config.host, self._config.port, self._config.keepalive_s)
            self._client.loop_start()
        except (OSError, ValueError) as error:
            raise ConfigError(f"broker {self._config.host}:{self._config.port}: {error}") from error
        if not self._ready.wait(timeout_s):
            self.close()
            raise RetryLaterError(
                f"broker {self._config.host}:{self._config.port} does not answer within {timeout_s:g} s; is it running?"
            )

    def publish(self, topic: str, body: bytes, *, retain: bool = False, properties: Properties | None = None) -> MQTTMessageInfo:
        """Hand a message to the broker, at least once."""
        return self._client.publish(topic, body, qos=1, retain=retain, properties=properties)

    def wait_published(self, infos: list[MQTTMessageInfo], timeout_s: float) -> None:
        """Wait until the broker has acknowledged them all.

        Raises:
            RetryLaterError: it has not in time.
        """
        for info in infos:
            info.wait_for_publish(timeout_s)
            if not info.is_published():
                raise RetryLaterError(f"the broker did not acknowledge within {timeout_s:g} s; do it again")

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self, client: Client, userdata: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del userdata, flags, properties
        if reason.is_failure:
            log.warning("broker refuses the connection", reason=str(reason))
            return
        if self._filters:
            client.subscribe([(text, SubscribeOptions(qos=1)) for text in self._filters])
        else:
            self._ready.set()

    def _on_subscribe(
        self, client: Client, userdata: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        del client, userdata, mid, properties
        refused = [text for text, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused:
            log.error("broker refuses subscriptions; correct its access rules", filters=refused)
        self._ready.set()

    def _on_disconnect(self, client: Client, userdata: object, flags: object, reason: ReasonCode, properties: object) -> None:
        del client, userdata, flags, properties
        self._ready.clear()
        log.info("broker connection ended", reason=str(reason))

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        del client, userdata
        self._handler(message)


def reply_properties(correlation: bytes, user: list[tuple[str, str]]) -> Properties:
    """The properties of an answer."""
    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    found.CorrelationData = correlation
    found.UserProperty = user
    return found
