"""A table's Delta log: its files and notes, which entries stay, the files it removed, and checkpoints without tombstones.

Readers of older versions keep replaced files for a time. The table's own log forgets them with its next checkpoint here, so
that a run does not pay for what was replaced.

The library puts the name of every file removed within a week into each checkpoint, so a table whose small files are compacted
carries a hundred thousand dead names in every checkpoint it writes and every time it is opened. The names are kept elsewhere
(`read_removed`), because the vacuum alone needs them.
"""

import json
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipelines.errors import ConflictError, CorruptLakeError, RefusedError
from pipelines.lake.arrow_input import arrow_bytes
from pipelines.lake.lake import Lake
from pipelines.lake.layout import removed_path
from pipelines.lake.workplace import WORK_FOLDER as WORK

LOG_FOLDER = "_delta_log"
HINT = "_last_checkpoint"
_KINDS = (
    (re.compile(r"(\d{20})\.json"), "entry"),
    (re.compile(r"(\d{20})\.checkpoint\.parquet"), "checkpoint"),
    (re.compile(r"(\d{20})\.(?:crc|\d{20}\.compacted\.json)"), "side"),
    (re.compile(r"(\d{20})\.checkpoint\..+"), "foreign"),
)
REMOVED_SCHEMA = pa.schema([pa.field("path", pa.string()), pa.field("removed_ms", pa.int64())])
_PLACE = "log"


class LogKind(StrEnum):
    """What a file of a log holds: one commit, the state at a version, something derived, or a state in a foreign form."""

    ENTRY = "entry"
    CHECKPOINT = "checkpoint"
    SIDE = "side"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class DeltaLogFile:
    """One file: its name below the lake root, its version and kind, its size, and when it was stored, in seconds since 1970."""

    name: str
    version: int
    kind: LogKind
    bytes: int
    modified_s: float


def log_files(lake: Lake, table: str) -> list[DeltaLogFile]:
    """The files of a table's log, by version. Of a remote lake: a listing.

    Raises:
        RetryLaterError: the storage is away.
    """
    prefix = f"{table}/{LOG_FOLDER}/"
    found: list[DeltaLogFile] = []
    for file in lake.files(f"{table}/{LOG_FOLDER}"):
        base = file.name.removeprefix(prefix)
        for pattern, kind in _KINDS:
            match = pattern.fullmatch(base)
            if match is not None:
                found.append(DeltaLogFile(file.name, int(match[1]), LogKind(kind), file.bytes, file.modified_s))
                break
        else:
            if base.startswith("_sidecars/"):
                found.append(DeltaLogFile(file.name, 0, LogKind.FOREIGN, file.bytes, file.modified_s))
    return sorted(found, key=lambda file: (file.version, file.name))


def entry_name(table: str, version: int) -> str:
    """The name of a log entry below the lake root."""
    return f"{table}/{LOG_FOLDER}/{version:020d}.json"


def checkpoint_name(table: str, version: int) -> str:
    """The name of a checkpoint below the lake root."""
    return f"{table}/{LOG_FOLDER}/{version:020d}.checkpoint.parquet"


def read_entry(lake: Lake, name: str) -> list[dict[str, Any]]:
    """The actions of one log entry.

    Raises:
        FileNotFoundError: there is no such entry.
        CorruptLakeError: it is not a log entry.
        RetryLaterError: the storage is away.
    """
    try:
        return [json.loads(line) for line in lake.read(lake.root / name).splitlines() if line.strip()]
    except ValueError as error:
        raise CorruptLakeError(f"{lake.root / name}: not an entry of a Delta log ({error}); restore _delta_log") from error


