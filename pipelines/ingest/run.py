"""One run, from plan to ledger to commit. Every step may be repeated: a run that a crash interrupted ends the same.

1. plan n is on disk                     4. prepared.json: all files of the run are durable
2. heads -> admission (pure)             5. ledger n and books n, checked to balance
3. the graph writes files                6. tables in name order, quarantine, and last `commits`: the pointer to the truth
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from types import MappingProxyType

import msgspec
import pyarrow as pa

from pipelines.contracts.arrow import private_columns, table_schema
from pipelines.errors import ConfigError, CorruptLakeError, FaultError
from pipelines.ingest.admit import (
    MAX_DEVICE_STREAMS,
    Admission,
    Beyond,
    BeyondSpan,
    Bounds,
    FreshSpans,
    Head,
    admit,
)
from pipelines.ingest.chips.requests import request_run
from pipelines.ingest.fault_breaker import (
    FaultBreaker,
    FaultStreak,
    faults_of,
    is_systemic,
    keep_faults,
    paused,
    read_faults,
    streak_after,
)
from pipelines.ingest.graph import run_graph
from pipelines.ingest.plan import Pins, Plan, SegmentHeads, SegmentRef, listed_epochs, read_heads, read_pins, segment_path
from pipelines.ingest.quarantine import (
    BODY_NONE,
    DISCARD,
    PRIVATE,
    QUARANTINE_SCHEMA,
    STAGE_FLOOR,
    STAGE_HEAD,
    STAGE_LANDING,
    Origin,
    Rejection,
    rejections_table,
)
from pipelines.ingest.work import Limits, Prepared, Unadmitted, Work
from pipelines.lake.books import BooksKey, Counts, books_by_stream, floors_of, streams_of
from pipelines.lake.commit import commit_once
from pipelines.lake.files import NewFile, payload_paths, upload_run, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, QUARANTINE, QUARANTINE_CLOSED, ledger_path, prepared_path, stream_table
from pipelines.lake.ledger import MAX_DEVICE_RANGES, Ledger
from pipelines.lake.ledger_files import write_ledger
from pipelines.lake.quarantined import CLOSED_SCHEMA
from pipelines.runners.engine import Engine

COMMITS_AT_ONCE = 8
_LATER = frozenset({QUARANTINE, QUARANTINE_CLOSED})
COMMITS_SCHEMA = pa.schema(
    [
        pa.field("run", pa.int64()),
        pa.field("committed_at", pa.timestamp("us", "UTC")),
        pa.field("streams", pa.string()),
        pa.field("segments", pa.string()),
        pa.field("ledger", pa.string()),
        pa.field("pins", pa.string()),
    ]
)
LATE = "below the floor of its stream: gaps this old were closed, so it may be a copy of a row; it is kept here"
TOO_MANY_STREAMS = f"the device has {MAX_DEVICE_STREAMS} streams already, which is all that one may have"
NO_HEADS: Mapping[SegmentRef, SegmentHeads] = MappingProxyType({})


def publish_run(lake: Lake, plan: Plan, files: Sequence[NewFile], counts: Mapping[BooksKey, Counts]) -> None:
    """Commit everything a run wrote, each table once.

    Raises:
        ConflictError: another committer is at work.
        CorruptLakeError: a prepared file is gone.
        ConfigError: a contract gives a column another type than the table has.
    """
    pins = read_pins(lake, plan.pins)
    by_table: dict[str, list[NewFile]] = {}
    for file in [*files, *_skipped_rows(lake, plan), *_closed(lake, plan)]:
        by_table.setdefault(file.table, []).append(file)
    streams = sorted(name for name in by_table if name not in _LATER)
    _commit_all(lake, plan.run, {name: by_table[name] for name in streams}, pins)
    for table in sorted(set(by_table) & _LATER):
        _commit(lake, plan.run, table, by_table[table], pins)
    row = _commit_row(lake, plan, counts)
    commit_once(lake, COMMITS, [row], COMMITS_SCHEMA, plan.run)


def _commit_all(lake: Lake, run: int, by_table: Mapping[str, Sequence[NewFile]], pins: Pins) -> None:
    """Commit to each table; to many at once, for each waits for the disk. A crash leaves some of them done, in either case."""
    if len(by_table) <= COMMITS_AT_ONCE:
        for table, files in by_table.items():
            _commit(lake, run, table, files, pins)
        return
    with ThreadPoolExecutor(COMMITS_AT_ONCE) as pool:
        pending = [pool.submit(_commit, lake, run, table, files, pins) for table, files in by_table.items()]
    for done in pending:
        done.result()


def _commit(lake: Lake, run: int, table: str, files: Sequence[NewFile], pins: Pins) -> None:
    schema, private = _shape(table, pins)
    commit_once(lake, table, files, schema, run, private)


def stream_shape(stream: str, pins: Pins) -> tuple[pa.Schema, frozenset[str]]:
    """All columns that the pinned versions of a stream's contract have, and which of them are private.

    Raises:
        ConfigError: two versions give one column different types.
    """
    contracts = [contract for contract in pins.contracts if contract.name == stream]
    try:
        schema = pa.unify_schemas([table_schema(contract) for contract in contracts])
    except pa.ArrowException as error:
        raise ConfigError(f"contract {stream}: {error}; give the changed column a new name") from error
    return schema, private_columns(*contracts)


def _shape(table: str, pins: Pins) -> tuple[pa.Schema, frozenset[str]]:
    if table == QUARANTINE:
        return QUARANTINE_SCHEMA, PRIVATE
    if table == QUARANTINE_CLOSED:
        return CLOSED_SCHEMA, frozenset()
    return stream_shape(table.removeprefix(stream_table("")), pins)


def _skipped_rows(lake: Lake, plan: Plan) -> list[NewFile]:
    """A row for each segment whose bytes could not be trusted. It stands for no samples: devices send them again."""
    rejections = [
        Rejection(
            Origin(None, None, None, f"landing/{segment.bridge}/{segment.number}", None, ()),
            STAGE_LANDING,
            segment.skip_reason,
            None,
            0,
            b"",
            BODY_NONE,
        )
        for segment in plan.segments
        if segment.skip_reason
    ]
    if not rejections:
        return []
    table = rejections_table(rejections, plan.run, plan.planned_at_us, "landing")
    return [write_table_file(lake, QUARANTINE, f"{plan.run:012d}-landing.parquet", table, PRIVATE)]


def _closed(lake: Lake, plan: Plan) -> list[NewFile]:
    """A row for each row of the quarantine that this run replays or discards."""
    if not plan.replay_items:
        return []
    count = len(plan.replay_items)
    columns = [
        [replay_item.id for replay_item in plan.replay_items],
        [plan.run] * count,
        [replay_item.outcome for replay_item in plan.replay_items],
        [plan.planned_at_us] * count,
        [replay_item.count for replay_item in plan.replay_items],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CLOSED_SCHEMA, strict=True)]
    return [write_table_file(lake, QUARANTINE_CLOSED, f"{plan.run:012d}.parquet", pa.table(arrays, schema=CLOSED_SCHEMA))]


def _commit_row(lake: Lake, plan: Plan, counts: Mapping[BooksKey, Counts]) -> NewFile:
    streams = {name: msgspec.to_builtins(books) for name, books in books_by_stream(counts).items()}
    row = {
        "run": plan.run,
        "committed_at": plan.planned_at_us,
        "streams": json.dumps(streams, sort_keys=True),
        "segments": json.dumps(plan.next_numbers, sort_keys=True),
        "ledger": str(ledger_path(lake.root, plan.run).relative_to(lake.root)),
        "pins": plan.pins,
    }
    arrays = [pa.array([row[field.name]], field.type) for field in COMMITS_SCHEMA]
    return write_table_file(lake, COMMITS, f"{plan.run:012d}.parquet", pa.table(arrays, schema=COMMITS_SCHEMA))


@dataclass(frozen=True, slots=True)
class Admitted:
    """The heads of a plan and what admission said: verdicts per segment (its index in the plan), message and arrival.

    `places` has, per segment and message, the index of its first arrival in the admission.
    """

    heads: Mapping[int, SegmentHeads]
    admission: Admission
    fresh_by_place: Mapping[int, tuple[tuple[FreshSpans, ...], ...]]
    places: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunContext:
    """Settings of a run: the engine, the children that settle its items, limits of one envelope, when to stop."""

    engine: Engine
    limits: Limits
    worker_count: int = 0
    fault_breaker: FaultBreaker = field(default_factory=FaultBreaker)
    max_device_ranges: int = MAX_DEVICE_RANGES


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The ledger after a run, the devices whose receipts it changes, and what these tell as settled beyond the ledger."""

    ledger: Ledger
    devices: frozenset[str]
    beyond: Beyond


