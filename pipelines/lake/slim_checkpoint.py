"""A checkpoint of a table without tombstones, made aside and published in one step.

The library puts the name of every file removed within a week into each checkpoint, so a table whose small files are compacted
carries a hundred thousand dead names in every checkpoint it writes and every time it is opened. The names are kept elsewhere
(`removed`), for the vacuum alone needs them.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipelines.errors import ConflictError, CorruptLakeError, RefusedError
from pipelines.lake.delta_log import FOLDER, HINT, DeltaLogFile, LogKind, checkpoint_name, read_entry
from pipelines.lake.lake import Lake
from pipelines.lake.removed import REMOVED_SCHEMA
from pipelines.lake.workplace import FOLDER as WORK

_PLACE = "log"


@dataclass(frozen=True, slots=True)
class Slim:
    """A checkpoint that waits to be published: its bytes, rows and live files, and the tombstones that it leaves out."""

    version: int
    body: bytes
    rows: int
    live: frozenset[str]
    removed: pa.Table


def has_tombstones(lake: Lake, files: Sequence[DeltaLogFile]) -> bool:
    """Whether the newest state of a table still carries names of removed files.

    Args:
        lake: the lake.
        files: the table's log.
    """
    base = max((file.version for file in files if file.kind is LogKind.CHECKPOINT), default=-1)
    for file in files:
        if file.kind is LogKind.CHECKPOINT and file.version == base:
            removes = pq.read_table(pa.BufferReader(lake.read(lake.root / file.name)), columns=["remove.path"]).column(0)
            if removes.null_count < len(removes):
                return True
        if file.kind is LogKind.ENTRY and file.version > base and any("remove" in each for each in read_entry(lake, file.name)):
            return True
    return False


def build_slim(lake: Lake, table: str, version: int, files: Sequence[DeltaLogFile]) -> Slim:
    """Make the checkpoint of a version from the entries there are, in a folder of its own.

    Args:
        lake: the lake.
        table: the table's folder, relative to the root.
        version: the version; an entry of it must be there.
        files: the table's log.

    Raises:
        RefusedError: the library cannot make it: another tool has switched on a feature that it does not know.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    base = max((file.version for file in files if file.kind is LogKind.CHECKPOINT and file.version <= version), default=-1)
    folder = lake.root / WORK / _PLACE
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        (folder / FOLDER).mkdir(parents=True)
        for file in files:
            is_needed = (file.kind is LogKind.CHECKPOINT and file.version == base) or (
                file.kind is LogKind.ENTRY and base <= file.version <= version
            )
            if is_needed:
                (folder / FOLDER / file.name.rsplit("/", 1)[-1]).write_bytes(lake.read(lake.root / file.name))
        made = DeltaTable(folder)
        if made.version() != version:
            raise CorruptLakeError(f"{lake.root / table}: its log ends at {made.version()}, not {version}; restore _delta_log")
        path = folder / checkpoint_name("", version).lstrip("/")
        if not path.exists():
            made.create_checkpoint()
        return _slimmed(path, version, _live(made))
    except DeltaError as error:
        message = str(error).partition("\n")[0][:300]
        raise RefusedError(f"{lake.root / table}: no checkpoint can be made of version {version} ({message})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_slim(lake: Lake, table: str, slim: Slim) -> bool:
    """Put a checkpoint into the log, checked, unless there is one of this version. Whether it was put there.

    Raises:
        CorruptLakeError: the table reads otherwise by it; it is gone again.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    path = lake.root / checkpoint_name(table, slim.version)
    try:
        lake.create(path, slim.body)
    except ConflictError:
        return False
    if live_files_at(lake, table, slim.version) != slim.live:
        lake.delete(path)
        raise CorruptLakeError(f"{path}: the table reads otherwise by its new checkpoint, which was removed again; report it")
    _write_hint(lake, table, slim)
    return True


def _slimmed(path: Path, version: int, live: frozenset[str]) -> Slim:
    whole = pq.read_table(path)
    removes = whole.column("remove").combine_chunks()
    is_dead = pc.is_valid(removes)
    kept = whole.filter(pc.invert(is_dead))
    dead = removes.filter(is_dead)
    paths, times = (pc.struct_field(dead, name) for name in ("path", "deletionTimestamp"))
    removed = pa.table([paths.cast(pa.string()), pc.fill_null(times, 0).cast(pa.int64())], schema=REMOVED_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(kept, sink, compression="snappy")
    return Slim(version, bytes(sink.getvalue().to_pybytes()), kept.num_rows, live, removed)


def _live(table: DeltaTable) -> frozenset[str]:
    return frozenset(pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist())


def live_files_at(lake: Lake, table: str, version: int) -> frozenset[str]:
    """The files of the table's rows at this version.

    Raises:
        CorruptLakeError: the version cannot be opened.
    """
    where = lake.store.table_uri(table)
    try:
        opened = DeltaTable(where, version=version, storage_options=lake.store.table_options())
        return _live(opened)
    except DeltaError as error:
        raise CorruptLakeError(f"{where}: version {version} cannot be opened ({error}); restore _delta_log") from error


def _write_hint(lake: Lake, table: str, slim: Slim) -> None:
    """Name the newest checkpoint, so that opening the table lists nothing before it. An older hint is right too, only slower."""
    path = lake.root / table / FOLDER / HINT
    try:
        known = msgspec.json.decode(lake.read(path)).get("version", -1)
    except (FileNotFoundError, msgspec.DecodeError, AttributeError):
        known = -1
    if known >= slim.version:
        return
    hint = {"version": slim.version, "size": slim.rows, "sizeInBytes": len(slim.body), "numOfAddFiles": len(slim.live)}
    lake.put(path, msgspec.json.encode(hint))
    lake.evict([path])
