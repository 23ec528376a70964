"""An earlier set as a source of the next: its rows as they were selected, joined and labelled, and payloads out of its shards.

A version of a set never changes, so its number pins it. A part is one of its shards. Payloads are read from there, not from the
streams: those may have been vacuumed since.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SETS
from pipelines.lake.payload import PAYLOAD_COLUMN
from pipelines.training.catalogue import set_folder
from pipelines.training.manifest import MANIFEST_NAME, FileEntry, Manifest, load_manifest, map_set_file, open_set_file
from pipelines.training.select import PinnedStream, expression_columns, policy_compiler
from pipelines.training.shards import REFERENCE_COLUMNS
from pipelines.training.spec import SourceSpec

_PLACES = (
    pa.field("payload_shard", pa.string()),
    pa.field("payload_row", pa.int64()),
    pa.field("payload_offset", pa.int64()),
    pa.field("payload_length", pa.int64()),
)


def pin_earlier_set(lake: Lake, source: SourceSpec) -> PinnedStream:
    """Find the version of a set that is to be read, and check that it can be.

    Raises:
        NotFoundError: no such set or version.
        RefusedError: it holds arrays, or has no such split.
        ExpressionError: the condition is not in the language.
        CorruptLakeError: its files cannot be read.
    """
    folder, manifest = _opened(lake, source)
    if manifest.arrays is not None:
        raise RefusedError(f"set {source.set_name} {manifest.version} holds arrays; name the streams that it was made of")
    splits = manifest.split_rows()
    strange = [name for name in source.splits if name not in splits]
    if strange:
        raise RefusedError(f"set {source.set_name} {manifest.version} has no split {strange[0]}; it has {', '.join(splits)}")
    schema = _schema(lake, folder, manifest)
    if source.where.strip():
        policy_compiler(source.where, expression_columns(schema))
    return PinnedStream(manifest.version, schema)


def earlier_shards(lake: Lake, source: SourceSpec) -> list[FileEntry]:
    """The shards of the splits that a source names; of all splits if it names none. Raises as `pin_earlier_set`."""
    _, manifest = _opened(lake, source)
    names = source.splits or tuple(manifest.split_rows())
    return [entry for name in names for entry in manifest.shards_of(name) if entry.rows]


def read_earlier_shard(lake: Lake, source: SourceSpec, path: str) -> pa.Table:
    """The rows of a shard, with the places of their payloads in it as the streams' tables have them.

    Raises:
        CorruptLakeError: the set lacks the file, or it cannot be read.
    """
    folder, manifest = _opened(lake, source)
    entry = next((each for each in manifest.shards if each.path == path), None)
    if entry is None:
        raise CorruptLakeError(f"{folder}: its manifest names no {path}; build the set again")
    if not manifest.has_payload:
        return _read_shard(lake, folder, path)
    index = next(each for each in manifest.indexes if each.split == entry.split)
    lake.local(folder / index.path)
    try:
        whole = pa.ipc.open_file(map_set_file(folder, index.path)).read_all()
    except (OSError, ValueError) as error:
        raise CorruptLakeError(f"{folder / index.path}: cannot be read: {error}; run `set verify`") from error
    shards = manifest.shards_of(entry.split)
    low = sum(each.rows for each in shards[: shards.index(entry)])
    rows = whole.slice(low, entry.rows)
    name = f"{SETS}/{manifest.name}/{manifest.version}/{path}"
    rows = rows.append_column(_PLACES[0], pa.array([name], pa.string()).take(pa.array(np.zeros(len(rows), np.int8))))
    return rows.append_column(_PLACES[1], pa.array(np.arange(len(rows), dtype=np.int64)))


def earlier_has_payload(lake: Lake, source: SourceSpec) -> bool:
    """Whether the samples of a set carry their payload. Raises as `pin_earlier_set`."""
    return _opened(lake, source)[1].has_payload


def _opened(lake: Lake, source: SourceSpec) -> tuple[Path, Manifest]:
    reference = source.set_name if source.version is None else f"{source.set_name}/{source.version}"
    folder = set_folder(lake, reference)
    return folder, load_manifest(folder / MANIFEST_NAME)


def _schema(lake: Lake, folder: Path, manifest: Manifest) -> pa.Schema:
    """The columns of its rows; with payloads their places too, in the order in which a shard's rows have them."""
    if not manifest.shards:
        raise RefusedError(f"set {manifest.name} {manifest.version} has no rows")
    fields = list(_read_shard(lake, folder, manifest.shards[0].path, rows=False).schema)
    if not manifest.has_payload:
        return pa.schema(fields)
    own = [field for field in fields if field.name not in (PAYLOAD_COLUMN, *REFERENCE_COLUMNS)]
    return pa.schema([*own, *_PLACES])


def _read_shard(lake: Lake, folder: Path, path: str, *, rows: bool = True) -> pa.Table:
    lake.local(folder / path)
    try:
        with open_set_file(folder, path) as file:
            return pq.read_table(file) if rows else pq.read_schema(file).remove_metadata().empty_table()
    except (OSError, pa.ArrowInvalid) as error:
        raise CorruptLakeError(f"{folder / path}: cannot be read: {error}; run `set verify`, restore the set") from error
