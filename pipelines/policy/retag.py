"""Back-fill tags: every row of a stream is judged by today's policies, as one new version of its table.

Only the two tag columns are computed and written; the other columns' bytes are copied as they lie, and payload is never
touched. A new file's name follows from the file it replaces and the rules, so whatever a killed retag has finished is found
and not done again, and a run that commits meanwhile costs its own files only.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from catchment.runtime.atomic_files import sync_folder
from pipelines.contracts.arrow import ARROW_TYPES, arrow_type
from pipelines.errors import ConflictError, CorruptLakeError, NotFoundError, RefusedError
from pipelines.expressions.expression import ROW_COLUMNS
from pipelines.lake.claims import held_alone
from pipelines.lake.commit import LiveFile, live_files, replace_files
from pipelines.lake.delta_log import commit_notes
from pipelines.lake.lake import Lake
from pipelines.lake.layout import retag_lock_path, stream_table
from pipelines.lake.reference import table_path
from pipelines.lake.slide_rows import RowFiller
from pipelines.lake.splice import rewrite_columns, splice_columns
from pipelines.lake.workplace import only_maintainer, workplace
from pipelines.policy.engine import Judge, lists_of
from schemas.contract import Contract
from schemas.policy import Policy

BLOCK_ROWS = 1024 * 1024
TAG_COLUMNS = ("tags", "tag_rules")
ATTEMPTS = 50
NOTE_RULES, NOTE_POLICIES, NOTE_UNDO = "catchment.retag", "catchment.policies", "catchment.undo"
NOTE_LABELS = "catchment.labels"
_PREFIX = "retag-"

Progress = Callable[[int, int], None]
"""Told how many rows are done, and of how many."""


class FileTagger(Protocol):
    """The interface that judges the rows of a file."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns it wants, where the file has them."""
        ...

    def tag(self, rows: pa.Table) -> pa.Table:
        """The columns tags and tag_rules for these rows."""
        ...


@dataclass(frozen=True, slots=True)
class RuleTagger:
    """Rules over the contract's columns; a column that a file does not have yet is null, or what `fill` finds."""

    tagger: Judge
    fill: RowFiller | None = None

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the rules read, and those that filling in needs."""
        return self.tagger.columns | (self.fill.columns if self.fill else frozenset())

    def tag(self, rows: pa.Table) -> pa.Table:
        """The tag columns, as codes into the few words there are: no string is copied for each row."""
        if not self.tagger.rules:
            empty = pa.array([[]] * rows.num_rows, pa.list_(pa.string()))
            return pa.table([empty, empty], names=list(TAG_COLUMNS))
        rows = self.fill.fill(rows) if self.fill else rows
        hits = self.tagger.verdicts(completed(rows, self.tagger.contract))
        return pa.table(list(lists_of(self.tagger.rules, hits, rows.num_rows)), names=list(TAG_COLUMNS))


def completed(rows: pa.Table, contract: Contract) -> pa.Table:
    """The rows with a null column for each one that rules may read and the rows lack."""
    for name, type_ in readable(contract).items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, type_))
    return rows


def readable(contract: Contract) -> dict[str, pa.DataType]:
    """The columns that rules may read, with their types in the lake."""
    own = {column.name: arrow_type(column) for column in contract.columns}
    return own | {name: ARROW_TYPES[type_] for name, type_ in ROW_COLUMNS.items()}


def retag_file(source: Path, target: Path, tagger: FileTagger) -> int:
    """Write `target`: the rows of `source` with new tags; the size in bytes. Memory does not depend on the file's size.

    Raises:
        CorruptLakeError: the source cannot be read.
        RefusedError: the source has no columns for tags.
    """
    try:
        with pq.ParquetFile(source) as file:
            _check_tag_types(source, file.schema_arrow)
            tags = [tagger.tag(block) for block in _blocks(file, tagger.columns)]
            empty = file.schema_arrow.empty_table().select(list(TAG_COLUMNS))
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptLakeError(f"{source}: cannot be read ({error}); restore it") from error
    columns = pa.concat_tables(tags).unify_dictionaries() if tags else empty
    try:
        return splice_columns(source, target, columns)
    except RefusedError:  # another tool wrote it: slower, and the same rows
        return rewrite_columns(source, target, columns)


def _blocks(file: Any, wanted: frozenset[str]) -> Iterator[pa.Table]:
    """The wanted columns, some row groups at a time."""
    names = [name for name in file.schema_arrow.names if name in wanted]
    groups: list[int] = []
    rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows >= BLOCK_ROWS or group == file.num_row_groups - 1:
            yield _read(file, groups, names, rows)
            groups, rows = [], 0


def _read(file: Any, groups: list[int], names: list[str], rows: int) -> pa.Table:
    if not names:  # Arrow forgets the row count of a table without columns
        return pa.table({"": pa.nulls(rows)})
    found: pa.Table = file.read_row_groups(groups, columns=names, use_threads=False)
    return found


def _check_tag_types(source: Path, schema: pa.Schema) -> None:
    wanted = pa.list_(pa.string())
    if any(name not in schema.names or schema.field(name).type != wanted for name in TAG_COLUMNS):
        raise RefusedError(f"{source}: has no columns {' and '.join(TAG_COLUMNS)} of type {wanted}")


@dataclass(frozen=True, slots=True)
class Retagged:
    """The result: the table's version before and after, and the work done. Equal versions: nothing was to be done."""

    stream: str
    before: int
    after: int
    files: int
    rows: int
    reused: int
    bytes: int


