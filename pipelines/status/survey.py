"""Survey the lake: waiting samples and since when, committed ones, and whether the books balance.

Devices that stand out are listed: the core refuses all that one of their streams sends, or their settled ranges are many.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.bridge.segment import SEALED_SUFFIX, sealed_path
from pipelines.heartbeat import Heartbeat, read_heartbeats, read_remote_heartbeats
from pipelines.ingest.fault_breaker import FaultStreak, read_faults
from pipelines.ingest.plan import Plan, find_segments, read_pins, read_plan
from pipelines.ingest.quarantine import open_requests
from pipelines.inspect.suspended import Suspension, SuspensionBook
from pipelines.lake.books import IN_ROW, Counts
from pipelines.lake.commit import APP, committed_run
from pipelines.lake.files import bridges_of
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, landing_folder, stream_table
from pipelines.lake.ledger import Ledger
from pipelines.lake.ledger_files import read_ledger
from pipelines.lake.quarantined import Where, heads
from pipelines.lake.store import Stored
from pipelines.policy.documents import active_policies
from schemas.receipts import ALL_REFUSED_FROM

MAX_NAMED = 20


RECENT_RUNS = 50
MAX_WAITING = 10_000
MAX_OPENED = 64
MAX_FETCHED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RefusedDevice:
    """The core refuses all that a stream of a device sends: `samples` in a row, mostly for `reason`.

    Stream "": messages that named none. `others`: so many more streams of the device are refused entirely, with fewer samples.
    """

    device: str
    stream: str
    samples: int
    reason: str
    others: int = 0


@dataclass(frozen=True, slots=True)
class CrowdedDevice:
    """A device with many settled ranges."""

    device: str
    ranges: int


@dataclass(frozen=True, slots=True)
class Devices:
    """Facts on single devices for a person: the first of each kind, and how many there are.

    `refused` has one entry for each device, `refused_streams` counts the streams of all.
    """

    refused: tuple[RefusedDevice, ...] = ()
    refused_count: int = 0
    refused_streams: int = 0
    crowded: tuple[CrowdedDevice, ...] = ()
    ranges: int = 0


def devices_of(ledger: Ledger) -> Devices:
    """Look through the ledger, column by column."""
    whole = ledger.whole()
    committed, quarantined, in_row = (whole.books[name].to_numpy() for name in ("committed", "quarantined", IN_ROW))
    is_total = (quarantined > 0) & ((in_row >= ALL_REFUSED_FROM) | (committed == 0))
    books = whole.books.filter(is_total).sort_by([("device", "ascending"), (IN_ROW, "descending"), ("stream", "ascending")])
    first = books.group_by("device", use_threads=False).aggregate(
        [("stream", "first"), (IN_ROW, "first"), ("reason", "first"), ("stream", "count")]
    )
    names = ("device", "stream_first", f"{IN_ROW}_first", "reason_first", "stream_count")
    rows = zip(*(first.slice(0, MAX_NAMED)[name].to_pylist() for name in names), strict=True)
    refused = tuple(RefusedDevice(device, stream, samples, why, count - 1) for device, stream, samples, why, count in rows)
    counts = pc.value_counts(whole.settled["device"].combine_chunks())
    order = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])[:MAX_NAMED]
    crowded = tuple(CrowdedDevice(row["values"], row["counts"]) for row in counts.take(order).to_pylist())
    return Devices(refused, first.num_rows, books.num_rows, crowded, whole.settled.num_rows)


@dataclass(slots=True)
class StreamStatus:
    """One stream. `rows` is what its table holds, None while a run commits: fewer than committed if some were deleted since."""

    stream: str
    counts: Counts
    rows: int | None
    waiting: int = 0
    oldest_waiting_us: int | None = None
    last_commit_us: int | None = None
    recent_samples: int = 0
    recent_quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Sealed segments of one bridge that no run has taken."""

    bridge: str
    segments: int
    bytes: int
    oldest_us: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The core at one moment; times are microseconds since 1970.

    Of a lake that `is_remote`, `heartbeats` are those of this working copy, and `remote_heartbeats` those of the others.
    """

    at_us: int
    run: int
    last_commit_us: int | None
    recent_span_us: int
    streams: tuple[StreamStatus, ...]
    waiting: tuple[Waiting, ...]
    unbalanced: tuple[str, ...]
    quarantined_open: dict[str, int]
    open_requests: int
    heartbeats: tuple[Heartbeat, ...] = field(default=())
    suspended: tuple[Suspension, ...] = field(default=())
    is_remote: bool = False
    faults: FaultStreak = field(default=FaultStreak())
    remote_heartbeats: tuple[Heartbeat, ...] = ()
    devices: Devices = field(default=Devices())

    @property
    def oldest_waiting_us(self) -> int | None:
        """The landing time of the oldest segment that waits."""
        return min((one.oldest_us for one in self.waiting), default=None)


def survey(lake: Lake, now_us: int) -> Survey:
    """Look at the lake.

    Raises:
        CorruptLakeError: the ledger cannot be read.
    """
    run = committed_run(lake, COMMITS)
    ledger = read_ledger(lake, run)
    plan = read_plan(lake, run) if run else None
    streams = {
        name: StreamStatus(name, counts, _rows(lake, name, run)) for name, counts in ledger.books_by_stream().items() if name
    }
    last_us, span_us = _recent(lake, run, streams)
    waiting = _waiting(lake, plan, streams)
    heartbeats = tuple(read_heartbeats(lake))
    return Survey(
        now_us,
        run,
        last_us,
        span_us,
        tuple(streams[name] for name in sorted(streams)),
        waiting,
        tuple(f"{device}/{stream}" for device, stream in ledger.unbalanced()),
        _quarantined(lake),
        len(open_requests(lake)),
        heartbeats,
        _suspended(lake, plan),
        lake.store.remote_config is not None,
        read_faults(lake),
        tuple(read_remote_heartbeats(lake, heartbeats)),
        devices_of(ledger),
    )


def _suspended(lake: Lake, plan: Plan | None) -> tuple[Suspension, ...]:
    """Of the policies that the next run tags by: those applied, and those of the folder that the last run had."""
    applied = active_policies(lake)
    ids = {policy.id for policy in applied}
    others = read_pins(lake, plan.pins).policies if plan is not None else ()
    return SuspensionBook(lake).in_force((*applied, *(policy for policy in others if policy.id not in ids)))


def _rows(lake: Lake, stream: str, run: int) -> int | None:
    table = lake.view().table(stream_table(stream))
    if table is None:
        return 0
    if (table.transaction_version(APP) or 0) > run:
        return None  # the run after `run` is committing: its rows are there, its books not yet
    actions = pa.table(table.get_add_actions(flatten=True))
    return int(pc.sum(actions.column("num_records")).as_py() or 0)


def _recent(lake: Lake, run: int, streams: dict[str, StreamStatus]) -> tuple[int | None, int]:
    """The last commit, and the time that the last `RECENT_RUNS` took; per stream what they brought."""
    table = lake.view().table(COMMITS)
    if table is None:
        return None, 0
    columns = ["run", "committed_at", "streams"]
    rows = (
        table.to_pyarrow_dataset()
        .to_table(columns=columns, filter=pc.field("run") > run - RECENT_RUNS)
        .sort_by("run")
        .to_pylist()
    )
    for row in rows:
        for name, counts in json.loads(row["streams"]).items():
            found = streams.get(name)
            if found is not None:
                found.recent_quarantined += max(0, counts.get("quarantined", 0))  # below 0: replayed or discarded
            if found is not None and counts.get("committed"):
                found.recent_samples += counts["committed"]
                found.last_commit_us = _micros(row["committed_at"])
    if not rows:
        return None, 0
    first, last = _micros(rows[0]["committed_at"]), _micros(rows[-1]["committed_at"])
    return last, last - first


def _waiting(lake: Lake, plan: Plan | None, streams: dict[str, StreamStatus]) -> tuple[Waiting, ...]:
    cursors = plan.next_numbers if plan is not None else {}
    by_bridge: dict[str, list[Any]] = defaultdict(list)
    unread = MAX_FETCHED_BYTES
    for place, file in enumerate(_landed(lake, cursors)):
        by_bridge[file.name.split("/")[1]].append((file.bytes, round(file.modified_s * 1e6)))
        unread -= file.bytes
        if place < MAX_OPENED and (unread >= 0 or lake.store.has_local(file.name)):
            _count_waiting(lake, file, streams)
    return tuple(
        Waiting(bridge, len(found), sum(size for size, _ in found), min(at for _, at in found))
        for bridge, found in sorted(by_bridge.items())
    )


def _landed(lake: Lake, cursors: Mapping[str, int]) -> list[Stored]:
    """Sealed segments that wait; where a look costs a request, by listing what comes after the cursors."""
    if lake.store.looks_per_listing == 1:
        paths = [
            sealed_path(landing_folder(lake.root, segment.bridge), segment.number)
            for segment in find_segments(lake, cursors, MAX_WAITING)
            if not segment.skip_reason
        ]
        return [Stored(lake.name_of(path), (stat := path.stat()).st_size, stat.st_mtime) for path in paths]
    found: list[Stored] = []
    for bridge in bridges_of(lake):
        folder = landing_folder(lake.root, bridge)
        last = lake.name_of(sealed_path(folder, cursors.get(bridge, 1) - 1))
        found += [file for file in lake.files(lake.name_of(folder), last) if file.name.endswith(SEALED_SUFFIX)]
    return found


def _count_waiting(lake: Lake, file: Stored, streams: dict[str, StreamStatus]) -> None:
    """Samples per stream in a waiting segment, by its heads; a segment that cannot be read is the run's to judge."""
    try:
        with _opened(lake, file.name) as source:
            table = pa.ipc.open_stream(source).read_all().select(["stream", "count", "received_at"])
    except (OSError, pa.ArrowException):
        return
    table = table.set_column(2, "received_at", table.column("received_at").cast(pa.int64()))
    for row in table.group_by("stream").aggregate([("count", "sum"), ("received_at", "min")]).to_pylist():
        if row["stream"] is None:
            continue
        found = streams.setdefault(row["stream"], StreamStatus(row["stream"], Counts(), None))
        found.waiting += row["count_sum"] or 0
        found.oldest_waiting_us = min(found.oldest_waiting_us or row["received_at_min"], row["received_at_min"])


def _opened(lake: Lake, name: str) -> Any:
    return pa.memory_map(str(lake.root / name)) if lake.store.has_local(name) else pa.BufferReader(lake.read(lake.root / name))


def _quarantined(lake: Lake) -> dict[str, int]:
    rows = heads(lake, Where()).group_by(["stage"]).aggregate([("count", "sum")]) if lake.view().table("quarantine") else None
    return {} if rows is None else {row["stage"]: row["count_sum"] for row in rows.to_pylist()}


def _micros(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def as_plain(found: Survey) -> dict[str, Any]:
    """For JSON."""
    plain: dict[str, Any] = msgspec.to_builtins(found)
    return plain
