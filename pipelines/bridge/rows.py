"""The landing row: one MQTT message as it lands, and its columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import pyarrow as pa

from schemas.envelope import Properties, Span

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
