"""Sort messages of this bridge: a landing row, a part of a large payload, or a message of another bridge. No IO.

A device belongs to one of several bridges, by a hash of its id.
"""

import hashlib
from dataclasses import dataclass

from pipelines.bridge.parts import Part
from pipelines.bridge.rows import BrokerMessage, LandingRow, Numberer, to_row
from pipelines.errors import ConfigError
from schemas.errors import SchemaError
from schemas.parts import read_part_head
from schemas.reported import MAX_REPORTED_BYTES
from schemas.topics import Address, Kind, Topics


@dataclass(frozen=True, slots=True)
class Partition:
    """One bridge's share of the devices.

    Every bridge hears everything and keeps its share. A shared subscription would send each message only once, but then
    what a bridge that is down has been given waits for it alone, one device's order is torn over several bridges, and the
    parts of one large payload meet in different processes.

    Args:
        index: which share, counted from 0.
        count: into how many shares the devices are split.

    Raises:
        ConfigError: there is no such share.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"bridge.partition {self.index} of bridge.partitions {self.count}: give the bridges 0 to partitions - 1"
            )

    def owns(self, name: str) -> bool:
        """Whether a device is in this share; a topic that names no device stands for itself."""
        if self.count == 1:
            return True
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big") % self.count == self.index


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of a message. `device` is a word of the topic, well formed only where there is an `address`."""

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
    partition: Partition = Partition()

    def sender(self, message: BrokerMessage) -> Sender | None:
        """Return the sender of a message, by its topic alone; None for a message that belongs to another bridge."""
        try:
            address = self.topics.parse(message.topic)
        except SchemaError as error:
            if not self.partition.owns(message.topic):
                return None
            return Sender(self.topics.sender_of(message.topic), None, str(error))
        return Sender(str(address.device), address) if self.partition.owns(address.device) else None

    def is_litter(self, message: BrokerMessage, sender: Sender) -> bool:
        """Whether the broker keeps this message though nobody needs it kept: anything but a readable report."""
        if not message.is_retained:
            return False
        is_report = sender.address is not None and sender.address.kind is Kind.REPORTED
        return not is_report or len(message.payload) > MAX_REPORTED_BYTES

    def read(self, message: BrokerMessage) -> LandingRow | Part | None:
        """Return the row or part to make durable; None for a message that belongs to another bridge."""
        sender = self.sender(message)
        return None if sender is None else self.read_from(sender, message)

    def read_from(self, sender: Sender, message: BrokerMessage) -> LandingRow | Part:
        """Return the row or part to make durable of a message whose sender is known."""
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
