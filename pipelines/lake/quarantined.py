"""Quarantined rows that are neither replayed nor discarded. A row is closed by a row of `quarantine_closed`, never changed."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.lake import Lake
from pipelines.lake.layout import QUARANTINE, QUARANTINE_CLOSED

Rows = list[dict[str, Any]]

CLOSED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("run", pa.int64()),
        pa.field("outcome", pa.string()),
        pa.field("closed_at", pa.timestamp("us", "UTC")),
        pa.field("count", pa.int64()),
    ]
)
_HEADS = [
    "id", "quarantined_at", "run", "stage", "reason", "device", "stream", "epoch", "seq", "count", "content_type", "body_format",
    "spans",
]  # fmt: skip
# What differs from one refusal to the next of the same kind: digests, quoted words, numbers.
_VARIABLE = (
    (re.compile(r"\b[0-9a-f]{32,}\b"), "#"),
    (re.compile(r"'[^']*'"), "'…'"),
    (re.compile(r'"[^"]*"'), '"…"'),
    (re.compile(r"\d+(\.\d+)?"), "N"),
)


@dataclass(frozen=True, slots=True)
class Where:
    """Which rows are meant; None asks nothing. `reason` is a part of the reason's text."""

    stream: str | None = None
    stage: str | None = None
    reason: str | None = None
    device: str | None = None
    ids: tuple[str, ...] = ()


def heads(lake: Lake, where: Where) -> pa.Table:
    """The open rows, without their bytes."""
    table = lake.view().checked_table(QUARANTINE)
    if table is None:
        return pa.schema([pa.field(name, pa.string()) for name in _HEADS]).empty_table()
    present = {field.name for field in table.schema().fields}
    rows = pa.table(table.to_pyarrow_table(columns=[name for name in _HEADS if name in present]))
    for name in _HEADS:
        if name not in present:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string()))
    rows = _open(lake, rows)
    for name, wanted in (("stream", where.stream), ("stage", where.stage), ("device", where.device)):
        if wanted is not None:
            rows = rows.filter(pc.equal(pc.fill_null(rows.column(name), ""), wanted))
    if where.reason is not None:
        rows = rows.filter(pc.match_substring(pc.fill_null(rows.column("reason"), ""), where.reason))
    if where.ids:
        rows = rows.filter(pc.is_in(rows.column("id"), pa.array(where.ids, pa.string())))
    return rows


def grouped(rows: pa.Table) -> Rows:
    """Rows by stream, stage and kind of reason: what differs from one to the next is left out of the reason."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    columns = [rows.column(name).to_pylist() for name in ("stream", "stage", "reason", "count", "run", "id")]
    for stream, stage, reason, count, run, row_id in zip(*columns, strict=True):
        key = (stream or "(none)", stage, kind_of(reason or ""))
        group = found.setdefault(
            key,
            {
                "stream": key[0],
                "stage": stage,
                "samples": 0,
                "rows": 0,
                "last_run": 0,
                "reason": key[2],
                "example": reason,
                "id": row_id,
            },
        )
        group["samples"] += count
        group["rows"] += 1
        group["last_run"] = max(group["last_run"], run)
    return sorted(found.values(), key=lambda group: -group["samples"])


def kind_of(reason: str) -> str:
    """The reason without what differs from sample to sample, and so without the values that it quotes."""
    for pattern, mark in _VARIABLE:
        reason = pattern.sub(mark, reason)
    return reason


def open_rows(lake: Lake, ids: Collection[str], max_rows: int, max_bytes: int) -> Rows:
    """The first of these rows that are still open, bytes and all, as many as the limits allow, one at least."""
    table = lake.view().checked_table(QUARANTINE)
    if table is None or not ids:
        return []
    wanted = pa.array(sorted(ids), pa.string())
    dataset = table.to_pyarrow_dataset()
    light = _open(lake, dataset.to_table(columns=["id", "run"], filter=pc.field("id").isin(wanted)))
    chosen = sorted(light.column("id").to_pylist())[:max_rows]
    is_chosen = pc.field("id").isin(pa.array(chosen, pa.string()))
    found: Rows = []
    size = 0
    # A few rows at a time: together their bytes may be more than there is memory.
    for batch in dataset.to_batches(filter=is_chosen, batch_size=16, batch_readahead=1, fragment_readahead=1):
        received = batch.column("received_at").cast(pa.int64())
        rows = batch.append_column("received_us", received).drop_columns(["quarantined_at", "received_at"])
        for row in rows.to_pylist():
            size += len(row["body"] or b"")
            if found and size > max_bytes:
                return _by_id(found)
            found.append(row)
    return _by_id(found)


def _by_id(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: str(row["id"]))


def closed(lake: Lake) -> pa.Table:
    """The rows that were replayed or discarded."""
    table = lake.view().table(QUARANTINE_CLOSED)
    return CLOSED_SCHEMA.empty_table() if table is None else pa.table(table.to_pyarrow_table())


def _open(lake: Lake, rows: pa.Table) -> pa.Table:
    gone = closed(lake).column("id")
    return rows if not len(gone) else rows.filter(pc.invert(pc.is_in(rows.column("id"), gone)))
