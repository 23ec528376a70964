"""New files of a table: written whole, made durable, described well enough to commit them, and brought to the lake's store."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import atomic_file, sync_folder
from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake, polled
from pipelines.lake.layout import CHIPS, LANDING, PAYLOAD, STREAMS, cut_prefix, prepared_path

ROW_GROUP_ROWS = 256 * 1024
_BY_COLUMN = ("minValues", "maxValues", "nullCount")


class NewFile(msgspec.Struct, frozen=True):
    """A data file that waits for its commit.

    `table` and `path` are relative to the lake root; `stats` is Delta's statistics JSON.
    """

    table: str
    path: str
    rows: int
    bytes: int
    stats: str


def write_table_file(
    lake: Lake, table: str, name: str, rows: pa.Table, private: Collection[str] = (), *, lasting: bool = False
) -> NewFile:
    """Write rows as `<table>/<name>`: next to, fsync, rename, fsync the folder.

    Args:
        lake: the lake.
        table: the table's folder, relative to the root.
        name: the file's name; the same plan gives the same name, so a repeated run replaces its own file.
        rows: what to write; text may be dictionary-coded, in the file it is plain text either way.
        private: columns that must not show in any statistics.
        lasting: written small rather than fast, as a compaction does.

    Raises:
        OSError: the disk refused.
    """
    folder = lake.root / table
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
    shown = [field.name for field in rows.schema if field.name not in private and not pa.types.is_nested(field.type)]
    with atomic_file(folder / name, mode=0o666) as file:
        pq.write_table(
            rows,
            file,
            compression="zstd",
            compression_level=3 if lasting else 1,
            column_encoding=_encodings(rows.schema, lasting=lasting),
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=_dictionary_columns(rows.schema),
            write_statistics=shown,
            write_page_checksum=True,
            store_schema=False,  # Arrow's own schema would tell how text was coded here; Parquet's says all that readers need
        )
        size = file.tell()
    return NewFile(table, f"{table}/{name}", rows.num_rows, size, table_stats(rows, private))


def table_stats(rows: pa.Table, private: Collection[str] = ()) -> str:
    """Delta's statistics of a file: the row count, and bounds of the numeric and time columns that are not private."""
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for field in rows.schema:
        if field.name in private or not (pa.types.is_primitive(field.type) and not pa.types.is_boolean(field.type)):
            continue
        column = rows.column(field.name)
        nulls[field.name] = column.null_count
        bounds = _bounds(column)
        if bounds is not None:
            low[field.name], high[field.name] = _plain(bounds[0]), _plain(bounds[1])
    return json.dumps({"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls})


def merged_stats(parts: Sequence[str]) -> str:
    """The statistics of a file from those of its columns, each looked at by itself."""
    found = [json.loads(part) for part in parts]
    joined = {name: {key: value for part in found for key, value in part[name].items()} for name in _BY_COLUMN}
    return json.dumps({"numRecords": max((part["numRecords"] for part in found), default=0), **joined})


def _bounds(column: pa.ChunkedArray) -> tuple[Any, Any] | None:
    """The smallest and the largest value. NumPy is several times as fast, but knows neither null nor NaN."""
    if len(column) and not column.null_count and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        values = column.to_numpy()
        low, high = values.min().item(), values.max().item()
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    bounds = pc.min_max(column)
    return (bounds["min"].as_py(), bounds["max"].as_py()) if bounds["min"].is_valid else None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value


def _encodings(schema: pa.Schema, *, lasting: bool) -> dict[str, str]:
    """Whole numbers as differences. Floats byte by byte where speed counts, plain where they are to lie long.

    Measured (docs/architecture.md): byte streams write 2.3 times as fast, and are 8 % smaller for values of full precision; but
    values that sensors round are 36 % smaller plain, for then whole values repeat and zstd finds them.
    """
    plain = [field for field in schema if field.name not in _dictionary_columns(schema)]
    whole = {field.name: "DELTA_BINARY_PACKED" for field in plain if _is_whole(field.type)}
    if lasting:
        return whole
    return {**whole, **{field.name: "BYTE_STREAM_SPLIT" for field in plain if pa.types.is_floating(field.type)}}


def _is_whole(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_timestamp(type_))


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Text repeats, numbers of sensors do not: a dictionary of doubles costs time and saves nothing."""
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
        if _is_text(field.type) or pa.types.is_list(field.type) or field.name in ("epoch", "run", "received_at")
    ]


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_dictionary(type_))


def upload_files(lake: Lake, files: Sequence[NewFile]) -> None:
    """See to it that every file that a commit will name is in the lake, as it was written.

    Raises:
        CorruptLakeError: one is gone, or of another size.
        RetryLaterError: the storage is unavailable.
    """
    lake.upload(path for file in files if (path := lake.root / file.path).is_file())
    for file in files:
        path = lake.root / file.path
        size = path.stat().st_size if path.is_file() else lake.size(path)
        if size != file.bytes:
            raise CorruptLakeError(f"{path}: prepared with {file.bytes} bytes and no longer so; delete its run's prepared.json")


def upload_payloads(lake: Lake, files: Sequence[NewFile]) -> None:
    """Bring the payload shards of a run's rows to the store.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    lake.upload(payload_paths(lake, files))


def upload_run(lake: Lake, run: int, files: Sequence[NewFile]) -> None:
    """Bring all that a run has prepared to the store, and last the word that it is prepared.

    From here on any machine ends the run in the same way. No commit names payload shards, but rows will.

    Raises:
        CorruptLakeError: a file is gone, or of another size.
        RetryLaterError: the storage is unavailable.
    """
    upload_payloads(lake, files)
    upload_files(lake, files)
    lake.upload(path for path in (prepared_path(lake.root, run),) if path.is_file())


def payload_paths(lake: Lake, files: Iterable[NewFile]) -> Iterator[Path]:
    """The files in the lake's folder that hold the payloads of a run's rows."""
    rows = (lake.root / file.path for file in files if file.table.startswith(f"{STREAMS}/"))
    yield from filter(Path.is_file, (lake.root / PAYLOAD / path.parent.name / path.name for path in rows))


def upload_cut(lake: Lake, cut: int) -> None:
    """Bring the pixels and pictures of a cut to the store, before rows name them.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    lake.upload(cut_paths(lake, cut))


def cut_paths(lake: Lake, cut: int) -> Iterator[Path]:
    """The files in the lake's folder that hold the pixels and pictures of a cut."""
    for found in (lake.root / CHIPS).glob(f"[!.]*/*/{cut_prefix(cut)}-*"):
        yield from filter(Path.is_file, ([found], found.rglob("*"))[found.is_dir()])


def bridges_of(lake: Lake) -> list[str]:
    """The bridges that have landed anything, by name.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    return polled(lake, LANDING, lambda: [name for name in lake.folders(LANDING) if not name.startswith(".")])
