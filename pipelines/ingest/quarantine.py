"""Refused samples as rows: stage, reason and bytes; and their replay, or their discarding, once the cause is gone.

A request is one file, kept until it is done. It names rows, not a filter: carried out twice, the second time finds them closed
and does nothing.

A replay is a run like any other. Its one segment holds the refused messages as they came, and its plan names the seqs to
settle. They are settled in the ledger already; that does no harm, because the same run takes them out of the quarantine's
count and puts them into a stream's, or back.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa

from catchment.runtime.atomic_files import sync_folder
from pipelines.bridge.rows import KIND_UP, LandingRow, rows_to_batch
from pipelines.bridge.segment import OpenSegment, sealed_path
from pipelines.errors import CorruptLakeError
from pipelines.ingest.chips.requests import CutRequest, SlideKey, request_slides
from pipelines.ingest.decode import CLOCK_BOOT, CLOCK_SET, CLOCK_SHIFT, ROWS
from pipelines.ingest.plan import Plan, ReplayItem, SegmentRef
from pipelines.lake.lake import Lake, poll_again, polled
from pipelines.lake.layout import REPLAYS, REQUESTS, RUNS, landing_folder, requests_folder
from pipelines.lake.quarantined import open_rows
from schemas.envelope import DATASCHEMA_PREFIX, JSON, Span

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
"""`id` names the row permanently; `spans` are the refused seqs as JSON, half-open; `first_seq` and `samples` what the whole
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
    spans: tuple[tuple[int, int], ...] = ()


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


REPLAY, DISCARD = "replay", "discard"

MAX_ROWS = 2_000
MAX_BYTES = 256 * 1024 * 1024
REPLAYABLE = frozenset({BODY_ENVELOPE, BODY_ARROW, BODY_JSON})


class Request(msgspec.Struct, frozen=True, rename={"requested_at_us": "asked_at_us"}):  # the name on disk
    """Replay or discard these rows.

    Attributes:
        version: the contract version to read them by; "" for the one that each names.
        event_time: what their event times are set to, as `event_times.CLOCK_SET` says; "" leaves them as they are.
    """

    kind: Literal["replay", "discard"]
    ids: tuple[str, ...]
    requested_at_us: int
    version: str = ""
    event_time: str = ""


def write_request(lake: Lake, request: Request) -> Path:
    """Store a request, durable; the loop will find it.

    Raises:
        OSError: the disk refused.
    """
    body = msgspec.json.encode(request)
    folder = requests_folder(lake.root)
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(lake.root)
    path = folder / f"{request.requested_at_us:020d}-{hashlib.sha256(body).hexdigest()[:12]}.json"
    lake.put(path, body)
    return path


def oldest_request(lake: Lake) -> tuple[Path, Request] | None:
    """The request to carry out next; None if there is none. Of a remote lake requests are looked for now and then.

    Raises:
        CorruptLakeError: it cannot be read.
        RetryLaterError: the storage is away.
    """
    waiting = _waiting(lake)
    if not waiting:
        return None
    try:
        return waiting[0], msgspec.json.decode(lake.read(waiting[0]), type=Request)
    except FileNotFoundError:
        poll_again(lake, REQUESTS)  # another loop has done it
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{waiting[0]}: not a request ({error}); delete it and ask again") from error


def forget_request(lake: Lake, path: Path) -> None:
    """Delete a request that is done.

    Raises:
        RetryLaterError: the storage is away.
    """
    lake.delete(path)
    if path.parent.is_dir():
        sync_folder(path.parent)
    poll_again(lake, REQUESTS)


def open_requests(lake: Lake) -> list[Path]:
    """The requests that wait, oldest first. Of a remote lake: a listing.

    Raises:
        RetryLaterError: the storage is away.
    """
    found = [lake.root / file.name for file in lake.files(f"{RUNS}/{REQUESTS}")]
    return [path for path in found if path.match("[0-9]*.json")]


def look_again(lake: Lake) -> None:
    """Let the next look for requests be one, however short ago the last one was."""
    poll_again(lake, REQUESTS)


def _waiting(lake: Lake) -> list[Path]:
    """As `open_requests`; of a remote lake listed at every hundredth look only, and known in between."""
    return polled(lake, REQUESTS, lambda: open_requests(lake))


