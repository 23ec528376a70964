"""Replay rows of the quarantine: the landing file of a replay, and its plan.

A replay is a run like any other. Its one segment holds the refused messages as they came, its plan says which of their seqs
to settle; that they are settled in the ledger already is no matter, for they are taken out of the quarantine's count by the
same run that puts them into a stream's, or back.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.bridge.rows import KIND_UP, LandingRow, rows_to_batch
from pipelines.bridge.segment import OpenSegment, sealed_path
from pipelines.ingest.chips.plan import CutRequest, SlideKey
from pipelines.ingest.chips.requests import request_slides
from pipelines.ingest.decode import ROWS
from pipelines.ingest.event_times import CLOCK_BOOT, CLOCK_SET, CLOCK_SHIFT
from pipelines.ingest.plan import Plan, ReplayItem, SegmentRef
from pipelines.ingest.quarantine import BODY_ARROW, BODY_ENVELOPE, BODY_JSON, STAGE_CHIPS, STAGE_FLOOR, STAGE_HEAD, STAGE_REPORT
from pipelines.ingest.requests import REPLAY, Request
from pipelines.lake.lake import Lake
from pipelines.lake.layout import REPLAYS, landing_folder
from pipelines.lake.quarantined import open_rows
from schemas.envelope import DATASCHEMA_PREFIX, JSON, Span

MAX_ROWS = 2_000
MAX_BYTES = 256 * 1024 * 1024
REPLAYABLE = frozenset({BODY_ENVELOPE, BODY_ARROW, BODY_JSON})


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