def execute(
    lake: Lake, plan: Plan, before: Ledger, context: RunContext, known: Mapping[SegmentRef, SegmentHeads] = NO_HEADS
) -> RunOutcome:
    """Carry out a plan, or what a crash left of it.

    Args:
        lake: the lake.
        plan: the plan; it is on disk.
        before: the ledger after the run before.
        context: what it is carried out with.
        known: heads that were read a moment ago, CRCs and all; the others are read.

    Raises:
        CorruptLakeError: a segment is not what was written, or the books do not balance; nothing was committed.
        ConflictError: another committer is at work.
        FaultError: our own code fails on whatever comes; nothing was committed.
    """
    admitted = admit_replay(lake, plan) if plan.replay_items else admit_plan(lake, plan, before, known)
    prepared = read_prepared(lake, plan.run) or _prepare(lake, plan, admitted, context)
    faults = check_fault_breaker(lake, plan, prepared, before, context.fault_breaker)
    counts = count_replay(plan, prepared) if plan.replay_items else count(admitted, prepared)
    reports = [report for index in sorted(admitted.heads) for report in admitted.heads[index].reports]
    after = before.after(
        plan.run,
        admitted.admission.touched,
        counts,
        listed_epochs(reports),
        reasons=reasons_of(prepared),
        max_ranges=context.max_device_ranges,
    )
    unbalanced = after.unbalanced()
    if unbalanced:
        raise CorruptLakeError(
            f"run {plan.run}: received is not committed + quarantined + discarded + duplicate for {unbalanced[:3]}; nothing was "
            f"committed. Delete {prepared_path(lake.root, plan.run)} to prepare the run again"
        )
    files = prepared.files()
    request_run(lake, plan.run, _streams_with_chips(files, read_pins(lake, plan.pins)))
    upload_run(lake, plan.run, files)
    write_ledger(lake, after)
    publish_run(lake, plan, files, counts)
    keep_faults(lake, *faults)
    lake.evict([*payload_paths(lake, files), *(segment_path(lake, segment) for segment in plan.segments)])
    devices = {key.device for key in admitted.admission.touched} | {device for device, _ in counts if device}
    return RunOutcome(after, frozenset(devices | {report.device for report in reports}), _beyond(admitted))


