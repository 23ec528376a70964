"""Sending one large payload in parts: ask what is there, send what is missing, until the core says it is settled."""

from dataclasses import dataclass, field

import msgspec
import structlog

from edge_agent.spool.records import ObjectRef
from edge_agent.spool.spool import Spool
from edge_agent.uplink.session import OutgoingMessage, Session
from schemas.ids import DeviceId
from schemas.parts import PartHead
from schemas.ranges import Ranges
from schemas.receipts import MAX_WAIT_MS, ObjectState
from schemas.topics import Topics

_MAX_REFUSALS = 5
# Room for topic and properties under the broker's packet limit.
_PACKET_OVERHEAD_BYTES = 1024

# A part that takes longer is cut smaller, one that takes less larger, within what was configured.
_PART_SLOW_S = 4.0
_PART_FAST_S = 1.5
MIN_PART_BYTES = 16 * 1024

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Transfer:
    """The progress of one payload: ranges durable at the core, and parts acknowledged by the broker since. Pure."""

    ref: ObjectRef
    have: Ranges | None = None
    sent: Ranges = field(default_factory=Ranges)
    in_flight: tuple[int, int] | None = None
    refusals: int = 0

    def next_part(self, part_bytes: int) -> tuple[int, int] | None:
        """The next missing bytes `[low, high)`; None when nothing is missing or the core's answer is awaited."""
        if self.have is None or self.in_flight is not None:
            return None
        gaps = self.have.union(self.sent).gaps(self.ref.size_bytes)
        for low, high in gaps:
            return low, min(high, low + part_bytes)
        return None

    def heard(self, state: ObjectState) -> None:
        """The core's answer: what it has is the truth."""
        self.have = Ranges.of(state.have)
        if state.wait_ms is not msgspec.UNSET and state.wait_ms > 0:
            self.sent = Ranges()  # not taken, for want of room: it is sent again from what is there
        elif state.error:
            self.refusals += 1
            self.have, self.sent = Ranges(), Ranges()

    def link_broke(self) -> None:
        """Ask before going on: the part under way may have arrived. What was acknowledged is on its way to the core.

        It stays counted: an answer to an earlier part may still be under way, and would have it sent twice.
        """
        self.have, self.in_flight = None, None

    def ask_again(self) -> None:
        """Trust nothing but the next answer."""
        self.have, self.sent, self.in_flight = None, Ranges(), None


