"""Rows made again from raw landing, by today's contracts and policies, as a new version of their tables.

The landed segments of a range are run once more, all steps of it, in a small lake of their own. Then, table by table, each row
that has come out again takes the place of the row of its key, in one commit. Keys, runs and payloads stay as they are, so
the books do too: what was refused then is for `quarantine replay`, and a row that would be refused today stays as it was.
A reader of an older version sees the rows of before.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from catchment.runtime.clock import Clock
from pipelines.bridge.segment import sealed_path
from pipelines.config import CoreConfig
from pipelines.errors import ConflictError, NotFoundError, RefusedError
from pipelines.ingest.loop import NoReceipts, RunLoop, load_state
from pipelines.lake.commit import live_sizes, swap_files
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake, lake_at, lake_of, read_objects_through
from pipelines.lake.layout import LABELS, STREAMS, backfills_folder, landing_folder, stream_table
from pipelines.lake.rollup import Stale, leave_word, roll_up_again, span_of
from pipelines.lake.table import ensure_table, open_table, private_of
from pipelines.lake.workplace import workplace
from pipelines.policy.documents import FOLDER
from pipelines.runners.engine import Engine

log = structlog.get_logger(__name__)
ATTEMPTS = 5
_RANGE = re.compile(r"(?:([a-z0-9][a-z0-9-]*):)?([0-9]{1,12})-([0-9]{1,12})")
_KEY = ["device", "epoch", "seq"]
# Where the payload lies, and when and in which run the sample came, are facts of the row that is there.
_KEPT = ("received_at", "run", "payload_shard", "payload_row", "payload_offset", "payload_length")


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments `low` to `high` of one bridge, both included; bridge "": the only one there is."""

    bridge: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Backfilled:
    """The result for one stream: rows made again, files written, and the table's version."""

    stream: str
    rows: int
    files: int
    version: int


def segments_of(text: str) -> Segments:
    """Read `<bridge>:<low>-<high>` or `<low>-<high>`.

    Raises:
        RefusedError: not of that form.
    """
    found = _RANGE.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= int(found[3]):
        raise RefusedError(f"range {text[:80]!r}: give segments as <first>-<last> or <bridge>:<first>-<last>, counted from 1")
    return Segments(found[1] or "", int(found[2]), int(found[3]))


def backfill(core: CoreConfig, segments: Segments, engine: Engine, clock: Clock) -> list[Backfilled]:
    """Run a range of landed segments again and replace the rows they made. For the holder of the maintenance lease.

    Of a remote lake segments and the files whose rows change are fetched to this machine, and all of it is done in this process.

    Raises:
        NotFoundError: a segment is no longer in landing.
        RefusedError: a segment has not been run yet, or there are several bridges and none is named.
        ConflictError: others kept rewriting the same files.
        RetryLaterError: the storage is away.
    """
    lake = lake_of(core)
    segments = _checked(lake, segments)
    with workplace(lake, "backfill") as there:
        side_root = backfills_folder(there.root) / f"{segments.bridge}-{segments.low}-{segments.high}"
        _lay_out(there, side_root, segments)
        here = msgspec.structs.replace(core, lake=str(side_root), remote=None)
        loop = RunLoop(here, NoReceipts(), clock, engine if core.remote is None else Engine())
        while loop.step():
            pass
        made = sorted(folder.name for folder in (side_root / STREAMS).iterdir()) if (side_root / STREAMS).is_dir() else []
        done = [_adopt(there, side_root, stream) for stream in made if open_table(there, stream_table(stream)) is not None]
        shutil.rmtree(side_root)
    roll_up_again(lake)
    return done


def _checked(lake: Lake, segments: Segments) -> Segments:
    cursors = load_state(lake).cursors
    bridge = segments.bridge or (next(iter(cursors)) if len(cursors) == 1 else "")
    if bridge not in cursors:
        raise RefusedError(f"name the bridge, as in {next(iter(cursors), 'bridge-0')}:{segments.low}-{segments.high}")
    if segments.high >= cursors[bridge]:
        raise RefusedError(
            f"segment {segments.high} of {bridge} has not been run yet; the last that has is {cursors[bridge] - 1}"
        )
    for number in range(segments.low, segments.high + 1):
        if lake.size(sealed_path(landing_folder(lake.root, bridge), number)) is None:
            raise NotFoundError(
                f"segment {number} of {bridge} is no longer in landing; maintain.keep_landing_h says how long it is"
            )
    return Segments(bridge, segments.low, segments.high)


