"""Drops payloads that no row names: deleted rows leave theirs in their shard, which is written again without them.

The files whose rows name such a shard are written again too, with their references turned, and swapped in by one commit. The old
shard stays as long as an older version of the table can be read; then the vacuum takes it away.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import structlog
from deltalake import DeltaTable

from pipelines.errors import CorruptLakeError
from pipelines.lake.files import NewFile, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import STREAMS
from pipelines.lake.reference import open_referred, table_path
from pipelines.lake.shard_rewrite import ROW, SHARD, Int64s, Rewritten, named_rows, rewrite_shards, turn_references
from pipelines.lake.swap import live_sizes, swap_files
from pipelines.lake.table import open_table, private_of
from pipelines.lake.table_rows import read_files
from pipelines.lake.thrift_compact import decode_struct
from pipelines.lake.thrift_compact import field as thrift_field

log = structlog.get_logger(__name__)
_FOOTER_ROWS = 3  # parquet.thrift: FileMetaData.num_rows


@dataclass(frozen=True, slots=True)
class Dropped:
    """What became of one table: payloads dropped, shards written again, and the bytes they had and have."""

    table: str
    payloads: int
    shards: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Shards with payloads to drop, and every file that names one of them."""

    shards: tuple[str, ...]
    files: tuple[str, ...]


def drop_unnamed(lake: Lake, name: str) -> Dropped | None:
    """Drop the payloads of one stream that none of its rows names; None if there are none.

    Raises:
        CorruptLakeError: a shard that rows name is gone, or lacks rows.
        ConflictError: runs kept committing meanwhile.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    table = open_table(lake, name) if name.startswith(f"{STREAMS}/") else None
    if table is None or not any(column.name == SHARD for column in table.schema().fields):
        return None
    by_file = {path: _named_by(lake, name, path) for path in sorted(live_sizes(table))}
    named = _merged(by_file)
    spare = {shard: _rows_in(lake, shard) - len(rows) for shard, rows in named.items()}
    wasteful = {shard for shard, count in spare.items() if count > 0}
    done = ((group, _rewrite(lake, name, table, group, named)) for group in _groups(by_file, wasteful))
    swapped = [(group, sizes) for group, sizes in done if sizes is not None]
    if not swapped:
        return None
    shards = [shard for group, _ in swapped for shard in group.shards]
    before, after = (sum(sizes[place] for _, sizes in swapped) for place in (0, 1))
    found = Dropped(name, sum(spare[shard] for shard in shards), len(shards), before, after)
    log.info("payloads_dropped", table=name, payloads=found.payloads, shards=found.shards, bytes_freed=before - after)
    return found


def _named_by(lake: Lake, name: str, path: str) -> dict[str, Int64s]:
    file = table_path(lake, name, path)
    present = [column for column in (SHARD, ROW) if column in pq.read_schema(file).names]
    found = named_rows(pq.read_table(file, columns=present, partitioning=None), with_chips=True)
    lake.evict([file])
    return found


def _merged(by_file: Mapping[str, Mapping[str, Int64s]]) -> dict[str, Int64s]:
    parts: dict[str, list[Int64s]] = {}
    for found in by_file.values():
        for shard, rows in found.items():
            parts.setdefault(shard, []).append(rows)
    return {shard: np.unique(np.concatenate(rows)) for shard, rows in sorted(parts.items())}


def _rows_in(lake: Lake, shard: str) -> int:
    """The rows of a shard, by its footer alone."""
    path = lake.root / shard
    size = lake.size(path)
    if size is None:
        raise CorruptLakeError(f"{path}: is gone, and rows refer to it; restore it")
    if lake.store.is_on_disk:
        with open_referred(lake, shard, f"a row of {STREAMS}") as file:
            return int(pq.read_metadata(file).num_rows)
    length = int.from_bytes(lake.store.read_part(shard, size - 8, 8)[:4], "little")
    return int(thrift_field(decode_struct(lake.store.read_part(shard, size - 8 - length, length)), _FOOTER_ROWS))


def _groups(by_file: Mapping[str, Mapping[str, Int64s]], wasteful: set[str]) -> Iterator[_Group]:
    """Shards and files that belong together: a file that names two shards is written once."""
    left = set(wasteful)
    while left:
        shards, files = {min(left)}, set[str]()
        while True:
            more = {path for path, found in by_file.items() if not shards.isdisjoint(found)}
            if more == files:
                break
            files = more
            shards |= {shard for path in files for shard in by_file[path] if shard in wasteful}
        left -= shards
        yield _Group(tuple(sorted(shards)), tuple(sorted(files)))


def _rewrite(lake: Lake, name: str, table: DeltaTable, group: _Group, named: Mapping[str, Int64s]) -> tuple[int, int] | None:
    """The bytes of the group's shards before and after; None if somebody else has rewritten a file meanwhile."""
    before = sum(lake.size(lake.root / shard) or 0 for shard in group.shards)
    new = [rewrite_shards(lake, {shard: named[shard]}, _new_path(shard, named[shard])) for shard in group.shards]
    files = [_write(lake, name, table, path, new) for path in group.files]
    is_done = swap_files(lake, name, group.files, files, {"catchment.payloads": str(len(group.shards))})
    lake.evict([lake.root / file.path for file in files])
    if not is_done:
        log.warning("payload_drop_overtaken", table=name, files=len(group.files))
        return None
    return before, sum(one.shard.bytes for one in new)


def _write(lake: Lake, name: str, table: DeltaTable, path: str, new: Sequence[Rewritten]) -> NewFile:
    rows = read_files(lake, name, table, [path])
    for one in new:
        rows = turn_references(rows, one)
    lake.evict([lake.root / name / path])
    digest = hashlib.sha256("\n".join([path, *(one.path for one in new)]).encode()).hexdigest()[:24]
    return write_table_file(lake, name, f"drop-{digest}.parquet", rows, private_of(table, rows.schema), lasting=True)


def _new_path(shard: str, rows: Int64s) -> str:
    """Beside the old one. The same rows give the same name, so a repeated try replaces its own."""
    digest = hashlib.sha256(shard.encode() + b"\n" + rows.tobytes()).hexdigest()[:24]
    return f"{shard.rsplit('/', 1)[0]}/drop-{digest}.parquet"
