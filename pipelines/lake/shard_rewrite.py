"""Payload shards written again with the payloads that rows name, and no others; and the rows' references turned to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import CHIPS, PAYLOAD
from pipelines.lake.payload_writer import PayloadShard, PayloadWriter
from pipelines.lake.reference import checked_name, open_referred

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
    with open_referred(lake, shard, _OF) as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
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
