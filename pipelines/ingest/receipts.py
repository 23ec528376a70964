"""Make receipts: after a commit, each device it touched gets the ranges that are settled, retained, in pages if they are many.

They are retained, so the last one is enough. A book keeps the devices whose receipts may have further pages at the broker:
without it nobody would ever empty them.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec
import paho.mqtt.client as mqtt
import structlog

from catchment.runtime.clock import Clock, SystemClock
from catchment.runtime.mqtt_link import PubackClient, close_connection, make_client, open_connection
from pipelines.config import CoreBrokerConfig
from pipelines.errors import RetryLaterError
from pipelines.ingest.admit import NO_BEYOND, Beyond, BeyondSpan
from pipelines.lake.books import floors_of, refused_of
from pipelines.lake.lake import Lake
from pipelines.lake.layout import receipt_pages_path
from pipelines.lake.ledger import Ledger
from pipelines.refusals import PublishTracker, Refusals, broker_client_context
from schemas.ids import DeviceId
from schemas.ranges import Ranges
from schemas.reason_codes import describe_reason
from schemas.receipts import MAX_RECEIPT_BYTES, Floor, Receipt, RefusedStream, encode_receipt, receipt_pages
from schemas.topics import Topics

_PACKET_FRAME_BYTES = 16
"""What MQTT 5 puts around topic and body of a PUBLISH without properties: header, lengths, packet id."""

PUBACK_TIMEOUT_S = 10.0
IN_FLIGHT = 500

log = structlog.get_logger(__name__)


def with_beyond(receipt: Receipt, spans: Iterable[BeyondSpan]) -> Receipt:
    """The receipt, with these samples as settled, too."""
    settled = {stream: dict(epochs) for stream, epochs in receipt.settled.items()}
    for span in spans:
        epochs = settled.setdefault(span.stream, {})
        known = epochs.get(str(span.epoch), [])
        epochs[str(span.epoch)] = list(Ranges.of([*known, (span.low, span.high)]).spans)
    return msgspec.structs.replace(receipt, settled=settled)


class ReceiptSink(Protocol):
    """Sees to it that receipts reach the broker, at once or later, each device on its own."""

    @property
    def pending(self) -> int:
        """The number of devices that wait for a receipt."""
        ...

    @property
    def failing(self) -> Mapping[str, str]:
        """Devices whose receipt cannot be published, and why; each is tried again."""
        ...

    def mark_pending(self, ledger: Ledger, devices: Iterable[str], beyond: Beyond = NO_BEYOND) -> None:
        """Publish the receipts of these devices as `ledger`, or one after it, has them, and with what is settled beyond it."""
        ...

    def step(self) -> None:
        """Do what can be done without waiting."""
        ...


class Outgoing(NamedTuple):
    """One retained message of a device's receipt."""

    topic: str
    body: bytes


def outgoing(receipt: Receipt, device: str, topics: Topics, max_packet_bytes: int, stale_pages: int) -> list[Outgoing]:
    """The messages that put a receipt in the place of the one before.

    Args:
        receipt: the whole of it.
        device: whose.
        topics: of the namespace.
        max_packet_bytes: how large a packet may be.
        stale_pages: how many further pages of receipts before may be retained; those no longer needed are emptied.

    Raises:
        SchemaError: the device has no proper name, or the limit is too small for any receipt.
    """
    name = DeviceId(device)
    room = max_packet_bytes - len(topics.receipt_page(name, 1_000_000)) - _PACKET_FRAME_BYTES
    pages = receipt_pages(receipt, min(room, MAX_RECEIPT_BYTES))
    messages = [Outgoing(topics.receipt_page(name, number), encode_receipt(page)) for number, page in enumerate(pages)]
    emptied = range(len(pages), stale_pages + 1)
    return messages + [Outgoing(topics.receipt_page(name, number), b"") for number in emptied]


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
    rows = ledger.of(wanted)
    settled: dict[str, dict[str, dict[str, list[tuple[int, int]]]]] = {device: {} for device in wanted}
    for key, ranges in rows.still_requested().ranges().items():
        settled[key.device].setdefault(key.stream, {})[str(key.epoch)] = list(ranges.spans)
    floors: dict[str, dict[str, Floor]] = {device: {} for device in wanted}
    for (device, stream), floor in floors_of(rows.books).items():
        floors[device][stream] = floor
    refused: dict[str, dict[str, RefusedStream]] = {device: {} for device in wanted}
    for (device, stream), one in refused_of(rows.books).items():
        refused[device][stream] = one
    return {device: Receipt(ledger.run, settled[device], floors[device], refused[device]) for device in wanted}


class MqttPublisher:
    """A connection to the broker that is opened when first needed and again after it broke.

    Args:
        broker: where it is.
        client_id: this role's name there.
        clock: for how often refusals are logged.

    Raises:
        ConfigError: a TLS file is missing or not what it should be.
    """

    def __init__(self, broker: CoreBrokerConfig, client_id: str, clock: Clock | None = None) -> None:
        self.refusals = Refusals(Topics(broker.namespace), clock or SystemClock())
        self._broker = broker
        self._client_id = client_id
        self._client: mqtt.Client | None = None
        self._tracker = PublishTracker()
        broker_client_context(broker)  # what is wrong with its files must stop the start, not the first receipt

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
        client = make_client(self._client_id, PubackClient, context=broker_client_context(self._broker))
        # Handlers of a connection that is gone are never called: message numbers begin again.
        self._tracker = tracker = PublishTracker()
        client.on_publish = lambda _c, _d, mid, reason, _p: tracker.answered(mid, client.take_code(mid, reason.value))
        open_connection(client, self._broker.host, self._broker.port, keepalive_s=self._broker.keepalive_s)
        self._client = client
        return client

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            close_connection(client)


def _wait(info: mqtt.MQTTMessageInfo) -> None:
    info.wait_for_publish(PUBACK_TIMEOUT_S)
    if not info.is_published():
        raise TimeoutError("no PUBACK in time")


class PageBook:
    """The number of further pages of each device's receipt; noted before they are published. Used by one thread.

    Args:
        lake: the lake.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._pages: dict[str, int] | None = None

    def pages(self, device: str) -> int:
        """Return the number of further pages that may be retained.

        Raises:
            RetryLaterError: the storage is unavailable.
        """
        if self._pages is None:
            self._pages = self._read()
        return self._pages.get(device, 0)

    def note(self, device: str, pages: int) -> None:
        """Note the number of further pages that may be retained from now on; durable if it differs from the one before.

        Raises:
            RetryLaterError: the storage is unavailable.
            OSError: the disk refused.
        """
        if self.pages(device) == pages:
            return
        assert self._pages is not None, "read a line above"
        after = {**self._pages, device: pages}
        if not pages:
            del after[device]
        path = receipt_pages_path(self._lake.root)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lake.put(path, msgspec.json.encode(after))
        self._pages = after

    def _read(self) -> dict[str, int]:
        path = receipt_pages_path(self._lake.root)
        try:
            return msgspec.json.decode(self._lake.read(path), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            # What is forgotten are pages that stay true: they cost the broker room, and no sample.
            log.warning("receipt_pages_unreadable", path=str(path), error=str(error))
            return {}