def _beyond(admitted: Admitted) -> Beyond:
    """The samples of streams too many: their bytes are in the quarantine now, and their devices need not send them again."""
    found: dict[str, list[BeyondSpan]] = defaultdict(list)
    turned_away = admitted.admission.turned_away
    for index, heads in admitted.heads.items() if turned_away else ():
        for message, first in zip(heads.arrivals, admitted.places[index], strict=True):
            for place, arrival in enumerate(message, first):
                if place in turned_away and isinstance(arrival, Head):
                    key, low = arrival.key, arrival.first_seq
                    found[key.device].append(BeyondSpan(key.stream, key.epoch, low, low + arrival.samples))
    return found


def admit_plan(lake: Lake, plan: Plan, before: Ledger, known: Mapping[SegmentRef, SegmentHeads] = NO_HEADS) -> Admitted:
    """Read the heads of a plan and judge them against the ledger before it.

    Raises:
        CorruptLakeError: a segment is not what was written.
    """
    heads = {
        index: known.get(segment) or read_heads(lake, segment)
        for index, segment in enumerate(plan.segments)
        if not segment.skip_reason
    }
    arrivals = [arrival for index in sorted(heads) for message in heads[index].arrivals for arrival in message]
    known_rows = before.of({arrival.key.device for arrival in arrivals})
    admission = admit(arrivals, known_rows.ranges(), Bounds(floors_of(known_rows.books), streams_of(known_rows.books)))
    fresh_by_place: dict[int, tuple[tuple[FreshSpans, ...], ...]] = {}
    places: dict[int, tuple[int, ...]] = {}
    at = 0
    for index in sorted(heads):
        sizes = [len(message) for message in heads[index].arrivals]
        firsts = tuple(accumulate(sizes, initial=at))
        fresh_by_place[index] = tuple(tuple(admission.fresh_by_place[first:end]) for first, end in pairwise(firsts))
        places[index], at = firsts[:-1], firsts[-1]
    return Admitted(heads, admission, fresh_by_place, places)