def rules_digest(policies: Sequence[Policy], labels: Sequence[str] = ()) -> str:
    """Names a set of rules: 12 hexadecimal digits over their versions, and those of the labels that they read."""
    return hashlib.sha256("\n".join([*sorted(policy.label for policy in policies), *labels]).encode()).hexdigest()[:12]


def retag_stream(
    lake: Lake,
    stream: str,
    policies: Sequence[Policy],
    tagger: FileTagger,
    progress: Progress | None = None,
    workers: int = 2,
    labels: Sequence[str] = (),
) -> Retagged:
    """Tag every committed row of a stream again.

    Args:
        lake: the lake.
        stream: the stream.
        policies: the rules; those of other streams are skipped.
        tagger: judges the rows of one file.
        progress: told of the rows done.
        workers: files at a time.
        labels: the pinned versions of labels that the rules read, as words; they go into the digest and the commit's note.

    Raises:
        NotFoundError: there is no such stream.
        RefusedError: another retag of this stream is at work.
        ConflictError: runs kept committing meanwhile.
    """
    rules = [policy for policy in policies if stream in policy.streams]
    digest = rules_digest(rules, labels)
    name = stream_table(stream)
    with _only_one(lake, stream) as there:
        _remove_leftovers(there.root / name)
        counted = _Counted(progress or _silent)
        for _ in range(ATTEMPTS):
            table = _opened(there, stream)
            old = live_files(table)
            if all(file.path.startswith(f"{_PREFIX}{digest}-") for file in old):
                return Retagged(stream, table.version(), table.version(), 0, 0, len(old), 0)
            new = _made(there, name, old, digest, tagger, counted, workers)
            note = {NOTE_RULES: digest, NOTE_POLICIES: " ".join(policy.label for policy in rules)}
            note |= {NOTE_LABELS: " ".join(labels)} if labels else {}
            try:
                version = replace_files(there, name, table, new, note)
            except ConflictError:
                continue  # a run committed: its files are new, ours lie there already
            return Retagged(stream, table.version(), version, len(new), sum(f.rows for f in new), counted.reused, counted.bytes)
    raise ConflictError(f"{name}: runs committed {ATTEMPTS} times meanwhile; try again when less arrives")


def undo_retag(lake: Lake, stream: str) -> Retagged:
    """Go back to the tags before the last retag; rows that were committed since keep theirs.

    Raises:
        NotFoundError: there is no such stream, or no retag of it to undo.
        RefusedError: files were rewritten since, by whom it may be; another retag undoes nothing of theirs.
    """
    name = stream_table(stream)
    with _only_one(lake, stream) as there:
        for _ in range(ATTEMPTS):
            table = _opened(there, stream)
            version = _last_retag(there, stream)
            now, then = live_files(table), _files_at(there, stream, version)
            before = _files_at(there, stream, version - 1)
            if not {file.path for file in then} <= {file.path for file in now}:
                raise RefusedError(f"{name}: rewritten after the retag of version {version}; retag with the old policies")
            _check_present(there, name, before)
            later = [_linked(there, name, file) for file in now if file.path not in {each.path for each in then}]
            _synced(there.root / name)
            try:
                after = replace_files(there, name, table, [*before, *later], {NOTE_UNDO: str(version)})
            except ConflictError:
                continue
            return Retagged(stream, table.version(), after, len(before), sum(f.rows for f in before), len(later), 0)
    raise ConflictError(f"{name}: runs committed {ATTEMPTS} times meanwhile; try again when less arrives")


