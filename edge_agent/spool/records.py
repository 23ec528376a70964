"""The value objects that go into the spool and come out of it. No IO."""

import zlib
from dataclasses import dataclass, field, replace
from enum import IntEnum

from edge_agent.errors import SpoolError
from schemas.envelope import MAX_SAMPLES_PER_ENVELOPE, Span
from schemas.ids import Digest, StreamName

# What a row costs next to its body: columns, index entries, page slack. Measured as ~180 bytes, rounded up.
ROW_OVERHEAD_BYTES = 256
# Above every priority that can be configured: nothing that comes in is worth more.
KEPT_PRIORITY = 2_000_000


def eviction_priority(priority: int, *, waits_for_room: bool) -> int:
    """The highest priority that is given up for samples of this one.

    A stream that is never given up is worth more than any that is: all of those make way for it, and it waits only where its
    own kind fills the spool. By its own priority it would wait next to samples that are given up the moment others come in.
    """
    return KEPT_PRIORITY - 1 if waits_for_room else priority


class State(IntEnum):
    """The state of an envelope. Leases are kept in memory only: after a restart everything unsettled is sent again."""

    READY = 0  # may be sent
    WAITING = 1  # its large payload is not settled yet
    PARKED = 2  # can never be sent as things are; kept, told of, first to be evicted


class DropReason:
    """The reasons for dropping samples. The words appear in books, reports and metrics."""

    EVICTED = "evicted"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A large payload, held as a file named by its hash."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BodyPlace:
    """The place of a body that is not in its row: file of the bodies' folder, first byte, length."""

    file: int
    offset: int
    size_bytes: int


_FREE = "free-"
MAX_BOOT_CHARS = 64
# Less than this is the drift of one clock, not a jump.
CLOCK_JUMP_US = 1_000_000


def free_boot(boot: str) -> str:
    """The name under which times of a boot stand that may be true, read before anybody had set the clock in it."""
    return f"{_FREE}{boot}"[:MAX_BOOT_CHARS]


@dataclass(frozen=True, slots=True)
class ClockReference:
    """The basis of event times read from a clock that was not set, so that they can be corrected once it is.

    Attributes:
        boot: the kernel's id of the boot in which they were read; by `free_boot`, where they may be true as they are.
        offset_us: wall clock minus time since boot when they were read, in microseconds.
    """

    boot: str
    offset_us: int

    @property
    def is_free(self) -> bool:
        """Whether the times may be true as they are: the clock stood at a possible time, and ran free."""
        return self.boot.startswith(_FREE)

    def is_needed(self, true_offset_us: int | None) -> bool:
        """Whether the core must hear of it: times that may be true are right until the clock is seen to have jumped."""
        if not self.is_free:
            return True
        return true_offset_us is not None and abs(self.shift_us(true_offset_us)) > CLOCK_JUMP_US

    def shift_us(self, true_offset_us: int) -> int:
        """Return the correction of the event times, given the offset that held once the clock was set."""
        return true_offset_us - self.offset_us


@dataclass(frozen=True, slots=True)
class NewEnvelope:
    """An envelope that has no seq yet: the spool gives it one.

    Attributes:
        count: samples in it.
        body: what will be the MQTT body.
        encoding: "" or "zstd".
        large: the large payload that must be settled before this envelope is sent.
        place: where the body lies, once it was put into a file; `body` is empty then.
        body_crc: CRC-32 of the body, wherever it lies; below 0 until `sum_up`.
        priority: what it is worth when the spool is full; None: as much as its batch.
        clock: set where the event times are those of a clock that was not set.
    """

    count: int
    body: bytes
    contract_version: str
    encoding: str = ""
    created_us: int = 0
    large: ObjectRef | None = None
    priority: int | None = None
    place: BodyPlace | None = None
    body_crc: int = field(default=-1, repr=False)
    clock: ClockReference | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_SAMPLES_PER_ENVELOPE:
            raise SpoolError(f"an envelope holds 1 to {MAX_SAMPLES_PER_ENVELOPE} samples, not {self.count}; split the batch")

    @property
    def cost_bytes(self) -> int:
        """Bytes that count against the quota."""
        return self.row_bytes + (self.place.size_bytes if self.place else 0) + (self.large.size_bytes if self.large else 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of its database row; the rest lies in files already."""
        return len(self.body) + ROW_OVERHEAD_BYTES

    def sum_up(self) -> int:
        """Compute the body's CRC-32 once, on the caller's thread, because the one writer thread has enough to do."""
        if self.body_crc < 0:
            object.__setattr__(self, "body_crc", zlib.crc32(self.body))
        return self.body_crc

    def put_at(self, place: BodyPlace) -> "NewEnvelope":
        """The same envelope, its body in a file."""
        return replace(self, body=b"", place=place, body_crc=self.sum_up())


@dataclass(frozen=True, slots=True)
class Append:
    """One source batch on its way into the spool: its envelopes and the source's position live or die together.

    Attributes:
        priority: the batch's highest; when the spool is full, lower ones are given up first.
        left_out: counts, by reason, samples that were captured with these and are not stored: rules left them out. They
            get no seq and are told in the books alone.
        waits_for_room: its stream is never given up: what does not fit waits, and its source with it.
    """

    stream: StreamName
    envelopes: tuple[NewEnvelope, ...]
    priority: int = 100
    source: str = ""
    position: bytes | None = None
    left_out: tuple[tuple[str, int], ...] = ()
    waits_for_room: bool = False

    def priority_of(self, envelope: NewEnvelope) -> int:
        """The priority an envelope of this is stored with."""
        if self.waits_for_room:
            return KEPT_PRIORITY
        return self.priority if envelope.priority is None else envelope.priority

    @property
    def eviction_priority(self) -> int:
        """The highest priority that is given up for this."""
        return eviction_priority(self.priority, waits_for_room=self.waits_for_room)

    @property
    def cost_bytes(self) -> int:
        """Bytes that count against the quota."""
        return sum(envelope.cost_bytes for envelope in self.envelopes)

    @property
    def row_bytes(self) -> int:
        """Bytes of its database rows; the rest lies in files already."""
        return sum(envelope.row_bytes for envelope in self.envelopes)

    @property
    def body_files(self) -> list[int]:
        """The file of each body that lies in one."""
        return [envelope.place.file for envelope in self.envelopes if envelope.place is not None]

    @property
    def count(self) -> int:
        """Samples in it."""
        return sum(envelope.count for envelope in self.envelopes)


@dataclass(frozen=True, slots=True)
class Passed:
    """Samples that were read and none of which is stored: where the source resumes, and the counts by reason."""

    stream: StreamName
    source: str
    position: bytes | None
    left_out: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope as the spool holds it."""

    id: int
    stream: StreamName
    span: Span
    body: bytes
    contract_version: str
    encoding: str
    created_us: int
    clock: ClockReference | None = None


@dataclass(frozen=True, slots=True)
class WaitingObject:
    """A large payload that an envelope waits for."""

    envelope_id: int
    ref: ObjectRef


def checksum(stream: str, span: Span, envelope: NewEnvelope) -> int:
    """CRC-32 over what the envelope says and carries: SQLite itself does not notice a rotten byte."""
    digest = envelope.large.digest if envelope.large else ""
    head = (
        f"{stream}/{span.epoch}/{span.first_seq}/{span.count}/{envelope.contract_version}"
        f"/{envelope.encoding}/{envelope.created_us}/{digest}"
    )
    if envelope.clock is not None:
        head += f"/{envelope.clock.boot}/{envelope.clock.offset_us}"
    return zlib.crc32(head.encode(), envelope.sum_up())
