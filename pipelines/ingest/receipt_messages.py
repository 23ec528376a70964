"""The messages that a receipt goes out as, and what takes receipts. No IO."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from pipelines.lake.ledger import Ledger
from schemas.ids import DeviceId
from schemas.receipts import MAX_RECEIPT_BYTES, Receipt, encode_receipt, receipt_pages
from schemas.topics import Topics

_PACKET_FRAME_BYTES = 16
"""What MQTT 5 puts around topic and body of a PUBLISH without properties: header, lengths, packet id."""


class ReceiptSink(Protocol):
    """Sees to it that receipts reach the broker, at once or later, each device on its own."""

    @property
    def pending(self) -> int:
        """How many devices wait for a receipt."""
        ...

    @property
    def failing(self) -> Mapping[str, str]:
        """Devices whose receipt cannot be published, and why; each is tried again."""
        ...

    def mark_pending(self, ledger: Ledger, devices: Iterable[str]) -> None:
        """Publish the receipts of these devices as `ledger`, or one after it, has them."""
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
