"""Make the landing row of an MQTT message: pure, and never a refusal without a row.

The head alone is read. The body is looked into in one case: JSON from a device that numbers nothing is counted, so that
the bridge can number it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import msgspec
import pyarrow as pa
import zstandard

from schemas.envelope import MAX_SAMPLES_PER_ENVELOPE, ZSTD, EnvelopeHead, Properties, Span, read_head
from schemas.errors import EnvelopeError, SchemaError
from schemas.ids import MAX_SEQ, DeviceId, StreamName, next_epoch
from schemas.topics import Address, Kind

Body: TypeAlias = bytes | bytearray

_PROPERTY = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.string(), nullable=False)])

SEGMENT_SCHEMA = pa.schema(
    [
        pa.field("received_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("device", pa.string()),
        pa.field("stream", pa.string()),
        pa.field("content_type", pa.string()),
        pa.field("properties", pa.list_(pa.field("item", _PROPERTY, nullable=False)), nullable=False),
        pa.field("epoch", pa.int64()),
        pa.field("first_seq", pa.int64()),
        pa.field("count", pa.int64()),
        pa.field("numbered_by", pa.string(), nullable=False),
        pa.field("refusal", pa.string()),
        pa.field("payload", pa.binary(), nullable=False),
    ]
)
"""One row per MQTT message. Every landing file has exactly this schema."""

KIND_UP = "up"
KIND_REPORTED = "reported"
KIND_REFUSED = "refused"
NUMBERED_BY_DEVICE = "device"
NUMBERED_BY_BRIDGE = "bridge"

_MAX_STREAMS = 100_000


@dataclass(frozen=True, slots=True)
class LandingRow:
    """One MQTT message, read as far as its head goes.

    `received_us` is microseconds since 1970. `refusal` says why the head or the topic was refused; kind is then "refused".
    """

    received_us: int
    kind: str
    topic: str
    payload: Body
    device: str | None = None
    stream: str | None = None
    content_type: str | None = None
    properties: Sequence[tuple[str, str]] = ()
    span: Span | None = None
    numbered_by: str = NUMBERED_BY_DEVICE
    refusal: str | None = None

    def __post_init__(self) -> None:
        assert (self.kind == KIND_REFUSED) == (self.refusal is not None), "a refused message carries its reason, no other does"


def rows_to_batch(rows: Sequence[LandingRow]) -> pa.RecordBatch:
    """Rows as one record batch of `SEGMENT_SCHEMA`.

    Args:
        rows: together below 2 GiB of payload, the reach of Arrow's 32-bit offsets.
    """
    spans = [row.span for row in rows]
    columns = [
        [row.received_us for row in rows],
        [row.kind for row in rows],
        [row.topic for row in rows],
        [row.device for row in rows],
        [row.stream for row in rows],
        [row.content_type for row in rows],
        None,
        [span.epoch if span else None for span in spans],
        [span.first_seq if span else None for span in spans],
        [span.count if span else None for span in spans],
        [row.numbered_by for row in rows],
        [row.refusal for row in rows],
        [row.payload for row in rows],
    ]
    arrays = [
        _properties([row.properties for row in rows]) if column is None else pa.array(column, field.type)
        for field, column in zip(SEGMENT_SCHEMA, columns, strict=True)
    ]
    return pa.record_batch(arrays, schema=SEGMENT_SCHEMA)


def _properties(properties: Sequence[Properties | Sequence[tuple[str, str]]]) -> pa.ListArray:
    """Built from three flat arrays: a list of dicts per row would cost more than all other columns together."""
    pairs = [pair for row in properties for pair in row]
    names = pa.array([name for name, _ in pairs], pa.string())
    values = pa.array([value for _, value in pairs], pa.string())
    offsets = pa.array(accumulate((len(row) for row in properties), initial=0), pa.int32())
    items = pa.StructArray.from_arrays([names, values], fields=list(_PROPERTY))
    return pa.ListArray.from_arrays(offsets, items, type=SEGMENT_SCHEMA.field("properties").type)


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
        """The bytes it brings: the body and the properties, which are landed as well."""
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
    """Count the samples of a JSON body: the elements of its list, else 1 (one object, or something for quarantine).

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
