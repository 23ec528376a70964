"""Keep the receipts that are still to be published, and act on a broker's answers per device. No device waits for another.

Every device is on its own: its receipt is made and size-checked alone, sent page after page, and a refusal is that device's
failure, tried again after a pause of its own. A connection that ends tells nothing of which message it ended for: those under way
are suspects then, and go alone, in turns with all others, until one of them is taken or found to be the cause.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import NamedTuple, Protocol

import structlog

from catchment.runtime.clock import Clock, doubled_s
from pipelines.errors import PipelineError, RetryLaterError
from pipelines.ingest.admit import NO_BEYOND, Beyond, BeyondSpan
from pipelines.ingest.receipts import Outgoing, PageBook, outgoing, receipts_of, with_beyond
from pipelines.lake.ledger import Ledger
from schemas.errors import SchemaError
from schemas.receipts import MIN_PAGE_BYTES, Receipt
from schemas.topics import Topics

WINDOW = 100
MAX_BEYOND_SPANS = 1_000
"""So many spans of streams too many are kept for a device's receipts, the newest; a device that missed one sends it again."""
ANSWER_WITHIN_S = 30.0
ANSWER_ALONE_WITHIN_S = 5.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
FAILURE_FROM = 0x80
NOT_SENT = -1
PACKET_TOO_LARGE = 0x95
SMALLEST_PACKET_BYTES = 2 * MIN_PAGE_BYTES

log = structlog.get_logger(__name__)


class LinkLimits(NamedTuple):
    """The limits that the broker announced: the largest packet, and the number of unanswered ones."""

    max_packet_bytes: int
    receive_maximum: int


class ReceiptAnswer(NamedTuple):
    """The broker answered message `number` with this MQTT 5 reason code; `NOT_SENT`: it was away, which is no message's fault."""

    number: int
    code: int


class Broken(NamedTuple):
    """The connection ended; what was not answered before this will not be."""

    reason: str


class Link(Protocol):
    """A connection to the broker. Nothing here waits for an answer."""

    def limits(self) -> LinkLimits | None:
        """The limits of the connection, made again if that is due; None while there is none."""
        ...

    def send(self, message: Outgoing) -> int:
        """Hand over a retained message and return its number. Raises RetryLaterError without a connection."""
        ...

    def answers(self) -> list[ReceiptAnswer | Broken]:
        """Take the answers and connection losses since the last call."""
        ...

    def reset(self, reason: str) -> None:
        """Close the connection; its end arrives as an answer."""
        ...


@dataclass(slots=True)
class _History:
    """Failures of a device's receipt, and when to retry."""

    failures: int = 0
    reason: str = ""
    due_s: float = float("-inf")
    is_suspect: bool = False
    max_packet_bytes: int | None = None


@dataclass(slots=True)
class _Sending:
    """A device's receipt on its way: the messages that are left, the one under way first."""

    device: str
    messages: list[Outgoing]
    pages: int
    sent_s: float = 0.0


@dataclass(slots=True)
class _Inbox:
    """Requests from other threads."""

    lock: Lock = field(default_factory=Lock)
    ledger: Ledger = field(default_factory=Ledger)
    devices: dict[str, None] = field(default_factory=dict)
    beyond: dict[str, dict[BeyondSpan, None]] = field(default_factory=dict)

    def note(self, beyond: Beyond) -> None:
        """Keep the newest spans of each device."""
        for device, spans in beyond.items():
            kept = self.beyond.setdefault(device, {})
            for span in spans:
                kept.pop(span, None)
                kept[span] = None
            for span in list(islice(kept, max(0, len(kept) - MAX_BEYOND_SPANS))):
                del kept[span]

    def beyond_of(self, device: str) -> tuple[BeyondSpan, ...]:
        """What is settled beyond the ledger."""
        return tuple(self.beyond.get(device, ()))


