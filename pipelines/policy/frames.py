"""Tables of whatever library a data scientist brings, as Arrow and back: pyarrow, Polars, pandas."""

from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.errors import RefusedError
from pipelines.policy.tag_file import readable
from schemas.contract import RESERVED_COLUMNS, Column, ColumnType, Contract


def to_arrow(frame: Any) -> pa.Table:
    """The frame as an Arrow table.

    Raises:
        RefusedError: not a table of a library that is known here.
    """
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if isinstance(frame, pl.DataFrame):
        return frame.to_arrow()
    if isinstance(frame, dict | list):
        return pa.table(frame) if isinstance(frame, dict) else pa.Table.from_pylist(frame)
    if type(frame).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    raise RefusedError(
        f"a pyarrow Table, a Polars or pandas DataFrame, a dict of columns or a list of rows, not {type(frame).__name__}"
    )


def with_columns(frame: Any, columns: dict[str, pa.Array]) -> Any:
    """The frame, of its own library, with more columns; the frame that was given is left as it is."""
    if isinstance(frame, pl.DataFrame):
        return frame.with_columns(pl.Series(name, pl.from_arrow(column)) for name, column in columns.items())
    if type(frame).__module__.partition(".")[0] == "pandas":
        return frame.assign(**{name: column.to_pylist() for name, column in columns.items()})
    table = to_arrow(frame)
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def fitted(table: pa.Table, contract: Contract) -> pa.Table:
    """The columns that rules may read, cast to the contract's types; one that is missing is null.

    Raises:
        RefusedError: a column cannot be cast.
    """
    columns: dict[str, Any] = {}
    for name, wanted in readable(contract).items():
        if name not in table.column_names:
            columns[name] = pa.nulls(table.num_rows, wanted)
            continue
        column = table.column(name)
        try:
            columns[name] = column if column.type == wanted else column.cast(wanted, safe=not pa.types.is_timestamp(wanted))
        except pa.ArrowException as error:
            raise RefusedError(f"column {name} is {column.type} and contract {contract.name} wants {wanted}: {error}") from error
    extra = [name for name in table.column_names if name not in columns]
    for name in extra:
        columns[name] = table.column(name)
    return pa.table(columns)


def drafted_contract(stream: str, table: pa.Table) -> Contract:
    """A contract for a table that has none: each column of the nearest type that rules know; others are skipped."""
    columns = [
        Column(field.name, type_)
        for field in table.schema
        if field.name not in RESERVED_COLUMNS and (type_ := _nearest(field.type)) is not None
    ]
    return Contract(stream, "0.0.0", tuple(columns))


def _nearest(type_: pa.DataType) -> ColumnType | None:
    if pa.types.is_dictionary(type_):
        return _nearest(type_.value_type)
    tests = (
        (pa.types.is_boolean, ColumnType.BOOL),
        (pa.types.is_integer, ColumnType.INT64),
        (pa.types.is_floating, ColumnType.FLOAT64),
        (pa.types.is_timestamp, ColumnType.TIMESTAMP),
        (pa.types.is_string, ColumnType.STRING),
        (pa.types.is_large_string, ColumnType.STRING),
        (pa.types.is_string_view, ColumnType.STRING),
        (pa.types.is_binary, ColumnType.BINARY),
        (pa.types.is_large_binary, ColumnType.BINARY),
        (pa.types.is_null, ColumnType.STRING),
    )
    return next((found for test, found in tests if test(type_)), None)
