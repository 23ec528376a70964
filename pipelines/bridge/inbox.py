"""Queue the messages that are not durable yet, bounded by bytes, between the network thread and the disk thread."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.bridge.rows import BrokerMessage

_OVERHEAD_BYTES = 2_048  # What Python's objects around one message weigh, so that tiny messages are bounded as well.


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message and how to acknowledge it: `mid` means something only in the connection that `generation` counts."""

    message: BrokerMessage
    mid: int
    qos: int
    generation: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Something to publish: to a device, or an empty body that takes back what the broker keeps under a topic."""

    topic: str
    body: bytes
    is_retained: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """Messages that are durable, in the order in which they came, and what to answer."""

    arrived: Sequence[Arrived]
    answers: Sequence[Answer]


class Inbox:
    """Holds messages from their arrival until they are durable. `put` never blocks: the network thread asks `is_full` first.

    A broker sends more than the Receive Maximum after partial acks, so the bound on memory must be our own.

    Args:
        max_bytes: `is_full` from here on.
        group_bytes: a group is taken without lingering once this much waits, and holds about this much at the most.
    """

    def __init__(self, max_bytes: int, group_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._group_bytes = group_bytes
        self._waiting: deque[Arrived] = deque()
        self._waiting_bytes = 0
        self._held_bytes = 0
        self._changed = threading.Condition()

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read for now."""
        return self._held_bytes >= self._max_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes that arrived and are not durable."""
        return self._held_bytes

    def put(self, arrived: Arrived) -> None:
        """Add a message."""
        size = _size(arrived)
        with self._changed:
            self._waiting.append(arrived)
            self._waiting_bytes += size
            self._held_bytes += size
            if len(self._waiting) == 1 or self._waiting_bytes >= self._group_bytes:
                self._changed.notify()

    def take(self, wait_s: float, linger_s: float) -> list[Arrived]:
        """The next group: waits for a first message, then lingers for company unless a full group waits already."""
        with self._changed:
            if not self._waiting and not self._changed.wait_for(lambda: bool(self._waiting), wait_s):
                return []
            self._changed.wait_for(lambda: self._waiting_bytes >= self._group_bytes, linger_s)
            group: list[Arrived] = []
            taken = 0
            while self._waiting and (not group or taken < self._group_bytes):
                arrived = self._waiting.popleft()
                taken += _size(arrived)
                group.append(arrived)
            self._waiting_bytes -= taken
            return group

    def release(self, group: Sequence[Arrived]) -> None:
        """Forget a group that is durable."""
        with self._changed:
            self._held_bytes -= sum(_size(arrived) for arrived in group)


def _size(arrived: Arrived) -> int:
    return arrived.message.size_bytes + _OVERHEAD_BYTES