def replay_plan(lake: Lake, run: int, now_us: int, pins: str, cursors: dict[str, int], request: Request) -> Plan | None:
    """The next piece of a request as a plan, its segment written; None if all of it is done.

    Raises:
        CorruptLakeError: the quarantine cannot be read.
        OSError: the disk refused.
    """
    rows = open_rows(lake, request.ids, MAX_ROWS, MAX_BYTES)
    if request.kind == REPLAY:
        rows = [row for row in rows if is_replayable(row)]
        rows = list(filter(is_slide, rows)) or rows  # by themselves: they have no message to be read again
    if not rows:
        return None
    if request.kind == REPLAY:
        for row in filter(is_slide, rows):
            request_slides(lake, request.requested_at_us, cut_request(row))
    replay_items = tuple(
        ReplayItem(row["id"], request.kind, row["device"] or "", _books_of(row), row["epoch"] or 0, _spans(row), row["count"])
        for row in rows
    )
    if request.kind != REPLAY or all(map(is_slide, rows)):
        return Plan(run, now_us, pins, (), cursors, replay_items)
    return Plan(run, now_us, pins, (_write_segment(lake, run, rows, request),), cursors, replay_items)


def is_slide(row: dict[str, Any]) -> bool:
    """Whether a quarantine row is of a slide that could not be cut: its bytes are in its stream's row."""
    return bool(row["stage"] == STAGE_CHIPS)


def cut_request(row: dict[str, Any]) -> CutRequest:
    """The request to cut the slide of a quarantine row again, by the spec that its reason begins with."""
    spec = str(row["reason"]).split(":", 1)[0]
    return CutRequest(row["stream"], keys=(SlideKey(row["device"], row["epoch"], row["seq"]),), specs=(spec,))


def is_replayable(row: dict[str, Any]) -> bool:
    """Whether a quarantine row says enough to be read again: whose it is, and which seqs; and is surely no copy of a row."""
    if row["stage"] == STAGE_FLOOR:
        return False
    if is_slide(row):
        return True
    return row["body_format"] in REPLAYABLE and None not in (row["device"], row["stream"], row["epoch"]) and bool(_spans(row))


def _books_of(row: dict[str, Any]) -> str:
    """The stream whose books count the row: a message that was refused by its head is in nobody's, whatever it told."""
    return "" if row["stage"] in (STAGE_HEAD, STAGE_REPORT) else row["stream"] or ""


def _spans(row: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((low, high) for low, high in json.loads(row["spans"] or "[]"))


def _write_segment(lake: Lake, run: int, rows: Sequence[dict[str, Any]], request: Request) -> SegmentRef:
    folder = landing_folder(lake.root, REPLAYS)
    folder.mkdir(parents=True, exist_ok=True)
    segment = OpenSegment(folder, run)
    segment.append(rows_to_batch([_landing_row(row, request) for row in rows]))
    segment.sync()
    segment.seal()
    lake.upload([sealed_path(folder, run)])  # before its plan: any machine may have to carry that out
    return SegmentRef(REPLAYS, run, sealed_path(folder, run).stat().st_size)


def _landing_row(row: dict[str, Any], request: Request) -> LandingRow:
    properties = [(name, value) for name, value in json.loads(row["properties"])]
    if request.event_time:
        # In place of what the device could not know.
        known = (CLOCK_BOOT, CLOCK_SHIFT, CLOCK_SET)
        properties = [*(pair for pair in properties if pair[0] not in known), (CLOCK_SET, request.event_time)]
    if request.version:
        schema = ("dataschema", f"{DATASCHEMA_PREFIX}{row['stream']}:{request.version}")
        properties = [*(pair for pair in properties if pair[0] != "dataschema"), schema]
    spans = _spans(row)
    content_type, body = row["content_type"], row["body"]
    span = Span(row["epoch"], row["first_seq"] or 0, row["samples"] or 0)
    if row["body_format"] != BODY_ENVELOPE:
        # Rows, not the envelope: its encoding is no longer theirs.
        properties = [pair for pair in properties if pair[0] != "contentencoding"]
        span = Span(row["epoch"], spans[0][0], row["count"])
        content_type = JSON
        if row["body_format"] == BODY_ARROW:
            content_type, body = ROWS, _without_empty_columns(body)
    return LandingRow(
        row["received_us"], KIND_UP, row["topic"], body, row["device"], row["stream"], content_type, tuple(properties), span
    )


def _without_empty_columns(body: bytes) -> bytes:
    """Columns that no row fills are left out: a contract that no longer has them has no reason to refuse the rows."""
    rows = pa.ipc.open_stream(body).read_all()
    kept = rows.select([name for name in rows.column_names if rows.column(name).null_count < rows.num_rows]).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, kept.schema) as writer:
        writer.write_table(kept)
    return bytes(sink.getvalue().to_pybytes())
