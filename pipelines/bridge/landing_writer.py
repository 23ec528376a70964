"""The disk side: takes groups of messages from the inbox, sorts them, makes them durable together, and only then says so.

A device belongs to one of several bridges, by a hash of its id.

What a device sends over its share is not made durable. It is acknowledged to the broker all the same, for what is not would
hold the others' messages up behind it; the device keeps what has no receipt, and is told when to go on.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event

import structlog

from catchment.runtime.clock import Backoff
from pipelines.bridge.landing import Landing
from pipelines.bridge.parts import Assembler, Part, Sweeper
from pipelines.bridge.parts_room import Disk
from pipelines.bridge.rows import KIND_REFUSED, BrokerMessage, LandingRow, Numberer, to_row
from pipelines.bridge.shares import Shares
from pipelines.bridge.subscriber import Answer, Arrived, Done, Inbox
from pipelines.errors import ConfigError
from pipelines.logs import LogLimit
from schemas.errors import IdError, SchemaError
from schemas.ids import DeviceId, Digest
from schemas.parts import read_part_head
from schemas.receipts import ShareNotice, encode_object_state, encode_share_notice
from schemas.reported import MAX_REPORTED_BYTES
from schemas.topics import Address, Kind, Topics

log = structlog.get_logger(__name__)

_IDLE_S = 0.05
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 5.0
# Each large payload that a group touches costs several syncs: more of one device wait for its next question.
_MAX_OBJECTS_IN_GROUP = 16
_NAME_CHARS = 80
# What a row's other columns take, about.
_ROW_BYTES = 256


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


@dataclass(slots=True)
class Counters:
    """Counts of what has been made durable since the start.

    `elsewhere` counts messages that are other bridges' affair, `litter` those that their sender had the broker keep for nothing,
    `parts_left` parts of more large payloads at once than one device may have handled.
    """

    messages: int = 0
    elsewhere: int = 0
    message_bytes: int = 0
    refused: int = 0
    parts: int = 0
    groups: int = 0
    disk_errors: int = 0
    litter: int = 0
    parts_left: int = 0


@dataclass(frozen=True, slots=True)
class Gate:
    """Limits on messages: each device's share, and the room on the disk."""

    shares: Shares
    disk: Disk


@dataclass(slots=True)
class _Sorted:
    """A group, sorted: what is landed, parts by device and object, and what is said at once."""

    rows: list[LandingRow] = field(default_factory=list)
    parts: dict[tuple[DeviceId, Digest], list[Part]] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)
    row_bytes: int = 0


