"""The heads of planned envelopes: what admission needs, read without opening any body."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.bridge.rows import KIND_REPORTED, KIND_UP
from pipelines.bridge.segment import read_segment, sealed_path
from pipelines.ingest.admit import DropReport, Head
from pipelines.ingest.plan import SegmentRef
from pipelines.lake.books import EpochKey
from pipelines.lake.lake import Lake
from pipelines.lake.layout import landing_folder
from schemas.errors import SchemaError
from schemas.ranges import Ranges
from schemas.reported import Reported, decode_reported

_HEAD_COLUMNS = ("kind", "device", "stream", "epoch", "first_seq", "count")


@dataclass(frozen=True, slots=True)
class SegmentHeads:
    """One segment's messages, in order.

    `arrivals` holds, per message, what admission judges (a report may give several, a refused message none).
    `reports` has the last readable report of each device: it says all that those before it say and still holds.
    `refused` counts per device the messages that are quarantined unjudged.
    """

    arrivals: tuple[tuple[Head | DropReport, ...], ...]
    reports: tuple[Reported, ...]
    refused: dict[str, int]


def segment_path(lake: Lake, segment: SegmentRef) -> Path:
    """Where a segment lies."""
    return sealed_path(landing_folder(lake.root, segment.bridge), segment.number)


def read_heads(lake: Lake, segment: SegmentRef) -> SegmentHeads:
    """The heads of a sealed segment.

    Raises:
        CorruptLakeError: its bytes are not what was written.
    """
    arrivals: list[tuple[Head | DropReport, ...]] = []
    reports: dict[str, tuple[int, Reported]] = {}
    refused: dict[str, int] = {}
    for batch in read_segment(lake.local(segment_path(lake, segment))):
        for row, head in enumerate(zip(*(batch.column(name).to_pylist() for name in _HEAD_COLUMNS), strict=True)):
            kind, device, stream, epoch, first_seq, count = head
            if kind == KIND_UP:
                arrivals.append((Head(EpochKey(device, stream, epoch), first_seq, count),))
                continue
            report = read_report(batch, row) if kind == KIND_REPORTED else None
            arrivals.append(())
            if isinstance(report, Reported):
                reports[report.device] = (len(arrivals) - 1, report)
                continue
            refused[device or ""] = refused.get(device or "", 0) + 1
    for place, report in reports.values():
        arrivals[place] = _dropped(report)
    return SegmentHeads(tuple(arrivals), tuple(report for _, report in reports.values()), refused)


def read_report(batch: pa.RecordBatch, row: int) -> Reported | str:
    """The report that a landing row carries, or the reason why it is none."""
    device = batch.column("device")[row].as_py()
    try:
        report = decode_reported(batch.column("payload")[row].as_py())
    except SchemaError as error:
        return str(error)
    if report.device != device:
        return f"the report names device {report.device[:80]!r}, the topic {device!r}"
    return report


def _dropped(report: Reported) -> tuple[DropReport, ...]:
    return tuple(
        DropReport(
            EpochKey(report.device, epoch.stream, epoch.epoch),
            Ranges.of((gone.low, gone.high) for gone in epoch.dropped).spans,
        )
        for epoch in report.epochs
        if epoch.dropped
    )


def listed_epochs(reports: Sequence[Reported]) -> dict[str, frozenset[EpochKey]]:
    """Per device, the epochs that its last report knows."""
    return {
        report.device: frozenset(EpochKey(report.device, epoch.stream, epoch.epoch) for epoch in report.epochs)
        for report in reports
    }
