"""Plan n: exactly what run n will read and by which rules, decided before it starts; and plans, pins and segments on disk.

A plan names segments, and pins contracts and policies by digest, so that a run repeated after a crash gives the same
files under the same names whatever has happened to the rules since.

Segments are found without listing landing folders. Files are written once and never over another's. Heads are what admission
needs, read without opening any body.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa

from catchment.runtime.atomic_files import sync_folder
from pipelines.bridge.rows import KIND_REPORTED, KIND_UP
from pipelines.bridge.segment import read_segment, sealed_path
from pipelines.errors import ConflictError, CorruptLakeError
from pipelines.ingest.admit import DropReport, Head
from pipelines.labels.rule_columns import LabelPin
from pipelines.lake.books import EpochKey
from pipelines.lake.files import bridges_of
from pipelines.lake.lake import Lake
from pipelines.lake.layout import landing_folder, pins_path, plan_path
from schemas.contract import Contract
from schemas.errors import SchemaError
from schemas.policy import Policy
from schemas.ranges import Ranges
from schemas.reported import Reported, decode_reported

ITEM_BYTES = 64 * 1024 * 1024
LOOKS_BEYOND_A_HOLE = 8

_HEAD_COLUMNS = ("kind", "device", "stream", "epoch", "first_seq", "count")


class SegmentRef(msgspec.Struct, frozen=True):
    """One sealed segment. `skip_reason` says why its bytes cannot be trusted; such a segment is skipped, not read."""

    bridge: str
    number: int
    bytes: int
    skip_reason: str = msgspec.field(name="set_aside", default="")


class Pins(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rules of a run: every contract version and every policy it may use, and the versions of labels that policies read."""

    contracts: tuple[Contract, ...]
    policies: tuple[Policy, ...]
    labels: tuple[LabelPin, ...] = ()

    def contract(self, stream: str, version: str | None) -> Contract | None:
        """The contract of a stream in that version; the newest for None."""
        named = [contract for contract in self.contracts if contract.name == stream]
        if version is not None:
            return next((contract for contract in named if contract.version == version), None)
        return max(named, key=version_order, default=None)


class ReplayItem(msgspec.Struct, frozen=True):
    """A quarantined row that a run replays or discards (`outcome`); `spans` are its seqs, `count` its samples."""

    id: str
    outcome: str
    device: str
    stream: str
    epoch: int
    spans: tuple[tuple[int, int], ...]
    count: int


class Plan(msgspec.Struct, frozen=True):
    """The work of run `run`: read `segments` in this order by the rules `pins`, then leave the cursors at `next_numbers`.

    With `replay_items` it carries out a request instead: message k of its one segment holds the seqs of release k.
    """

    run: int
    planned_at_us: int
    pins: str
    segments: tuple[SegmentRef, ...]
    next_numbers: dict[str, int]
    replay_items: tuple[ReplayItem, ...] = msgspec.field(name="releases", default=())

    def items(self) -> list[tuple[int, ...]]:
        """The work items: indexes of neighbouring segments, together about `ITEM_BYTES`, so that files are not tiny."""
        packed: list[tuple[int, ...]] = []
        current: list[int] = []
        size = 0
        for index, segment in enumerate(self.segments):
            if segment.skip_reason:
                continue
            if current and size + segment.bytes > ITEM_BYTES:
                packed.append(tuple(current))
                current, size = [], 0
            current.append(index)
            size += segment.bytes
        return [*packed, tuple(current)] if current else packed


def version_order(contract: Contract) -> tuple[int, ...]:
    """Sorts versions as numbers: 1.10.0 is newer than 1.9.0."""
    return tuple(int(part) for part in contract.version.split("."))