class LandingWriter:
    """Everything that touches the disk, on one thread.

    Args:
        inbox: where groups come from.
        landing: where envelopes and reports go.
        assembler: where parts go.
        sweeper: takes abandoned parts away.
        reader: says what a message is, and whose.
        post: told what is durable.
        linger_s: how long a first message waits for company.
        gate: what is let through; None: all.
    """

    def __init__(
        self,
        inbox: Inbox,
        landing: Landing,
        assembler: Assembler,
        sweeper: Sweeper,
        reader: Reader,
        post: Callable[[Done], None],
        linger_s: float,
        gate: Gate | None = None,
    ) -> None:
        self.counters = Counters()
        self.is_refused = False
        self._inbox = inbox
        self._landing = landing
        self._assembler = assembler
        self._sweeper = sweeper
        self._reader = reader
        self._post = post
        self._linger_s = linger_s
        self._gate = gate
        self._logged = LogLimit()

    def run(self, stop: Event) -> None:
        """Go on until stopped and empty. A disk that refuses is tried again until it takes the group, or until stopped."""
        while True:
            group = self._inbox.take(_IDLE_S, 0 if stop.is_set() else self._linger_s)
            if group:
                self._settle(group, stop)
            elif stop.is_set():
                return
            self._guard(self._look_around, stop)

    def _look_around(self) -> None:
        """Do the work that is due by time."""
        self._landing.seal_if_due()
        answers = [
            Answer(self._reader.topics.objects(device), encode_object_state(state))
            for device, state in self._assembler.finished()
        ]
        if answers:
            self._post(Done([], answers))
        self._sweeper.sweep_if_due(time.monotonic())

    def _settle(self, group: Sequence[Arrived], stop: Event) -> None:
        found = self._sort(group)
        states: list[Answer] = []

        def write() -> None:
            if self._gate is not None:
                self._gate.disk.demand_room(found.row_bytes)
            if found.rows:
                self._landing.append(found.rows)
            states[:] = [self._answer(device, same) for (device, _), same in found.parts.items()]

        if (found.rows or found.parts) and not self._guard(write, stop):
            return  # Stopped while the disk refused: not acknowledged, so the broker keeps the group for the next start.
        self._count(found.rows, found.parts)
        # In this order: an empty inbox tells the network side that nothing more will be posted.
        self._post(Done(group, [*states, *found.answers]))
        self._inbox.release(group)

    def _guard(self, write: Callable[[], object], stop: Event) -> bool:
        """Write, again and again while the disk refuses: the messages wait here, and the broker behind them."""
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_MAX_S)
        has_failed = False
        while True:
            try:
                if has_failed:
                    self._landing.restart()
                write()
            except OSError as error:
                self.counters.disk_errors += 1
                has_failed = self.is_refused = True
                wait_s = backoff.next_s()
                log.error("disk_refused", error=str(error), retry_in_s=wait_s)  # noqa: TRY400
                if stop.wait(wait_s):
                    return False
            else:
                self.is_refused = False
                return True

    def _sort(self, group: Sequence[Arrived]) -> _Sorted:
        found, now_s = _Sorted(), time.monotonic()
        free_bytes = 0 if self._gate is None else self._gate.disk.free_bytes()
        for arrived in group:
            message = arrived.message
            sender = self._reader.sender(message)
            if sender is None:
                self.counters.elsewhere += 1
                continue
            if self._reader.is_litter(message, sender):
                if not message.payload:
                    continue  # a sender, or another bridge, takes back what was kept
                self._take_back(sender, message, found, now_s)
            if self._gate is not None:
                shares, cost_bytes = self._gate.shares, message.size_bytes + _ROW_BYTES
                room_bytes = self._gate.disk.low_room_bytes(free_bytes)
                if not shares.admit(sender.device, sender.stream, cost_bytes, now_s, room_bytes):
                    self._speak(sender, shares.notice(sender.device, now_s), found, now_s)
                    continue
                free_bytes -= cost_bytes
            read = self._reader.read_from(sender, message)
            if isinstance(read, LandingRow):
                found.rows.append(read)
                found.row_bytes += message.size_bytes + _ROW_BYTES
            else:
                self._take_part(read, found)
        return found

    def _take_part(self, part: Part, found: _Sorted) -> None:
        key = (part.device, part.head.digest)
        if key not in found.parts:
            if found.objects[part.device] >= _MAX_OBJECTS_IN_GROUP:
                self.counters.parts_left += 1
                return
            found.objects[part.device] += 1
        found.parts.setdefault(key, []).append(part)

    def _take_back(self, sender: Sender, message: BrokerMessage, found: _Sorted, now_s: float) -> None:
        """Have the broker forget a message that its sender had it keep for nothing."""
        self.counters.litter += 1
        found.answers.append(Answer(message.topic, b"", is_retained=True))
        if self._gate is not None:
            self._speak(sender, self._gate.shares.note_retained(sender.device, message.size_bytes, now_s), found, now_s)

    def _speak(self, sender: Sender, notice: ShareNotice | None, found: _Sorted, now_s: float) -> None:
        """Say to a device, and to the log, what it is over, if it is time to."""
        if notice is None:
            return
        name = sender.device[:_NAME_CHARS]
        if self._logged.due((name, notice.limit), now_s) is not None:
            log.warning("device_over_share", device=name, limit=notice.limit, reason=notice.reason, deferred=notice.deferred)
        try:
            topic = self._reader.topics.share(DeviceId(sender.device))
        except IdError:
            return  # a sender that has no name that could be spoken to hears nothing
        found.answers.append(Answer(topic, encode_share_notice(notice)))

    def _answer(self, device: DeviceId, parts: Sequence[Part]) -> Answer:
        """One answer for all parts of an object in the group: it names everything that is durable."""
        return Answer(self._reader.topics.objects(device), encode_object_state(self._assembler.apply(device, parts)))

    def _count(self, rows: Sequence[LandingRow], parts: dict[tuple[DeviceId, Digest], list[Part]]) -> None:
        counters = self.counters
        counters.groups += 1
        counters.messages += len(rows)
        counters.refused += sum(row.kind == KIND_REFUSED for row in rows)
        counters.parts += sum(len(same) for same in parts.values())
        counters.message_bytes += sum(len(row.payload) for row in rows)
        counters.message_bytes += sum(len(part.payload) for same in parts.values() for part in same)