class ReceiptOutbox:
    """The receipts to be published. `mark_pending`, `pending` and `failing` may be used from any thread, `step` from one.

    Args:
        link: the connection.
        topics: of the namespace.
        clock: monotonic time for pauses.
        pages: which further pages the broker may retain.
    """

    def __init__(self, link: Link, topics: Topics, clock: Clock, pages: PageBook) -> None:
        self._link = link
        self._topics = topics
        self._clock = clock
        self._pages = pages
        self._inbox = _Inbox()
        self._ledger = self._inbox.ledger
        # A device with a receipt to send is in one of these: as any other, alone because it is a suspect, or after a pause.
        self._waiting: dict[str, None] = {}
        self._suspects: dict[str, None] = {}
        self._resting: dict[str, None] = {}
        self._sending: dict[str, _Sending] = {}
        self._flying: dict[int, _Sending] = {}
        self._histories: dict[str, _History] = {}
        self._alone: str | None = None
        self._is_suspects_turn = False
        self._is_away = False
        self._answered_s = float("-inf")
        self.taken = 0

    @property
    def pending(self) -> int:
        """The number of devices that wait for a receipt."""
        with self._inbox.lock:
            places = (self._waiting, self._suspects, self._resting, self._sending, self._inbox.devices)
            return len(set().union(*(list(place) for place in places)))

    @property
    def failing(self) -> Mapping[str, str]:
        """Devices whose receipt cannot be published, and why; each is tried again."""
        return {device: one.reason for device, one in sorted(self._histories.copy().items()) if one.failures}

    def mark_pending(self, ledger: Ledger, devices: Iterable[str], beyond: Beyond = NO_BEYOND) -> None:
        """Publish the receipts of these devices as `ledger`, or one after it, has them, and with what is settled beyond it."""
        with self._inbox.lock:
            self._inbox.note(beyond)
            self._inbox.ledger = ledger
            self._inbox.devices.update(dict.fromkeys(devices))

    def step(self) -> None:
        """Take the answers that came, and send what may be sent now."""
        with self._inbox.lock:
            self._ledger, devices = self._inbox.ledger, self._inbox.devices
            self._inbox.devices = {}
            for device in devices:
                if device not in self._suspects and device not in self._resting:
                    self._waiting[device] = None
        now_s = self._clock.monotonic_s()
        for device in [device for device in self._resting if self._history(device).due_s <= now_s]:
            del self._resting[device]
            self._enlist(device)
        self._is_away = False
        while not self._is_away and (self._take_answers() or self._fill()):
            pass
        self._judge_silence()

    def _take_answers(self) -> bool:
        answers = self._link.answers()
        accepted: list[_Sending] = []
        for answer in answers:
            if isinstance(answer, Broken):
                self._broken(answer.reason)
                continue
            self._answered_s = self._clock.monotonic_s()
            sending = self._flying.pop(answer.number, None)
            if sending is None:
                continue
            if answer.code == NOT_SENT:
                self._is_away = True
                self._again(sending)
                self._no_longer_alone(sending.device)
            elif answer.code >= FAILURE_FROM:
                self._refused(sending, answer.code)
            else:
                accepted.append(sending)
        for sending in accepted:
            self._accepted(sending)
        return bool(answers)

    def _fill(self) -> bool:
        """Start sending to more devices; whether any was started or found impossible."""
        if self._alone is not None or not (self._waiting or self._suspects):
            return False
        limits = self._link.limits()
        if limits is None:
            return False
        others = (device for device in self._waiting if device not in self._sending)
        room = min(WINDOW, limits.receive_maximum) - len(self._flying)
        chosen = list(islice(others, max(0, room)))
        if self._suspects and (self._is_suspects_turn or not chosen):
            if self._flying:
                return False
            self._is_suspects_turn, self._alone = False, next(iter(self._suspects))
            chosen = [self._alone]
        else:
            self._is_suspects_turn = bool(self._suspects)
        return self._start(chosen, limits)

    def _start(self, devices: list[str], limits: LinkLimits) -> bool:
        receipts = receipts_of(self._ledger, devices) if devices else {}
        for device in devices:
            try:
                with self._inbox.lock:
                    beyond = self._inbox.beyond_of(device)
                sending = self._made(with_beyond(receipts[device], beyond), device, limits)
            except (SchemaError, PipelineError, OSError) as error:
                self._failed(device, str(error))
                continue
            except Exception as error:  # noqa: BLE001  # whatever it is, it is this device's receipt and no other's
                self._failed(device, f"{type(error).__name__}: {error}")
                continue
            self._waiting.pop(device, None)
            self._suspects.pop(device, None)
            self._sending[device] = sending
            if not self._send(sending):
                return False
        return bool(devices)

    def _made(self, receipt: Receipt, device: str, limits: LinkLimits) -> _Sending:
        limit = min(self._history(device).max_packet_bytes or limits.max_packet_bytes, limits.max_packet_bytes)
        stale = self._pages.pages(device)
        messages = outgoing(receipt, device, self._topics, limit, stale)
        further = sum(bool(message.body) for message in messages) - 1
        self._pages.note(device, max(stale, further))
        return _Sending(device, messages, further)

    def _send(self, sending: _Sending) -> bool:
        """Hand over the next message of a receipt; False without a connection, and all of it is to be sent again."""
        try:
            number = self._link.send(sending.messages[0])
        except RetryLaterError as error:
            self._again(sending)
            self._no_longer_alone(sending.device)
            log.warning("receipts_wait", devices=self.pending, reason=str(error))
            return False
        sending.sent_s = self._clock.monotonic_s()
        self._flying[number] = sending
        return True

    def _accepted(self, sending: _Sending) -> None:
        del sending.messages[0]
        if sending.messages:
            self._send(sending)
            return
        device = sending.device
        try:
            self._pages.note(device, sending.pages)
        except (PipelineError, OSError) as error:
            # The note names more pages than there are: they are emptied again next time.
            log.warning("receipt_pages_not_noted", device=device, reason=str(error))
        self._sending.pop(device, None)
        self.taken += 1
        history = self._histories.pop(device, None)
        if history is not None and history.max_packet_bytes is not None:
            self._histories[device] = _History(max_packet_bytes=history.max_packet_bytes)
        self._no_longer_alone(device)

    def _refused(self, sending: _Sending, code: int) -> None:
        device, size = sending.device, len(sending.messages[0].body)
        self._again(sending)
        if code != PACKET_TOO_LARGE or not self._shrink(device, sending.messages[0]):
            self._failed(device, f"the broker refuses its receipt of {size} bytes with reason 0x{code:02x}")
        self._no_longer_alone(device)

    def _broken(self, reason: str) -> None:
        flying, self._flying = list(self._flying.values()), {}
        for sending in flying:
            device, size = sending.device, len(sending.messages[0].body)
            self._histories.setdefault(device, _History()).is_suspect = True
            self._again(sending)
            if device == self._alone and not self._shrink(device, sending.messages[0]):
                self._failed(device, f"the connection ends when its receipt of {size} bytes is sent ({reason})")
        self._alone = None
        if flying:
            log.warning("receipts_interrupted", devices=len(flying), reason=reason)

    def _shrink(self, device: str, message: Outgoing) -> bool:
        """Let the device's pages be half as large from now on; False where they are small already."""
        packet_bytes = len(message.topic) + len(message.body)
        if packet_bytes <= SMALLEST_PACKET_BYTES:
            return False
        history = self._histories.setdefault(device, _History())
        history.max_packet_bytes = max(SMALLEST_PACKET_BYTES, packet_bytes // 2)
        return True

    def _judge_silence(self) -> None:
        """Give up what is not answered: the connection if nothing is, else the devices that it concerns."""
        now_s = self._clock.monotonic_s()
        within_s = ANSWER_WITHIN_S if self._alone is None else ANSWER_ALONE_WITHIN_S
        silent = [number for number, sending in self._flying.items() if now_s - sending.sent_s > within_s]
        if silent and now_s - self._answered_s > within_s:
            self._link.reset(f"no answer for {within_s:.0f} s")
            return
        for number in silent:
            sending = self._flying.pop(number)
            self._again(sending)
            self._failed(sending.device, f"the broker does not answer its receipt within {within_s:.0f} s")

    def _again(self, sending: _Sending) -> None:
        """The receipt is to be sent again from its start, as the ledger then has it."""
        self._sending.pop(sending.device, None)
        self._enlist(sending.device)

    def _enlist(self, device: str) -> None:
        """Let a device have its next turn."""
        if self._history(device).is_suspect:
            self._waiting.pop(device, None)
            self._suspects[device] = None
        else:
            self._waiting[device] = None

    def _failed(self, device: str, reason: str) -> None:
        history = self._histories.setdefault(device, _History())
        pause_s = doubled_s(FIRST_PAUSE_S, LONGEST_PAUSE_S, history.failures)
        history.failures += 1
        history.reason = reason
        self._waiting.pop(device, None)
        self._suspects.pop(device, None)
        self._resting[device] = None
        history.due_s = self._clock.monotonic_s() + pause_s
        log.warning("receipt_not_published", device=device, reason=reason, failures=history.failures, again_in_s=pause_s)
        self._no_longer_alone(device)

    def _no_longer_alone(self, device: str) -> None:
        if self._alone == device:
            self._alone = None

    def _history(self, device: str) -> _History:
        return self._histories.get(device, _NO_TROUBLE)


_NO_TROUBLE = _History()
