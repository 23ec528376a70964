"""The commits of a run, in an order that any crash may interrupt: stream tables, quarantine, and last the pointer table."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pyarrow as pa

from pipelines.contracts.arrow import private_columns, table_schema
from pipelines.errors import ConfigError
from pipelines.ingest.plan import Pins, Plan
from pipelines.ingest.plan_files import read_pins
from pipelines.ingest.quarantine import (
    BODY_NONE,
    PRIVATE,
    QUARANTINE_SCHEMA,
    STAGE_LANDING,
    Origin,
    Rejection,
    rejections_table,
)
from pipelines.lake.books import BooksKey, Counts, books_by_stream
from pipelines.lake.commit import commit_once
from pipelines.lake.files import NewFile, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, QUARANTINE, QUARANTINE_CLOSED, ledger_path, stream_table
from pipelines.lake.quarantined import CLOSED_SCHEMA

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
