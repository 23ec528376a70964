"""Replaces all files of a table in one commit, if nobody has committed since they were looked at.

The commit removes every file of one version and adds the new ones; whoever reads sees all of the old or all of the new.
Application transactions stay as they are, so an ingest run goes on as if nothing had happened.
"""

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.errors import ConflictError, RetryLaterError
from pipelines.lake.lake import Lake
from pipelines.lake.table import HOOKS, sync_log


class LiveFile(msgspec.Struct, frozen=True):
    """A data file of a table's version: its path below the table's folder, and Delta's statistics JSON."""

    path: str
    rows: int
    bytes: int
    stats: str


def live_files(table: DeltaTable) -> tuple[LiveFile, ...]:
    """The files of this version, by path."""
    actions = pa.table(table.get_add_actions(flatten=False)).to_pylist()
    return tuple(sorted(map(_live_file, actions), key=lambda file: file.path))


def replace_files(lake: Lake, name: str, table: DeltaTable, files: Iterable[LiveFile], note: Mapping[str, str]) -> int:
    """Make `files` the whole content of a table.

    Args:
        lake: the lake.
        name: the table's folder, relative to the root.
        table: the version that the files follow from.
        files: durable files, none of them in that version under the same path.
        note: what the commit says of itself.

    Returns:
        The new version.

    Raises:
        ConflictError: somebody has committed since `table` was opened; look again.
        RetryLaterError: the storage is away.
    """
    now_ms = time.time_ns() // 1_000_000
    actions: list[AddAction | RemoveAction] = [
        AddAction(file.path, file.bytes, {}, now_ms, data_change=True, stats=file.stats) for file in files
    ]
    properties = CommitProperties(custom_metadata=dict(note), max_commit_retries=0)
    try:
        table.create_write_transaction(
            actions, "overwrite", table.schema(), commit_properties=properties, post_commithook_properties=HOOKS
        )
    except CommitFailedError as error:
        raise ConflictError(f"{name}: somebody committed after version {table.version()}; look again ({error})") from error
    except (DeltaError, OSError) as error:
        raise RetryLaterError(f"{name}: could not be rewritten: {error}; is the storage there?") from error
    sync_log(lake, name, table.version())
    return table.version() + 1


def _live_file(action: Mapping[str, Any]) -> LiveFile:
    stats = {
        "numRecords": action["num_records"],
        "minValues": _plain_values(action.get("min")),
        "maxValues": _plain_values(action.get("max")),
        "nullCount": _plain_values(action.get("null_count")),
    }
    return LiveFile(action["path"], action["num_records"] or 0, action["size_bytes"], json.dumps(stats))


def _plain_values(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: _plain(value) for name, value in (values or {}).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return _plain_values(value) if isinstance(value, dict) else value