def _lay_out(lake: Lake, side_root: Path, segments: Segments) -> None:
    """The small lake: the same segments under numbers from 1, the same objects, policies and labels."""
    landing = landing_folder(side_root, segments.bridge)
    landing.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(range(segments.low, segments.high + 1), 1):
        target = sealed_path(landing, place)
        if not target.exists():
            landed = lake.local(sealed_path(landing_folder(lake.root, segments.bridge), number))
            os.link(landed, target)
            lake.evict([landed])
    read_objects_through(lake, side_root)
    for file in lake.files(FOLDER):
        lake.local(lake.root / file.name)
    if (lake.root / FOLDER).is_dir() and not (side_root / FOLDER).exists():
        (side_root / FOLDER).symlink_to((lake.root / FOLDER).resolve())
    for file in lake.files(LABELS):  # a table is not opened through a link, and files of labels never change
        (side_root / file.name).parent.mkdir(parents=True, exist_ok=True)
        if not (side_root / file.name).exists():
            os.link(lake.local(lake.root / file.name), side_root / file.name)


def _adopt(lake: Lake, side_root: Path, stream: str) -> Backfilled:
    name = stream_table(stream)
    made = open_table(lake_at(side_root), name)
    assert made is not None
    fresh = pa.table(made.to_pyarrow_table())
    for _ in range(ATTEMPTS):
        table = ensure_table(lake, name, fresh.schema)
        old, new, rows = [], [], 0
        for path, replaced, count, span in _replaced(lake, stream, sorted(live_sizes(table)), fresh):
            if span is not None:
                leave_word(lake, span)
            digest = hashlib.sha256(f"{side_root.name}\n{path}".encode()).hexdigest()[:24]
            new.append(write_table_file(lake, name, f"backfill-{digest}.parquet", replaced, private_of(table, replaced.schema)))
            old.append(path)
            rows += count
            lake.evict([lake.root / name / path])
        if not old or swap_files(lake, name, old, new, {"catchment.backfill": side_root.name}, changes_rows=True):
            after = open_table(lake, name)
            lake.evict([lake.root / file.path for file in new])
            log.info("backfilled", stream=stream, rows=rows, files=len(new))
            return Backfilled(stream, rows, len(new), after.version() if after is not None else 0)
    raise ConflictError(f"{name}: others rewrote the same files {ATTEMPTS} times meanwhile; try again")


def _replaced(lake: Lake, stream: str, paths: list[str], fresh: pa.Table) -> Iterator[tuple[str, pa.Table, int, Stale | None]]:
    """Each file that has rows of the fresh keys, with those rows made again, and the time they span, before and after."""
    remade = pl.from_arrow(fresh)
    assert isinstance(remade, pl.DataFrame)
    for path in paths:
        file = lake.local(lake.root / stream_table(stream) / path)
        before = pl.from_arrow(pq.read_table(file, partitioning=None))
        assert isinstance(before, pl.DataFrame)
        hit = remade.join(before.select(*_KEY, *(name for name in _KEPT if name in before.columns)), on=_KEY, suffix="_before")
        if not hit.height:
            lake.evict([file])
            continue
        kept = [name for name in _KEPT if f"{name}_before" in hit.columns]
        rows = hit.with_columns(pl.col(f"{name}_before").alias(name) for name in kept).select(remade.columns)
        rest = before.join(rows.select(_KEY), on=_KEY, how="anti")
        whole = pl.concat([rest, rows], how="diagonal_relaxed").sort(*_KEY).to_arrow()
        was = before.join(rows.select(_KEY), on=_KEY, how="semi")
        yield path, _as(whole, fresh.schema), hit.height, span_of(stream, was, rows)


def _as(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Polars has its own text and list types; the table has the schema's."""
    fields = [schema.field(name) if name in schema.names else rows.schema.field(name) for name in rows.column_names]
    plain = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in fields]
    return rows.cast(pa.schema(plain))