@dataclass(slots=True)
class PartSize:
    """The size of a part: what the link carries in a second or two, so that a link that breaks still gets parts through.

    Args:
        max_bytes: never larger.
    """

    max_bytes: int
    now_bytes: int = 0

    def __post_init__(self) -> None:
        self.now_bytes = self.max_bytes

    def arrived(self, took_s: float) -> None:
        """A part was acknowledged after so long."""
        if took_s > _PART_SLOW_S:
            self._halve()
        elif took_s < _PART_FAST_S:
            self.now_bytes = min(self.max_bytes, self.now_bytes * 2)

    def broke(self) -> None:
        """The link broke under a part."""
        self._halve()

    def refused(self, size_bytes: int) -> bool:
        """The broker refuses a part of this size, and would again; False when none can be smaller."""
        if size_bytes <= MIN_PART_BYTES:
            return False
        self.max_bytes = self.now_bytes = max(MIN_PART_BYTES, size_bytes // 2)
        return True

    def _halve(self) -> None:
        self.now_bytes = max(min(MIN_PART_BYTES, self.max_bytes), self.now_bytes // 2)


class PartSender:
    """Sends the spool's large payloads, one after another. Used by the uplink's thread alone.

    Args:
        spool: holds the payloads.
        topics: of the namespace.
        device: this device.
        part_bytes: how large a part is, unless the broker's packet limit asks for less.
        answer_within_s: ask again when the core says nothing for so long.
    """

    def __init__(self, spool: Spool, topics: Topics, device: DeviceId, part_bytes: int, answer_within_s: float) -> None:
        self._spool = spool
        self._topics = topics
        self._device = device
        self._part_bytes = part_bytes
        self._size = PartSize(part_bytes)
        self._answer_within_s = answer_within_s
        self._transfer: Transfer | None = None
        self._mid: int | None = None
        self._moved_s = 0.0
        self._has_heard = False
        self._wait_s = 0.0  # as the core's last answer said
        self._resume_s = float("-inf")
        self._min_priority = 0
        self.parts_sent = 0

    @property
    def is_busy(self) -> bool:
        """Whether a payload is under way."""
        return self._transfer is not None

    @property
    def is_on_its_way(self) -> bool:
        """Whether a part or a question was sent that the broker has not answered."""
        return self._mid is not None

    def tune(self, min_priority: int) -> None:
        """Begin no payload that is worth less."""
        self._min_priority = min_priority

    def connected(self) -> None:
        """A new connection: what was under way may be lost, so the core is asked."""
        self._mid = None
        self._size.max_bytes = self._part_bytes  # its limit may be another now
        if self._transfer is not None:
            if self._transfer.in_flight is not None:
                self._size.broke()
            self._transfer.link_broke()
            self._moved_s = float("-inf")

    def step(self, session: Session, now_s: float, limit_bytes: int) -> int:
        """Send the next part or query, if it is time; returns how many bytes that was.

        Args:
            session: the connection.
            now_s: monotonic time.
            limit_bytes: the part is no larger.

        Raises:
            BrokerUnavailableError: the connection is gone.
        """
        if self._transfer is None and not self._begin():
            return 0
        transfer = self._transfer
        if transfer is None or self._mid is not None:
            return 0
        if self._has_heard:
            self._has_heard = False
            self._moved_s = now_s
            self._resume_s = now_s + self._wait_s
            self._wait_s = 0.0
        if now_s < self._resume_s:
            return 0
        most_bytes = max(MIN_PART_BYTES, min(self._size.now_bytes, limit_bytes))
        part = transfer.next_part(min(most_bytes, session.max_packet_bytes - _PACKET_OVERHEAD_BYTES))
        if part is not None:
            return self._send(session, transfer, part, now_s)
        if now_s - self._moved_s <= self._answer_within_s:
            return 0
        if transfer.have is not None:
            transfer.ask_again()
        return self._publish(session, transfer, PartHead(transfer.ref.digest, 0, 0, transfer.ref.size_bytes), b"", now_s)

    def acked(self, mid: int, now_s: float, *, is_taken: bool, refusal: str = "") -> bool:
        """Whether a message was ours; a part that was not taken is sent again.

        Args:
            mid: the message.
            now_s: monotonic time.
            is_taken: the broker has it.
            refusal: why the broker would refuse this very message again; what is sent again is smaller, then parked.
        """
        if mid != self._mid:
            return False
        self._mid = None
        if self._transfer is not None and self._transfer.in_flight is not None:
            if is_taken:
                self._transfer.sent = self._transfer.sent.union([self._transfer.in_flight])
                self._size.arrived(now_s - self._moved_s)
            low, high = self._transfer.in_flight
            self._transfer.in_flight = None
            if refusal and not self._size.refused(high - low):
                self._park(self._transfer, refusal)
        return True

    def heard(self, state: ObjectState) -> None:
        """The core said what it has."""
        transfer = self._transfer
        if transfer is None or state.digest != transfer.ref.digest:
            return
        transfer.heard(state)
        self._has_heard = True
        if state.wait_ms is not msgspec.UNSET and state.wait_ms > 0:
            self._wait_s = min(state.wait_ms, MAX_WAIT_MS) / 1000
            reason = state.reason if state.reason is not msgspec.UNSET else state.error
            log.warning("parts_wait_for_room", digest=transfer.ref.digest, reason=reason[:500], wait_s=self._wait_s)
        if state.settled:
            self._spool.object_settled(transfer.ref.digest)
            self._transfer = None
        elif transfer.refusals >= _MAX_REFUSALS:
            self._park(transfer, f"refused {transfer.refusals} times: {state.error}")

    def _park(self, transfer: Transfer, reason: str) -> None:
        log.error("large_payload_parked", digest=transfer.ref.digest, reason=reason)
        self._spool.object_refused(transfer.ref.digest, reason)
        self._transfer = None

    def _begin(self) -> bool:
        waiting = self._spool.waiting_objects(1, self._min_priority)
        if not waiting:
            return False
        self._transfer = Transfer(waiting[0].ref)
        self._moved_s = float("-inf")
        return True

    def _send(self, session: Session, transfer: Transfer, part: tuple[int, int], now_s: float) -> int:
        low, high = part
        try:
            body = self._spool.read_object(transfer.ref.digest, low, high - low)
        except OSError as error:
            log.error("large_payload_unreadable", digest=transfer.ref.digest, error=str(error))  # noqa: TRY400
            self._spool.object_refused(transfer.ref.digest, f"cannot be read: {error}")
            self._transfer = None
            return 0
        if len(body) != high - low:
            log.warning("large_payload_truncated", digest=transfer.ref.digest)
            self._transfer = None
            return 0
        head = PartHead(transfer.ref.digest, low, len(body), transfer.ref.size_bytes)
        size_bytes = self._publish(session, transfer, head, body, now_s)
        transfer.in_flight = (low, low + len(body))
        self.parts_sent += 1
        return size_bytes

    def _publish(self, session: Session, transfer: Transfer, head: PartHead, body: bytes, now_s: float) -> int:
        message = OutgoingMessage(self._topics.parts(self._device, transfer.ref.digest), body, tuple(head.to_properties()))
        self._mid = session.publish(message)
        self._moved_s = now_s
        return message.packet_bytes