def admit_replay(lake: Lake, plan: Plan) -> Admitted:
    """A replay settles the seqs that its plan names, whatever the ledger says: they were settled as quarantined."""
    heads = {index: read_heads(lake, segment) for index, segment in enumerate(plan.segments)}
    fresh_by_place = {index: tuple((replay_item.spans,) for replay_item in plan.replay_items) for index in heads}
    return Admitted(heads, Admission([], {}), fresh_by_place)


def count_replay(plan: Plan, prepared: Prepared) -> dict[BooksKey, Counts]:
    """A replay moves samples from quarantined to committed, as far as they are accepted now; a discard, to discarded."""
    found: dict[BooksKey, Counter[str]] = defaultdict(Counter)
    for replay_item in plan.replay_items:
        books = found[replay_item.device, replay_item.stream]
        books["quarantined"] -= replay_item.count
        if replay_item.outcome == DISCARD:
            books["discarded"] += replay_item.count
    for item in prepared.items:
        for row in item.settled:
            found[row.device, row.stream].update(committed=row.committed, quarantined=row.quarantined)
    return {key: Counts(**books) for key, books in found.items()}


def count(admitted: Admitted, prepared: Prepared) -> dict[BooksKey, Counts]:
    """Count what a run adds to the books: received and duplicate from the heads, committed and quarantined from its results."""
    found: dict[BooksKey, Counter[str]] = defaultdict(Counter)
    admission = admitted.admission
    for index, heads in admitted.heads.items():
        for message, fresh_by_place, first in zip(
            heads.arrivals, admitted.fresh_by_place[index], admitted.places[index], strict=True
        ):
            for place, (arrival, fresh_spans) in enumerate(zip(message, fresh_by_place, strict=True), first):
                is_away = place in admission.turned_away
                new = sum(high - low for low, high in (*fresh_spans, *admission.late.get(place, ())))
                if isinstance(arrival, Head):
                    books = found[arrival.key.device, "" if is_away else arrival.key.stream]
                    books["received"] += arrival.samples
                    books["duplicate"] += 0 if is_away else arrival.samples - new
                elif not is_away:
                    found[arrival.key.device, arrival.key.stream]["dropped"] += new
        for device, refused in heads.refused.items():
            found[device, ""]["received"] += refused
    for item in prepared.items:
        for row in item.settled:
            found[row.device, row.stream].update(committed=row.committed, quarantined=row.quarantined)
    return {key: Counts(**books) for key, books in found.items()}


def reasons_of(prepared: Prepared) -> dict[BooksKey, Counter[str]]:
    """Count the samples of each stream that a run refused, by kind of reason."""
    found: dict[BooksKey, Counter[str]] = defaultdict(Counter)
    for item in prepared.items:
        for row in item.refusals:
            found[row.device, row.stream][row.reason] += row.count
    return found


