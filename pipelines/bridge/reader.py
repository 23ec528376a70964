"""What a message is to this bridge: a landing row, a part of a large payload, or another bridge's affair. No IO."""

from dataclasses import dataclass

from pipelines.bridge.envelope_rows import Message, Numberer, to_row
from pipelines.bridge.partition import Partition
from pipelines.bridge.parts import Part
from pipelines.bridge.rows import LandingRow
from schemas.errors import SchemaError
from schemas.parts import read_part_head
from schemas.reported import MAX_REPORTED_BYTES
from schemas.topics import Address, Kind, Topics

ALL = Partition()


@dataclass(frozen=True, slots=True)
class Sender:
    """Whose a message is. `device` is a word of the topic, well formed only where there is an `address`."""

    device: str
    address: Address | None
    error: str = ""

    @property
    def stream(self) -> str:
        """Of an envelope; empty for anything else."""
        return "" if self.address is None or self.address.stream is None else str(self.address.stream)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads heads, never bodies.

    Args:
        topics: of this namespace.
        numberer: numbers what devices did not.
        max_body_bytes: longer bodies are refused.
        partition: whose messages are kept.
    """

    topics: Topics
    numberer: Numberer
    max_body_bytes: int
    partition: Partition = ALL

    def sender(self, message: Message) -> Sender | None:
        """Whose a message is, by its topic alone; None for a message that belongs to another bridge."""
        try:
            address = self.topics.parse(message.topic)
        except SchemaError as error:
            if not self.partition.owns(message.topic):
                return None
            return Sender(self.topics.sender_of(message.topic), None, str(error))
        return Sender(str(address.device), address) if self.partition.owns(address.device) else None

    def is_litter(self, message: Message, sender: Sender) -> bool:
        """Whether the broker keeps this message though nobody needs it kept: anything but a readable report."""
        if not message.is_retained:
            return False
        is_report = sender.address is not None and sender.address.kind is Kind.REPORTED
        return not is_report or len(message.payload) > MAX_REPORTED_BYTES

    def read(self, message: Message) -> LandingRow | Part | None:
        """What to make durable; None for a message that belongs to another bridge."""
        sender = self.sender(message)
        return None if sender is None else self.read_from(sender, message)

    def read_from(self, sender: Sender, message: Message) -> LandingRow | Part:
        """What to make durable of a message whose sender is known."""
        address = sender.address
        if address is None:
            return message.refused(sender.error)
        if address.kind is not Kind.PARTS or address.digest is None:
            return to_row(message, address, self.numberer, self.max_body_bytes)
        try:
            head = read_part_head(address.digest, len(message.payload), message.properties)
        except SchemaError as error:
            return message.refused(str(error), address)
        return Part(address.device, head, message.payload)