def commit_notes(lake: Lake, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """What each commit says of itself, newest first, with its version; of entries that are still there.

    The library's own history counts versions by their place, which is wrong where older entries have been deleted.

    Raises:
        CorruptLakeError: an entry cannot be read.
        RetryLaterError: the storage is away.
    """
    for file in reversed([file for file in log_files(lake, table) if file.kind is LogKind.ENTRY]):
        try:
            actions = read_entry(lake, file.name)
        except FileNotFoundError:
            continue  # maintenance has deleted it meanwhile
        for action in actions:
            if "commitInfo" in action:
                yield file.version, action["commitInfo"]


@dataclass(frozen=True, slots=True)
class KeepLog:
    """How long older versions can be opened: for `age_s`, but no more than the last `versions`; none goes before `grace_s`."""

    age_s: float
    versions: int
    grace_s: float

    def __post_init__(self) -> None:
        if self.age_s < 0 or self.versions < 1 or self.grace_s < 0:
            raise ValueError(f"keep at least one version, and for no negative time: {self}")


def first_kept(files: Sequence[DeltaLogFile], keep: KeepLog, now_s: float) -> int | None:
    """The oldest version whose entry stays; None where no entry goes. The newest always stays: a commit follows from it."""
    entries = [file for file in files if file.kind is LogKind.ENTRY]
    for place, file in enumerate(entries):
        age_s = now_s - file.modified_s
        is_beyond = age_s >= keep.age_s or file.version <= entries[-1].version - keep.versions
        if file.version == entries[-1].version or not is_beyond or age_s < keep.grace_s:
            return file.version if place else None
    return None


def superfluous(files: Sequence[DeltaLogFile], first: int, pinned: Collection[int]) -> list[DeltaLogFile]:
    """The files that no version from `first` on needs, oldest first, and neither do the pinned ones.

    A pinned version and the one before it can be opened: the entry of the first stays, and the checkpoint of the other.
    """
    entries, states = set(pinned), {version - 1 for version in pinned}
    return [
        file
        for file in files
        if file.version < first
        and not (file.kind is LogKind.ENTRY and file.version in entries)
        and not (file.kind is LogKind.CHECKPOINT and file.version in states)
        and file.kind is not LogKind.FOREIGN
    ]


def read_removed(lake: Lake, table: str) -> pa.Table:
    """The removed files that are remembered, by their path below the table's folder.

    Raises:
        CorruptLakeError: the file is not what was written.
        RetryLaterError: the storage is away.
    """
    path = removed_path(lake.root, table)
    try:
        return pq.read_table(arrow_bytes(lake.read(path)), schema=REMOVED_SCHEMA)
    except FileNotFoundError:
        return REMOVED_SCHEMA.empty_table()
    except (OSError, pa.ArrowException) as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error}); delete it, and replaced files go at once") from error


def remember_removed(lake: Lake, table: str, removed: pa.Table, oldest_ms: int) -> None:
    """Add removed files to what is remembered, and forget those removed before `oldest_ms`. Durable when it returns.

    Raises:
        CorruptLakeError: the file is not what was written.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    before = read_removed(lake, table)
    whole = pa.concat_tables([before, removed]).group_by("path").aggregate([("removed_ms", "max")])
    whole = pa.table([whole.column("path"), whole.column("removed_ms_max")], schema=REMOVED_SCHEMA)
    whole = whole.filter(pc.greater(whole.column("removed_ms"), oldest_ms)).sort_by("path")
    path = removed_path(lake.root, table)
    if whole.equals(before):
        return
    if not whole.num_rows:
        lake.delete(path)
        return
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink, compression="zstd", write_page_checksum=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    lake.put(path, bytes(sink.getvalue().to_pybytes()))
    lake.evict([path])


def removed_since(lake: Lake, table: str, oldest_ms: int) -> set[str]:
    """The files removed after `oldest_ms`, as far as the table's log no longer tells of them.

    Raises:
        CorruptLakeError: the file is not what was written.
        RetryLaterError: the storage is away.
    """
    known = read_removed(lake, table)
    return set(known.column("path").filter(pc.greater(known.column("removed_ms"), oldest_ms)).to_pylist())


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
            removes = pq.read_table(arrow_bytes(lake.read(lake.root / file.name)), columns=["remove.path"]).column(0)
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
        (folder / LOG_FOLDER).mkdir(parents=True)
        for file in files:
            is_needed = (file.kind is LogKind.CHECKPOINT and file.version == base) or (
                file.kind is LogKind.ENTRY and base <= file.version <= version
            )
            if is_needed:
                (folder / LOG_FOLDER / file.name.rsplit("/", 1)[-1]).write_bytes(lake.read(lake.root / file.name))
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
    path = lake.root / table / LOG_FOLDER / HINT
    try:
        known = msgspec.json.decode(lake.read(path)).get("version", -1)
    except (FileNotFoundError, msgspec.DecodeError, AttributeError):
        known = -1
    if known >= slim.version:
        return
    hint = {"version": slim.version, "size": slim.rows, "sizeInBytes": len(slim.body), "numOfAddFiles": len(slim.live)}
    lake.put(path, msgspec.json.encode(hint))
    lake.evict([path])