def read_prepared(lake: Lake, run: int) -> Prepared | None:
    """Read the result of a run's graph; None if it has not come to its end."""
    path = lake.local(prepared_path(lake.root, run))
    try:
        return msgspec.json.decode(path.read_bytes(), type=Prepared)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not what a run writes ({error}); delete it, and the run prepares it again") from error


def check_fault_breaker(
    lake: Lake, plan: Plan, prepared: Prepared, ledger: Ledger, limit: FaultBreaker
) -> tuple[FaultStreak, FaultStreak]:
    """Pause a run of which (nearly) all messages meet an internal error; it is prepared again at the next try.

    Returns:
        The consecutive faults before the run and after it.

    Raises:
        FaultError: it is paused.
    """
    before, found = read_faults(lake), faults_of(prepared)
    if plan.replay_items:
        return before, before  # a replay may well meet its fault again, and then goes back to where it was
    if not found.refused or not is_systemic(found, before, ledger.devices(), limit):
        return before, streak_after(found, before, limit)
    keep_faults(lake, before, paused(plan.run, plan.planned_at_us, found, before))
    lake.delete(prepared_path(lake.root, plan.run))
    raise FaultError(
        f"run {plan.run} is paused: {found.refused} of its {found.messages} messages meet an internal error "
        f"({found.reason[:300]}). Nothing was committed and nothing is lost: once it is fixed, the run goes on by itself. "
        "`run.fault_breaker_share = 0` puts them into quarantine instead"
    )


def works(lake: Lake, plan: Plan, admitted: Admitted, limits: Limits) -> list[Work]:
    """The plan's work items with their verdicts."""
    return [
        Work(
            root=str(lake.root),
            run=plan.run,
            at_us=plan.planned_at_us,
            pins=plan.pins,
            item=item,
            segments=tuple(plan.segments[index] for index in indexes),
            fresh_by_place=tuple(
                tuple(fresh_by_place[0] if fresh_by_place else () for fresh_by_place in admitted.fresh_by_place[index])
                for index in indexes
            ),
            limits=limits,
            remote=lake.store.remote_config,
            unadmitted=tuple(one for segment, index in enumerate(indexes) for one in _unadmitted(admitted, index, segment)),
        )
        for item, indexes in enumerate(plan.items())
    ]


def _unadmitted(admitted: Admitted, index: int, segment: int) -> Iterator[Unadmitted]:
    """The envelopes of segment `index` that are late or of a stream too many; `segment` is its place in the work item."""
    admission = admitted.admission
    if not admission.late and not admission.turned_away:
        return
    for message, place in enumerate(admitted.places.get(index, ())):
        arrivals = admitted.heads[index].arrivals[message]
        if not arrivals or not isinstance(arrivals[0], Head):
            continue
        if place in admission.turned_away:
            yield Unadmitted(segment, message, STAGE_HEAD, TOO_MANY_STREAMS)
        elif place in admission.late:
            yield Unadmitted(segment, message, STAGE_FLOOR, LATE, admission.late[place])


def _streams_with_chips(files: Sequence[NewFile], pins: Pins) -> set[str]:
    """The streams of which a run has rows whose images are to be cut, once the run is committed."""
    prefix = stream_table("")
    streams = {file.table.removeprefix(prefix) for file in files if file.table.startswith(prefix)}
    return {stream for stream in streams if (contract := pins.contract(stream, None)) is not None and contract.chips}


def _prepare(lake: Lake, plan: Plan, admitted: Admitted, context: RunContext) -> Prepared:
    items = works(lake, plan, admitted, context.limits)
    if not items:
        return Prepared(plan.run, ())
    run_graph(items, lake, plan.run, context.engine, context.worker_count)
    prepared = read_prepared(lake, plan.run)
    if prepared is None or len(prepared.items) != len(items):
        done = 0 if prepared is None else len(prepared.items)
        lake.delete(prepared_path(lake.root, plan.run))
        raise CorruptLakeError(f"run {plan.run}: {context.engine.kind.value} finished {done} of {len(items)} items; use another")
    return prepared
