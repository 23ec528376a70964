"""Delta tables of the lake: created with their schema, widened when a contract grows, opened fresh each time, and their rows.

A table that is not touched keeps the time of its log's folder, so one look at the folder tells that it is as it was. A cache: if
it is lost or does not fit, tables are opened.
"""

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, PostCommitHookProperties, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, DeltaProtocolError, TableNotFoundError
from pyarrow import fs

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import ConfigError, ConflictError, CorruptLakeError, RefusedError, RetryLaterError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import table_states_path
from pipelines.lake.reference import table_path

CHECKPOINT_INTERVAL = 20
# Left to itself the library lists the whole log after every commit, to delete entries that are 30 days old. Maintenance deletes
# log entries here, once what they say has been archived.
HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
OPENED_AT_ONCE = 8
# A folder that was written to a moment ago may be written to again within the same tick of the file system's clock.
SETTLED_NS = 2_000_000_000


def open_table(lake: Lake, name: str) -> DeltaTable | None:
    """A fresh view of a table; None if there is none yet.

    Raises:
        CorruptLakeError: there is a table, but its log cannot be read.
        RetryLaterError: the storage is unavailable.
    """
    if not lake.store.may_have_table(name):
        return None
    try:
        return _open(lake, name)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError, ValueError) as error:
        raise lake.store.table_error(name, error) from error


def files_of(table: DeltaTable) -> fs.FileSystem | None:
    """Arrow's own access to the files of a table in a folder; None for one in a bucket.

    The table library's access is written in Python. A thread of Arrow that still holds it when the interpreter ends aborts the
    process (apache/arrow#39862).
    """
    address = urlsplit(table.table_uri)
    return fs.SubTreeFileSystem(unquote(address.path), fs.LocalFileSystem()) if address.scheme in ("", "file") else None


def dataset_of(table: DeltaTable) -> Any:
    """A table's rows, to be filtered and read in batches.

    Raises:
        RefusedError: another tool has switched on what the reader here does not know, such as deletion vectors.
    """
    try:
        return table.to_pyarrow_dataset(filesystem=files_of(table))
    except DeltaProtocolError as error:
        raise RefusedError(
            f"{table.table_uri}: {error} Rewrite the table without that feature with the tool that set it"
        ) from error


def ensure_table(lake: Lake, name: str, schema: pa.Schema, private: Collection[str] = ()) -> DeltaTable:
    """The table, created if there is none, with every column of `schema`.

    Args:
        lake: the lake.
        name: the table's folder, relative to the root.
        schema: the columns it must have; columns it has beyond these stay.
        private: columns that statistics must not show.

    Raises:
        ConfigError: a column exists with another type; a contract must give a changed column a new name.
        ConflictError: somebody changed the table meanwhile.
    """
    table = open_table(lake, name)
    if table is None:
        return _create(lake, name, schema, private)
    missing = _missing_columns(name, table, schema)
    if not missing and (shown_columns(table) or frozenset()).isdisjoint(private):
        return table
    hidden = frozenset(private) | private_of(table, _arrow_schema(table))
    shown = stats_columns(pa.schema([*_arrow_schema(table), *missing]), hidden)
    try:
        if missing:
            table.alter.add_columns(list(Schema.from_arrow(pa.schema(missing)).fields), post_commithook_properties=HOOKS)
        _reopened(lake, name).alter.set_table_properties(
            {"delta.dataSkippingStatsColumns": ",".join(shown)}, post_commithook_properties=HOOKS
        )
    except CommitFailedError as error:
        raise ConflictError(f"{name}: somebody changed the table while columns were added; look again") from error
    except (DeltaError, OSError) as error:
        raise RetryLaterError(f"{name}: columns could not be added: {error}; is the storage there?") from error
    sync_log(lake, name)
    return _reopened(lake, name)


def stats_columns(schema: pa.Schema, private: Collection[str]) -> list[str]:
    """The columns whose bounds may stand in the log: not private, and with an order that bounds help with."""
    return [
        field.name
        for field in schema
        if field.name not in private and pa.types.is_primitive(field.type) and not pa.types.is_boolean(field.type)
    ]


def private_of(table: DeltaTable, schema: pa.Schema) -> frozenset[str]:
    """Columns that statistics must not show, as the table was told when it was made."""
    shown = shown_columns(table)
    return frozenset() if shown is None else frozenset(schema.names) - shown


def shown_columns(table: DeltaTable) -> frozenset[str] | None:
    """The columns whose bounds may stand in the table's log, as it was told; None where it was told nothing."""
    setting = table.metadata().configuration.get("delta.dataSkippingStatsColumns")
    return None if setting is None else frozenset(filter(None, setting.split(",")))


def sync_log(lake: Lake, name: str, version: int | None = None) -> None:
    """Make the newest log entries survive a power cut: the library itself never calls fsync.

    Args:
        lake: the lake.
        name: the table's folder.
        version: one that was there before; from it on entries are synced. Without it the log is listed for the newest two.
    """
    lake.store.sync_table(name, version)


def _create(lake: Lake, name: str, schema: pa.Schema, private: Collection[str]) -> DeltaTable:
    lake.store.prepare_table(name)
    try:
        DeltaTable.create(
            lake.store.table_uri(name),
            Schema.from_arrow(schema),
            mode="ignore",
            configuration={
                "delta.checkpointInterval": str(CHECKPOINT_INTERVAL),
                "delta.enableExpiredLogCleanup": "false",
                "delta.dataSkippingStatsColumns": ",".join(stats_columns(schema, private)),
            },
            storage_options=lake.store.table_options(),
        )
    except CommitFailedError as error:
        raise ConflictError(f"{name}: somebody created the table meanwhile; look again") from error
    except (DeltaError, OSError) as error:
        raise RetryLaterError(f"{name}: the table could not be created: {error}; is the storage there?") from error
    lake.store.sync_table(name, None, is_new=True)
    return _reopened(lake, name)