class _Counted:
    """The progress of the work, over all attempts."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.reused = self.bytes = 0

    def start(self, old: Sequence[LiveFile]) -> None:
        self._done, self._total = 0, sum(file.rows for file in old)
        self.reused = 0
        self._progress(0, self._total)

    def add(self, file: LiveFile, is_new: bool) -> None:
        self._done += file.rows
        self.reused += not is_new
        self.bytes += file.bytes if is_new else 0
        self._progress(self._done, self._total)


def _made(  # one place calls it
    lake: Lake, name: str, old: Sequence[LiveFile], digest: str, tagger: FileTagger, counted: _Counted, workers: int
) -> list[LiveFile]:
    counted.start(old)
    made: list[LiveFile] = []
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(_make, lake, name, file, digest, tagger): file for file in old}
        try:
            for done in as_completed(waiting):
                file, is_new = done.result()
                made.append(file)
                counted.add(file, is_new)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _synced(lake.root / name)
    return sorted(made, key=lambda file: file.path)


def _make(lake: Lake, name: str, old: LiveFile, digest: str, tagger: FileTagger) -> tuple[LiveFile, bool]:
    """The file in the place of `old`, and whether it had to be made."""
    path = f"{_PREFIX}{digest}-{hashlib.sha256(old.path.encode()).hexdigest()[:20]}.parquet"
    source, target = table_path(lake, name, old.path, fetch=False), lake.root / name / path
    size = lake.size(target)
    is_new = size is None
    if is_new and old.path.startswith(f"{_PREFIX}{digest}-"):
        lake.copy(source, target)  # tagged by these rules already: another name for the same bytes
        size, is_new = old.bytes, False
    elif is_new:
        size = retag_file(lake.local(source), target, tagger)
        lake.upload([target])
        lake.evict([source, target])
    return msgspec.structs.replace(old, path=path, bytes=size), is_new


def _linked(lake: Lake, name: str, file: LiveFile) -> LiveFile:
    """A commit cannot remove and add one path: the file gets a second name."""
    path = f"kept-{hashlib.sha256(file.path.encode()).hexdigest()[:20]}.parquet"
    lake.copy(table_path(lake, name, file.path, fetch=False), lake.root / name / path)
    return msgspec.structs.replace(file, path=path)


def _synced(folder: Path) -> None:
    if folder.is_dir():  # of a remote lake nothing need be left here
        sync_folder(folder)


def _files_at(lake: Lake, stream: str, version: int) -> tuple[LiveFile, ...]:
    table = _opened(lake, stream)
    table.load_as_version(version)
    return live_files(table)


def _opened(lake: Lake, stream: str) -> DeltaTable:
    table = lake.view().table(stream_table(stream))
    if table is None:
        raise NotFoundError(f"there is no stream {stream!r} in {lake.root}; `catchment streams` lists them")
    return table


def _last_retag(lake: Lake, stream: str) -> int:
    undone: set[str] = set()
    for version, note in commit_notes(lake, stream_table(stream)):
        if NOTE_UNDO in note:
            undone.add(str(note[NOTE_UNDO]))
        elif NOTE_RULES in note and str(version) not in undone:
            return version
    raise NotFoundError(f"no retag of {stream} to undo; `maintain.keep_versions_h` says for how long there is")


def _check_present(lake: Lake, name: str, files: Sequence[LiveFile]) -> None:
    present = {file.name.removeprefix(f"{name}/") for file in lake.files(name)}
    gone = [file.path for file in files if file.path not in present]
    if gone:
        raise CorruptLakeError(
            f"{lake.root / name}: {len(gone)} files of that version were vacuumed, such as {gone[0]}; retag instead"
        )


@contextmanager
def _only_one(lake: Lake, stream: str) -> Iterator[Lake]:
    """Hold the lock of tagging this stream again; of a remote lake, that of every rewrite."""
    with held_alone(retag_lock_path(lake.root, stream)) as is_ours:
        if not is_ours:
            raise RefusedError(f"another retag of {stream} is at work; wait for it")
        with only_maintainer(lake, f"retag {stream}"), workplace(lake, f"retag-{stream}") as there:
            yield there


def _remove_leftovers(folder: Path) -> None:
    """Half-written files of a retag that was killed; the lock says that nobody else is writing."""
    for path in folder.glob(f".{_PREFIX}*.tmp"):
        path.unlink()


def _silent(_done: int, _total: int) -> None:
    return None
