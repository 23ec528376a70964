"""Delta tables of the lake: created with their schema, widened when a contract grows, opened fresh each time."""

from collections.abc import Collection
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from deltalake import DeltaTable, PostCommitHookProperties, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, DeltaProtocolError, TableNotFoundError
from pyarrow import fs

from pipelines.errors import ConfigError, ConflictError, CorruptLakeError, RefusedError, RetryLaterError
from pipelines.lake.lake import Lake

CHECKPOINT_INTERVAL = 20
# Left to itself the library lists the whole log after every commit, to delete entries that are 30 days old. Maintenance deletes
# log entries here, once what they say has been archived.
HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


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
    if lake.store.is_on_disk:
        (lake.root / name).mkdir(parents=True, exist_ok=True)
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
