"""From an MQTT message to its landing row: pure, and never a refusal without a row.

The head alone is read. The body is looked into in one case: JSON from a device that numbers nothing is counted, so that
the bridge can number it.
"""

import io
from dataclasses import dataclass

import msgspec
import zstandard

from pipelines.bridge.rows import (
    KIND_REFUSED,
    KIND_REPORTED,
    KIND_UP,
    NUMBERED_BY_BRIDGE,
    NUMBERED_BY_DEVICE,
    Body,
    LandingRow,
)
from schemas.envelope import MAX_SAMPLES_PER_ENVELOPE, ZSTD, EnvelopeHead, Span, read_head
from schemas.errors import EnvelopeError, SchemaError
from schemas.ids import MAX_SEQ, DeviceId, StreamName, next_epoch
from schemas.topics import Address, Kind

_MAX_STREAMS = 100_000


@dataclass(frozen=True, slots=True)
class BrokerMessage:
    """One MQTT message as it came. `received_us` is microseconds since 1970; `is_retained`: its sender had the broker keep it."""

    topic: str
    payload: Body
    content_type: str | None
    properties: tuple[tuple[str, str], ...]
    received_us: int
    is_retained: bool = False

    @property
    def size_bytes(self) -> int:
        """What it brings: the body and the words beside it, which are landed as well."""
        words = sum(len(name) + len(value) for name, value in self.properties)
        return len(self.payload) + words + len(self.topic) + len(self.content_type or "")

    def refused(self, reason: str, address: Address | None = None) -> LandingRow:
        """The row of a message that is refused as it lands, to be quarantined by the next run."""
        return LandingRow(
            received_us=self.received_us,
            kind=KIND_REFUSED,
            topic=self.topic,
            payload=self.payload,
            device=address.device if address else None,
            stream=address.stream if address else None,
            content_type=self.content_type,
            properties=self.properties,
            refusal=reason,
        )


class Numberer:
    """Gives seqs to samples of devices that number nothing: one epoch per start, seqs on from 0 per device and stream.

    Args:
        now_ms: wall clock at start, milliseconds since 1970.
        entropy: random bits for the epoch.
    """

    def __init__(self, now_ms: int, entropy: int) -> None:
        self.epoch = next_epoch(0, now_ms, entropy)
        self._next: dict[tuple[str, str], int] = {}

    def number(self, device: DeviceId, stream: StreamName, count: int) -> Span:
        """The next `count` seqs of this device's stream."""
        key = (device, stream)
        first = self._next.get(key, 0)
        if first > MAX_SEQ - count or (first == 0 and len(self._next) >= _MAX_STREAMS):
            self.restart()
            first = 0
        self._next[key] = first + count
        return Span(self.epoch, first, count)

    def restart(self) -> None:
        """A new epoch: after a failed write, whose seqs would be gaps permanently, and when too many streams are held."""
        self.epoch += 1
        self._next.clear()


def to_row(message: BrokerMessage, address: Address, numberer: Numberer, max_body_bytes: int) -> LandingRow:
    """The landing row of an envelope or a report.

    Args:
        message: as it came.
        address: its topic, taken apart; kind UP or REPORTED.
        numberer: asked only for JSON that carries no span.
        max_body_bytes: a longer body, as it came or decompressed, is refused.
    """
    if len(message.payload) > max_body_bytes:
        return message.refused(f"body of {len(message.payload)} bytes is above the limit of {max_body_bytes}", address)
    if address.kind is Kind.REPORTED:
        return LandingRow(
            received_us=message.received_us,
            kind=KIND_REPORTED,
            topic=message.topic,
            payload=message.payload,
            device=address.device,
            content_type=message.content_type,
            properties=message.properties,
        )
    if address.stream is None:
        return message.refused(f"a {address.kind} message is not for a bridge to land", address)
    try:
        head = read_head(address.device, address.stream, message.content_type, message.properties)
        span = head.span or numberer.number(head.device, head.stream, count_json(message.payload, head, max_body_bytes))
    except SchemaError as error:
        return message.refused(str(error), address)
    return LandingRow(
        received_us=message.received_us,
        kind=KIND_UP,
        topic=message.topic,
        payload=message.payload,
        device=head.device,
        stream=head.stream,
        content_type=head.content_type,
        properties=message.properties,
        span=span,
        numbered_by=NUMBERED_BY_DEVICE if head.span else NUMBERED_BY_BRIDGE,
    )


def count_json(body: Body, head: EnvelopeHead, max_body_bytes: int) -> int:
    """How many samples a JSON body holds: the elements of its list, else 1 (one object, or something for quarantine).

    Raises:
        EnvelopeError: it decompresses to more than the limit, or holds more samples than an envelope may.
    """
    text = _decompress(body, max_body_bytes) if head.encoding == ZSTD else body
    if not text.lstrip(b" \t\r\n").startswith(b"["):
        return 1
    try:
        count = len(msgspec.json.decode(text, type=list[msgspec.Raw]))
    except msgspec.MsgspecError:
        # Not JSON after all: it stands for one sample, and the run quarantines it with the reason.
        return 1
    if count > MAX_SAMPLES_PER_ENVELOPE:
        raise EnvelopeError(f"a list of {count} samples is above the limit of {MAX_SAMPLES_PER_ENVELOPE}")
    return max(count, 1)


def _decompress(body: Body, max_bytes: int) -> bytes:
    """Bounded by what comes out, whatever the frame's head claims."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)) as reader:
            text = reader.read(max_bytes + 1)
    except zstandard.ZstdError as error:
        raise EnvelopeError(f"the body is not zstd as contentencoding says: {error}") from error
    if len(text) > max_bytes:
        raise EnvelopeError(f"the body decompresses to more than the limit of {max_bytes} bytes")
    return text
