"""Drop payloads that no row names: their shards are written again without them, and the rows' references turned to the new.

The files whose rows name such a shard are written again too, with their references turned, and swapped in by one commit. The old
shard stays as long as an older version of the table can be read; then the vacuum takes it away.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from deltalake import DeltaTable

from pipelines.errors import CorruptLakeError
from pipelines.lake.arrow_input import arrow_file
from pipelines.lake.commit import live_sizes, swap_files
from pipelines.lake.files import NewFile, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import CHIPS, PAYLOAD, STREAMS
from pipelines.lake.payload import PayloadShard, PayloadWriter
from pipelines.lake.reference import checked_name, open_referred, read_footer, table_path
from pipelines.lake.table import open_table, private_of, read_files

log = structlog.get_logger(__name__)

SHARD = "payload_shard"
ROW = "payload_row"
OFFSET = "payload_offset"
_OF = "a row of a table"
_KEY = ("device", "epoch", "seq")

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """One new shard: its path below the lake root, where the payloads of each old shard begin in it, and which rows they were."""

    path: str
    shard: PayloadShard
    starts: dict[str, int]
    named: dict[str, Int64s]


def named_rows(rows: pa.Table, *, with_chips: bool = False) -> dict[str, Int64s]:
    """Which rows of which shards these rows name, ascending and each once; whole objects are in no shard.

    Args:
        rows: with `payload_shard` and `payload_row`.
        with_chips: also of the shards that chips' pictures are in.

    Raises:
        BadReferenceError: a row names something outside the lake.
    """
    if SHARD not in rows.column_names:
        return {}
    shards = rows.column(SHARD).combine_chunks().dictionary_encode()
    codes = np.asarray(shards.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    places = np.asarray(rows.column(ROW).fill_null(0).to_numpy(), np.int64)
    parents = (PAYLOAD, CHIPS) if with_chips else (PAYLOAD,)
    return {
        shard: np.unique(places[codes == code])
        for code, shard in enumerate(shards.dictionary.to_pylist())
        if is_own_shard(checked_name(shard, _naming(rows, codes, code)), *parents)
    }


def _naming(rows: pa.Table, codes: Int64s, code: int) -> str:
    """The first row that names this shard, by its key where the rows have one."""
    if not set(_KEY) <= set(rows.column_names):
        return _OF
    place = int(np.argmax(codes == code))
    return "sample " + "/".join(str(rows.column(name)[place].as_py()) for name in _KEY)


def is_own_shard(shard: str, *parents: str) -> bool:
    """Whether a row's reference is to a shard in one of these folders of the lake. What leads out of them is never followed."""
    steps = shard.split("/")
    return steps[0] in parents and len(steps) > 1 and shard.endswith(".parquet") and not {"", ".", ".."} & set(steps)


def rewrite_shards(lake: Lake, named: Mapping[str, Int64s], path: str) -> Rewritten:
    """Write one shard of the named rows of all of these, in order. Memory: one row group.

    Args:
        lake: the lake.
        named: per shard the rows to keep, ascending.
        path: the new shard, relative to the root.

    Raises:
        CorruptLakeError: a shard has no such row, or is gone.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    starts: dict[str, int] = {}
    count = 0
    with open_referred(lake, next(iter(named)), _OF) as first:
        schema = pq.read_schema(first).remove_metadata()
    with PayloadWriter(lake.root / path, schema) as writer:
        for shard, wanted in named.items():
            starts[shard] = count
            _append(lake, shard, wanted, writer)
            count += len(wanted)
            lake.evict([lake.root / shard])
        written = writer.finish()
    lake.upload([lake.root / path])
    lake.evict([lake.root / path])
    return Rewritten(path, written, starts, dict(named))


def turn_references(rows: pa.Table, new: Rewritten) -> pa.Table:
    """The rows with every reference to one of the old shards turned to the new one."""
    old = list(new.starts)
    place = pc.index_in(rows.column(SHARD), pa.array(old, pa.string())).combine_chunks()
    codes = np.asarray(place.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    before = np.asarray(rows.column(ROW).fill_null(0).to_numpy(), np.int64)
    turned = np.zeros(rows.num_rows, np.int64)
    for code, shard in enumerate(old):
        mine = codes == code
        turned[mine] = new.starts[shard] + np.searchsorted(new.named[shard], before[mine])
    mask = pa.array(codes >= 0)
    columns = {
        SHARD: pa.scalar(new.path, pa.string()),
        ROW: pa.array(turned.astype(np.int32)),
        OFFSET: new.shard.offsets.take(pa.array(turned)),
    }
    for column, value in columns.items():
        kept = rows.column(column)
        rows = rows.set_column(rows.schema.get_field_index(column), column, pc.if_else(mask, value, kept).cast(kept.type))
    return rows


def _append(lake: Lake, shard: str, wanted: Int64s, writer: PayloadWriter) -> None:
    low = taken = 0
    with open_referred(lake, shard, _OF) as opened, pq.ParquetFile(arrow_file(opened), page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            high = low + file.metadata.row_group(group).num_rows
            mine = wanted[(wanted >= low) & (wanted < high)] - low
            if len(mine):
                rows = file.read_row_group(group)
                writer.append(rows if len(mine) == rows.num_rows else rows.take(pa.array(mine)))
                taken += len(mine)
            low = high
    if taken != len(wanted):
        raise CorruptLakeError(f"{lake.root / shard}: has {low} rows, and rows refer to others; restore the file")


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
    return int(read_footer(lake, shard, f"a row of {STREAMS}").num_rows)


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
    """Next to the old one. The same rows give the same name, so a repeated try replaces its own."""
    digest = hashlib.sha256(shard.encode() + b"\n" + rows.tobytes()).hexdigest()[:24]
    return f"{shard.rsplit('/', 1)[0]}/drop-{digest}.parquet"
