"""Refused samples as rows: stage, reason, and the bytes they came in, so that they can be replayed once the cause is gone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from schemas.ranges import Span

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("quarantined_at", pa.timestamp("us", "UTC")),
        pa.field("run", pa.int64()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("device", pa.string()),
        pa.field("stream", pa.string()),
        pa.field("epoch", pa.int64()),
        pa.field("seq", pa.int64()),
        pa.field("count", pa.int64()),
        pa.field("topic", pa.string()),
        pa.field("content_type", pa.string()),
        pa.field("properties", pa.string()),
        pa.field("body", pa.binary()),
        pa.field("body_format", pa.string()),
        pa.field("id", pa.string()),
        pa.field("spans", pa.string()),
        pa.field("received_at", pa.timestamp("us", "UTC")),
        pa.field("first_seq", pa.int64()),
        pa.field("samples", pa.int64()),
    ]
)
"""`id` names the row for ever; `spans` are the refused seqs as JSON, half-open; `first_seq` and `samples` what the whole
envelope claims, so that it can be read again."""
PRIVATE = frozenset({"body", "properties", "topic", "reason"})

STAGE_HEAD = "head"
STAGE_REPORT = "report"
STAGE_DECODE = "decode"
STAGE_CONTRACT = "contract"
STAGE_PAYLOAD = "payload"
STAGE_OBJECT = "object"
STAGE_LANDING = "landing"
STAGE_FAULT = "fault"
STAGE_FLOOR = "floor"
STAGE_CHIPS = "chips"

BODY_ENVELOPE = "envelope"
BODY_ARROW = "arrow"
BODY_JSON = "json"
BODY_NONE = "none"


@dataclass(frozen=True, slots=True)
class Origin:
    """The landing row that refused samples came in. `device`, `stream` and the numbers are None where the head did not tell."""

    device: str | None
    stream: str | None
    epoch: int | None
    topic: str
    content_type: str | None
    properties: tuple[tuple[str, str], ...]
    received_us: int | None = None
    first_seq: int | None = None
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """`count` refused samples of one envelope, for one reason, from seq `seq` on, and the bytes that hold them."""

    origin: Origin
    stage: str
    reason: str
    seq: int | None
    count: int
    body: bytes
    body_format: str
    spans: tuple[Span, ...] = ()


def rejections_table(rejections: Sequence[Rejection], run: int, at_us: int, part: str) -> pa.Table:
    """Rejections as rows of the quarantine table.

    Args:
        rejections: in the order in which they were found.
        run: the run that refused them.
        at_us: microseconds since 1970, pinned by the plan so that a repeated run writes the same bytes.
        part: which part of the run; with the run and the place it makes the rows' ids.
    """
    count = len(rejections)
    origins = [rejection.origin for rejection in rejections]
    columns: list[list[object]] = [
        [at_us] * count,
        [run] * count,
        [rejection.stage for rejection in rejections],
        [rejection.reason[:2_000] for rejection in rejections],
        [origin.device for origin in origins],
        [origin.stream for origin in origins],
        [origin.epoch for origin in origins],
        [rejection.seq for rejection in rejections],
        [rejection.count for rejection in rejections],
        [origin.topic for origin in origins],
        [origin.content_type for origin in origins],
        [json.dumps(origin.properties) for origin in origins],
        [rejection.body for rejection in rejections],
        [rejection.body_format for rejection in rejections],
        [f"{run}-{part}-{place}" for place in range(count)],
        [json.dumps(rejection.spans) for rejection in rejections],
        [origin.received_us for origin in origins],
        [origin.first_seq for origin in origins],
        [origin.samples for origin in origins],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, QUARANTINE_SCHEMA, strict=True)]
    return pa.table(arrays, schema=QUARANTINE_SCHEMA)
