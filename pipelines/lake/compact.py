"""Compaction: the many small files that frequent runs write become few large ones, sorted by device and time.

New files are written and made durable under names that follow from what they replace, then one commit swaps them in. Old
files stay until `vacuum`, so a reader of a pinned version is never disturbed. A crash before the commit leaves files that
the next compaction writes again, or `vacuum` takes away.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from deltalake import DeltaTable

from pipelines.errors import CorruptLakeError
from pipelines.lake.commit import live_sizes, swap_files
from pipelines.lake.compact_plan import MIN_FILES, MIN_LASTING_FILES, Small, bins, name_of, tiers
from pipelines.lake.delta_log import REMOVED_SCHEMA, remember_removed
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import ARCHIVE, COMMITS, LABELS, PAYLOAD, QUARANTINE, QUARANTINE_CLOSED, ROLLUPS, STREAMS, stream_table
from pipelines.lake.payload_drop import SHARD, drop_unnamed, is_own_shard, named_rows, rewrite_shards, turn_references
from pipelines.lake.quarantined import closed
from pipelines.lake.reference import checked_name, referred_path, table_path
from pipelines.lake.rollup import merged_table, rollup_table
from pipelines.lake.table import open_table, private_of, read_files
from pipelines.lake.workplace import workplace

log = structlog.get_logger(__name__)
_SORT = ("device", "event_time", "epoch", "seq")


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of one table."""

    table: str
    files_before: int
    files_after: int
    bytes_rewritten: int
    rows: int


def compact_all(lake: Lake, min_files: int = MIN_FILES) -> list[Compacted]:
    """Compact every table of the lake, and drop the payloads that no row names.

    Raises:
        ConflictError: runs kept committing meanwhile.
        CorruptLakeError: a table cannot be read.
        OSError: the disk refused.
    """
    tables = [
        *(stream_table(stream) for stream in lake.folders(STREAMS)),
        *(rollup_table(stream) for stream in lake.folders(ROLLUPS)),
        *(f"{LABELS}/{task}" for task in lake.folders(LABELS)),
        COMMITS,
        ARCHIVE,
        QUARANTINE_CLOSED,
        QUARANTINE,
    ]
    found: list[Compacted] = []
    for name in tables:
        with workplace(lake, "compact") as there:
            done = compact_table(there, name, min_files)
            drop_unnamed(there, name)
        found += [] if done is None else [done]
    return found


def compact_table(lake: Lake, name: str, min_files: int = MIN_FILES) -> Compacted | None:
    """Compact one table; None if nothing in it was worth it."""
    table = open_table(lake, name)
    if table is None:
        return None
    before = live_sizes(table)
    small = _live(lake, name, table)
    gone = frozenset(closed(lake).column("id").to_pylist()) if name == QUARANTINE else frozenset()
    groups = tiers(small, max(min_files, MIN_LASTING_FILES)) if _stays_readable(name) else bins(small, min_files)
    rows = sum(_compact_group(lake, name, table, group, gone) for group in groups)
    if not groups:
        return None
    rewritten = sum(file.bytes for group in groups for file in group)
    after = open_table(lake, name)
    done = Compacted(name, len(before), len(live_sizes(after)) if after is not None else 0, rewritten, rows)
    log.info("compacted", table=name, files_before=done.files_before, files_after=done.files_after, rows=rows)
    return done


def _live(lake: Lake, name: str, table: DeltaTable) -> list[Small]:
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = (actions.column(column).to_pylist() for column in ("path", "num_records", "size_bytes"))
    has_payload = any(field.name == SHARD for field in table.schema().fields) and name.startswith(f"{STREAMS}/")
    return [
        Small(path, rows or 0, size, _payload_bytes(lake, table_path(lake, name, path)) if has_payload else 0)
        for path, rows, size in zip(*columns, strict=True)
    ]


def _payload_bytes(lake: Lake, path: Path) -> int:
    named = pq.read_table(path, columns=[SHARD], partitioning=None)
    of = f"a row of {path}"
    sizes = {shard: lake.size(lake.root / shard) for shard in _own_shards(lake, named, of)}
    gone = [shard for shard, size in sizes.items() if size is None]
    if gone:
        raise CorruptLakeError(f"{lake.root / gone[0]}: is gone, and rows of {path} refer to it; restore it")
    return sum(size or 0 for size in sizes.values())


def _own_shards(lake: Lake, rows: pa.Table, of: str) -> list[str]:
    """The payload shards that rows refer to, without whole objects and chips' pictures, which stay where they are.

    Raises:
        BadReferenceError: a reference leads out of the lake, or what it names below `payload/` is a link or no plain file,
            be it called like a shard or not.
    """
    if SHARD not in rows.column_names:
        return []
    shards = pc.unique(rows.column(SHARD)).to_pylist()
    named = [checked_name(shard, of) for shard in shards if shard is not None]
    for shard in named:
        if shard.startswith(f"{PAYLOAD}/"):
            referred_path(lake, shard, of, fetch=False)
    return sorted(shard for shard in named if is_own_shard(shard, PAYLOAD))


def _compact_group(lake: Lake, name: str, table: DeltaTable, group: Sequence[Small], gone: Collection[str]) -> int:
    rows = read_files(lake, name, table, [file.path for file in group])
    if gone:
        rows = rows.filter(pc.invert(pc.is_in(rows.column("id"), pa.array(sorted(gone), pa.string()))))
    if not rows.num_rows:
        swap_files(lake, name, [file.path for file in group], [], {"catchment.compact": "all of it was replayed or discarded"})
        return 0
    rows = _with_one_shard(lake, name, rows, group)
    if name.startswith(f"{ROLLUPS}/"):
        rows = merged_table(rows)
    keys = [key for key in _SORT if key in rows.column_names]
    if "device" in keys and "event_time" in keys:
        rows = rows.sort_by([(key, "ascending") for key in keys])
    new = write_table_file(lake, name, name_of(group), rows, private_of(table, rows.schema), lasting=True)
    if _stays_readable(name):
        # Before they are removed: vacuum must not take what an older version names.
        paths = pa.array([Path(file.path).name for file in group])
        removed = pa.table([paths, pa.array([round(time.time() * 1_000)] * len(group), pa.int64())], REMOVED_SCHEMA)
        remember_removed(lake, name, removed, 0)
    swapped = swap_files(lake, name, [file.path for file in group], [new], {"catchment.compact": str(len(group))})
    lake.evict([lake.root / new.path, *(lake.root / name / file.path for file in group)])
    if not swapped:
        log.warning("compaction_overtaken", table=name, files=len(group))
    return int(rows.num_rows)


def _stays_readable(name: str) -> bool:
    """Whether sets and runs pin versions of a table for good."""
    return name.startswith(f"{LABELS}/")


def _with_one_shard(lake: Lake, name: str, rows: pa.Table, group: Sequence[Small]) -> pa.Table:
    """The payloads that these rows name put together as one shard, and the rows' references turned to it."""
    old = named_rows(rows)
    if len(old) < 2 or not name.startswith(f"{STREAMS}/"):
        return rows
    path = f"{PAYLOAD}/{name.removeprefix(f'{STREAMS}/')}/{name_of(group)}"
    return turn_references(rows, rewrite_shards(lake, {shard: old[shard] for shard in sorted(old)}, path))
