"""What a message is to this bridge: a landing row, a part of a large payload, or another bridge's affair. No IO."""

from dataclasses import dataclass

from pipelines.bridge.intake import Message, Numberer, to_row
from pipelines.bridge.partition import Partition
from pipelines.bridge.parts import Part
from pipelines.bridge.rows import LandingRow
from schemas.errors import SchemaError
from schemas.parts import read_part_head
from schemas.topics import Kind, Topics

ALL = Partition()


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

    def read(self, message: Message) -> LandingRow | Part | None:
        """What to make durable; None for a message that belongs to another bridge."""
        try:
            address = self.topics.parse(message.topic)
        except SchemaError as error:
            return message.refused(str(error)) if self.partition.owns(message.topic) else None
        if not self.partition.owns(address.device):
            return None
        if address.kind is not Kind.PARTS or address.digest is None:
            return to_row(message, address, self.numberer, self.max_body_bytes)
        try:
            head = read_part_head(address.digest, len(message.payload), message.properties)
        except SchemaError as error:
            return message.refused(str(error), address)
        return Part(address.device, head, message.payload)