def _reopened(lake: Lake, name: str) -> DeltaTable:
    """A fresh view of a table that is known to be there."""
    table = open_table(lake, name)
    if table is None:
        raise CorruptLakeError(f"{lake.root / name}: the table was there a moment ago and is gone; restore it from a copy")
    return table


def _open(lake: Lake, name: str) -> DeltaTable:
    return DeltaTable(lake.store.table_uri(name), storage_options=lake.store.table_options())


def _arrow_schema(table: DeltaTable) -> pa.Schema:
    return pa.schema(table.schema().to_arrow())


def check_evolution(there: Schema, schema: pa.Schema) -> list[str]:
    """The columns of `schema` that a table has with another type, each with both types; new and missing columns are fine."""
    present = {field.name: field.type for field in there.fields}
    return [
        f"column {field.name} is {_type_name(present[field.name])} in the table and {_type_name(field.type)} in the contract"
        for field in Schema.from_arrow(schema).fields
        if field.name in present and present[field.name] != field.type
    ]


def _type_name(type_: Any) -> str:
    return str(getattr(type_, "type", type_))


def _missing_columns(name: str, table: DeltaTable, schema: pa.Schema) -> list[pa.Field]:
    differing = check_evolution(table.schema(), schema)
    if differing:
        raise ConfigError(f"{name}: {'; '.join(differing)}; give the changed column a new name")
    present = {field.name for field in table.schema().fields}
    return [field for field in schema if field.name not in present]


class TableState(msgspec.Struct, frozen=True):
    """A table as it was at this stamp of the store (zeros: there is none): application transactions, and the schema as JSON."""

    inode: int
    changed_ns: int
    transactions: dict[str, int]
    schema: str

    def fields(self) -> Schema:
        """The schema."""
        return Schema.from_json(self.schema)


class TableStates:
    """The states of a lake's tables, looked up once for each name.

    Args:
        lake: the lake.
        apps: whose transactions to know.
    """

    def __init__(self, lake: Lake, *apps: str) -> None:
        self._lake, self._apps = lake, apps
        self._kept = _read(lake)
        self._found: dict[str, TableState | CorruptLakeError | None] = {}

    def look_up(self, names: Sequence[str]) -> None:
        """Have the states of these tables at hand; several are opened at once.

        Raises:
            RetryLaterError: the storage is away.
        """
        left: list[str] = []
        for name in names:
            kept = self._known(name)
            if kept is not None:
                self._found.setdefault(name, kept)
            elif name not in self._found:
                left.append(name)
        if left:
            with ThreadPoolExecutor(min(OPENED_AT_ONCE, len(left))) as pool:
                self._found.update(zip(left, pool.map(self._opened, left), strict=True))

    def get(self, name: str) -> TableState | None:
        """The state of a table; None if there is none.

        Raises:
            CorruptLakeError: its log cannot be read.
            RetryLaterError: the storage is away.
        """
        if name not in self._found:
            self.look_up([name])
        found = self._found[name]
        if isinstance(found, CorruptLakeError):
            raise found
        return found

    def keep(self) -> None:
        """Remember what was found for the next start.

        Raises:
            OSError: the disk refused.
        """
        before_ns = time.time_ns() - SETTLED_NS
        found = {name: state for name, state in self._found.items() if isinstance(state, TableState)}
        kept = {**self._kept, **{name: each for name, each in found.items() if 0 < each.changed_ns < before_ns}}
        if kept != self._kept:
            path = table_states_path(self._lake.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, msgspec.json.encode(kept), mode=0o644)
            self._kept = kept

    def _known(self, name: str) -> TableState | None:
        kept = self._kept.get(name)
        if kept is None or not set(self._apps) <= set(kept.transactions):
            return None
        return kept if self._lake.store.table_stamp(name) == (kept.inode, kept.changed_ns) else None

    def _opened(self, name: str) -> TableState | CorruptLakeError | None:
        stamp = self._lake.store.table_stamp(name) or (0, 0)  # taken before the table is opened
        try:
            table = open_table(self._lake, name)
        except CorruptLakeError as error:
            return error
        if table is None:
            return None
        numbers = {app: table.transaction_version(app) or 0 for app in self._apps}
        return TableState(*stamp, numbers, table.schema().to_json())


def _read(lake: Lake) -> dict[str, TableState]:
    try:
        return msgspec.json.decode(table_states_path(lake.root).read_bytes(), type=dict[str, TableState])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def read_files(lake: Lake, name: str, table: DeltaTable, paths: Sequence[str]) -> pa.Table:
    """Read files of a table as one; a file without a column has nulls.

    Args:
        lake: the lake.
        name: the table's folder, relative to the root.
        table: the table, for its types.
        paths: the files, below the table's folder.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    files = [table_path(lake, name, path) for path in paths]
    parts = [pq.read_table(path, partitioning=None, page_checksum_verification=True) for path in files]
    # By the table's own types: other tools that rewrote a file may have left word in it to read text as views.
    there = {column for part in parts for column in part.column_names}
    target = pa.schema(
        [pa.field(field.name, field.type) for field in pa.schema(table.schema().to_arrow()) if field.name in there]
    )
    whole = [pa.table([_column(part, field) for field in target], schema=target) for part in parts]
    return pa.concat_tables(whole).combine_chunks()


def _column(part: pa.Table, field: pa.Field) -> Any:
    if field.name in part.column_names:
        return part.column(field.name).cast(field.type)
    return pa.nulls(part.num_rows, field.type)
