"""Receipts: after a commit, each device that it touched is told what is settled. Retained, so the last one is enough."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.enums import CallbackAPIVersion

from pipelines.clock import Clock, SystemClock
from pipelines.config import BrokerConfig
from pipelines.errors import RetryLaterError
from pipelines.lake.ledger import Ledger
from pipelines.refusals import PublishTracker, Refusals, broker_tls
from schemas.ids import DeviceId
from schemas.reason_codes import describe_reason
from schemas.receipts import Receipt, encode_receipt
from schemas.topics import Topics

PUBACK_TIMEOUT_S = 10.0
IN_FLIGHT = 500
AT_ONCE = 5_000

log = structlog.get_logger(__name__)


class Publisher(Protocol):
    """Gives messages to the broker for keeping."""

    def publish(self, messages: Mapping[str, bytes]) -> None:
        """Publish retained messages by topic and return when the broker has them all.

        Raises:
            RetryLaterError: the broker is away; some may have been taken.
        """
        ...


def receipts_of(ledger: Ledger, devices: Iterable[str]) -> dict[str, Receipt]:
    """The receipts of some devices after `ledger.run`: every epoch that its device has not forgotten."""
    wanted = set(devices)
    settled: dict[str, dict[str, dict[str, list[tuple[int, int]]]]] = {device: {} for device in wanted}
    for key, ranges in ledger.of(wanted).asked().ranges().items():
        settled[key.device].setdefault(key.stream, {})[str(key.epoch)] = list(ranges.spans)
    return {device: Receipt(ledger.run, found) for device, found in settled.items()}


class Desk:
    """Remembers which devices are owed a receipt, and pays when the broker is there.

    A broker that is away never holds a commit up: the debt stays, and the next call tries again.
    """

    def __init__(self, publisher: Publisher, topics: Topics) -> None:
        self._publisher = publisher
        self._topics = topics
        self._owed: set[str] = set()

    @property
    def owed(self) -> frozenset[str]:
        """The devices that wait for a receipt."""
        return frozenset(self._owed)

    def owe(self, devices: Iterable[str]) -> None:
        """These devices' receipts have changed."""
        self._owed.update(devices)

    def pay(self, ledger: Ledger) -> bool:
        """Publish what is owed; whether nothing is owed any more."""
        if not self._owed:
            return True
        owed = sorted(self._owed)
        try:
            # At the loop's start all devices are owed one: the receipts of a hundred thousand need not be in memory at once.
            for start in range(0, len(owed), AT_ONCE):
                self._pay(ledger, owed[start : start + AT_ONCE])
        except RetryLaterError as error:
            log.warning("receipts_wait", devices=len(self._owed), reason=str(error))
            return False
        return True

    def _pay(self, ledger: Ledger, devices: list[str]) -> None:
        receipts = receipts_of(ledger, devices)
        self._publisher.publish({self._topics.receipts(DeviceId(device)): encode_receipt(receipts[device]) for device in devices})
        self._owed.difference_update(devices)


class MqttPublisher:
    """A connection to the broker that is opened when first needed and again after it broke.

    Args:
        broker: where it is.
        client_id: this role's name there.
        clock: for how often refusals are logged.

    Raises:
        ConfigError: a TLS file is missing or not what it should be.
    """

    def __init__(self, broker: BrokerConfig, client_id: str, clock: Clock | None = None) -> None:
        self.refusals = Refusals(Topics(broker.namespace), clock or SystemClock())
        self._broker = broker
        self._client_id = client_id
        self._client: mqtt.Client | None = None
        self._tracker = PublishTracker()
        broker_tls(broker)  # what is wrong with its files must stop the start, not the first receipt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def publish(self, messages: Mapping[str, bytes]) -> None:
        """Publish retained messages, QoS 1, and wait for every PUBACK.

        Raises:
            RetryLaterError: the broker is away or refuses.
        """
        try:
            client = self._connected()
            items = list(messages.items())
            for start in range(0, len(items), IN_FLIGHT):
                self._publish(client, items[start : start + IN_FLIGHT])
        except (OSError, ValueError, RuntimeError) as error:
            self._close()
            raise RetryLaterError(f"broker {self._broker.host}:{self._broker.port}: {error}") from error

    def _publish(self, client: mqtt.Client, items: Sequence[tuple[str, bytes]]) -> None:
        codes: dict[str, int] = {}
        pending = []
        for topic, body in items:
            info = client.publish(topic, body, qos=1, retain=True)
            self._tracker.sent(info.mid, partial(codes.__setitem__, topic))
            pending.append(info)
        for info in pending:
            _wait(info)
        refused = [topic for topic in codes if self.refusals.judge(topic, codes[topic])]
        if refused:
            reason = describe_reason(codes[refused[0]])
            raise RetryLaterError(f"the broker refuses {len(refused)} of {len(items)} messages, as {refused[0]}: {reason}")

    def _connected(self) -> mqtt.Client:
        if self._client is not None and self._client.is_connected():
            return self._client
        self._close()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=mqtt.MQTTv5)
        # Handlers of a connection that is gone are never called: message numbers begin again.
        self._tracker = tracker = PublishTracker()
        client.on_publish = lambda _c, _d, mid, reason, _p: tracker.answered(mid, reason.value)
        context = broker_tls(self._broker)
        if context is not None:
            client.tls_set_context(context)
        client.connect(self._broker.host, self._broker.port, self._broker.keepalive_s)
        client.loop_start()
        self._client = client
        return client

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()


def _wait(info: mqtt.MQTTMessageInfo) -> None:
    info.wait_for_publish(PUBACK_TIMEOUT_S)
    if not info.is_published():
        raise TimeoutError("no PUBACK in time")