def make_plan(run: int, now_us: int, pins: str, cursors: Mapping[str, int], found: Sequence[SegmentRef]) -> Plan | None:
    """The next plan; None if nothing waits.

    Args:
        run: its number.
        now_us: microseconds since 1970; becomes `quarantined_at` and so must be pinned too.
        pins: the digest of the rules.
        cursors: per bridge, the next number to read before this plan.
        found: sealed segments, per bridge in order and without gaps.
    """
    if not found:
        return None
    ordered = tuple(sorted(found, key=lambda segment: (segment.bridge, segment.number)))
    after = dict(cursors)
    for segment in ordered:
        assert segment.number == after.get(segment.bridge, 1), "segments are read in order, without gaps"
        after[segment.bridge] = segment.number + 1
    return Plan(run, now_us, pins, ordered, after)


def encode_pins(pins: Pins) -> bytes:
    """The canonical JSON form."""
    ordered = Pins(
        tuple(sorted(pins.contracts, key=lambda contract: (contract.name, version_order(contract)))),
        tuple(sorted(pins.policies, key=lambda policy: policy.id)),
        pins.labels,
    )
    return msgspec.json.encode(ordered)


def pins_digest(body: bytes) -> str:
    """The name of pins: the SHA-256 of their canonical form."""
    return hashlib.sha256(body).hexdigest()


def find_segments(lake: Lake, cursors: Mapping[str, int], limit: int) -> list[SegmentRef]:
    """Sealed segments that wait, by asking for the next number of each bridge: a landing of a million files costs nothing.

    Args:
        lake: the lake.
        cursors: per bridge, the next number to read.
        limit: how many at most, shared fairly by the bridges.
    """
    bridges = bridges_of(lake)
    found: list[SegmentRef] = []
    share = max(1, limit // max(1, len(bridges)))
    for bridge in bridges:
        number, folder = cursors.get(bridge, 1), landing_folder(lake.root, bridge)
        for wanted in range(number, number + share):
            size = lake.size(sealed_path(folder, wanted))
            if size is not None:
                found.append(SegmentRef(bridge, wanted, size))
            elif _is_lost(lake, folder, wanted):
                found.append(SegmentRef(bridge, wanted, 0, f"{sealed_path(folder, wanted)}: is gone, and later ones are there"))
            else:
                break
    return found


def _is_lost(lake: Lake, folder: Path, number: int) -> bool:
    """Whether a segment was taken away: a bridge leaves no gap, so nothing would ever come to fill it.

    Where a look costs a request nobody looks: there a bridge closes the gap itself.
    """
    if lake.store.looks_per_listing > 1:
        return False
    return any(lake.size(sealed_path(folder, later)) is not None for later in range(number + 1, number + 1 + LOOKS_BEYOND_A_HOLE))


def write_pins(lake: Lake, pins: Pins) -> str:
    """Store the rules under their digest, which is returned; nothing is written if they are there."""
    body = encode_pins(pins)
    digest = pins_digest(body)
    path = pins_path(lake.root, digest)
    if not lake.local(path).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
        lake.put(path, body)
    return digest


def read_pins(lake: Lake, digest: str) -> Pins:
    """The rules of that digest.

    Raises:
        CorruptLakeError: they are missing or not what was stored.
    """
    path = pins_path(lake.root, digest)
    try:
        body = lake.local(path).read_bytes()
        if pins_digest(body) != digest:
            raise CorruptLakeError(f"{path}: its bytes do not match its name; restore it")
        return msgspec.json.decode(body, type=Pins)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise CorruptLakeError(f"{path}: the rules of a run cannot be read ({error}); restore it") from error


def write_plan(lake: Lake, plan: Plan) -> None:
    """Store a plan under its number, durable, never over another.

    Raises:
        ConflictError: there is a plan of that number.
    """
    path = plan_path(lake.root, plan.run)
    try:
        lake.create(path, msgspec.json.encode(plan))
    except ConflictError as error:
        raise ConflictError(f"{path}: run {plan.run} is planned already; run that plan") from error


def read_plan(lake: Lake, run: int) -> Plan | None:
    """The plan of a run; None if there is none.

    Raises:
        CorruptLakeError: it is not a plan.
    """
    try:
        return msgspec.json.decode(lake.read(plan_path(lake.root, run)), type=Plan)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{plan_path(lake.root, run)}: not a plan ({error}); restore it") from error


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
    """Return the path of a segment."""
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
