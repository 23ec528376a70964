"""Brings a batch from a device to the contract's schema, or says why its body does not fit. Types only, no values."""

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from pipelines.contracts.arrow import row_schema
from pipelines.errors import RefusedError
from schemas.contract import Contract
from schemas.envelope import EVENT_TIME

_Rows = TypeVar("_Rows", pa.RecordBatch, pa.Table)


# What the contract wants -> what may become it without losing a value's meaning.
_WIDER: tuple[tuple[Callable[[pa.DataType], bool], tuple[Callable[[pa.DataType], bool], ...]], ...] = (
    (pt.is_floating, (pt.is_floating, pt.is_integer)),
    (pt.is_integer, (pt.is_integer,)),
    (pt.is_string, (pt.is_large_string, pt.is_string_view)),
    (pt.is_binary, (pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary)),
)


class ContractMismatchError(RefusedError):
    """The columns or types of a whole body do not fit the contract; the message names column and types."""


def conform(rows: _Rows, contract: Contract) -> _Rows:
    """The same rows in the contract's `row_schema`: reordered, widened without loss, absent columns null.

    Raises:
        ContractMismatchError: an unknown or repeated column, no event_time, or a type that cannot be widened to the contract's.
    """
    wanted = row_schema(contract)
    names = rows.schema.names
    if rows.schema.equals(wanted):
        return rows
    unknown = [name for name in names if wanted.get_field_index(name) < 0]
    if unknown:
        shown = ", ".join(repr(name[:80]) for name in unknown[:5])
        raise ContractMismatchError(f"unknown column {shown}: contract {contract.name} {contract.version} does not have it")
    if len(set(names)) != len(names):
        raise ContractMismatchError("a column is given twice")
    if EVENT_TIME not in names:
        raise ContractMismatchError(f"column {EVENT_TIME} is missing")
    columns = [_widen(rows.column(field.name), field) if field.name in names else _nulls(rows, field.type) for field in wanted]
    built: _Rows = type(rows).from_arrays(columns, schema=wanted)
    return built


def _nulls(rows: pa.RecordBatch | pa.Table, type_: pa.DataType) -> pa.Array:
    return pa.nulls(rows.num_rows, type_)


def _widen(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if column.type.equals(field.type):
        return column
    if not _fits(column.type, field.type):
        raise ContractMismatchError(f"column {field.name}: {column.type} does not fit the contract's {field.type}")
    # Nanoseconds are cut to microseconds; every other step must keep the value.
    plain = column.type.value_type if pt.is_dictionary(column.type) else column.type
    is_cut = pt.is_timestamp(plain) and plain.unit == "ns"
    try:
        if pt.is_struct(field.type):
            return _widen_struct(column, field)
        return pc.cast(column, field.type, safe=not is_cut)
    except pa.ArrowInvalid as error:
        raise ContractMismatchError(f"column {field.name}: {column.type} does not fit {field.type}: {error}") from error


def _widen_struct(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array:
    """Field by field: Arrow casts a struct only if its fields are the same ones in the same order."""
    given = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pt.is_null(given.type):
        return pa.nulls(len(given), field.type)
    names = {given.type.field(index).name for index in range(given.type.num_fields)}
    parts = [
        _widen(pc.struct_field(given, [part.name]), part) if part.name in names else pa.nulls(len(given), part.type)
        for part in field.type
    ]
    return pa.StructArray.from_arrays(parts, fields=list(field.type), mask=given.is_null())


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of the given type may become values of the wanted one."""
    if pt.is_dictionary(given):
        return _fits(given.value_type, wanted)
    if pt.is_null(given) or given.equals(wanted):
        return True
    if pt.is_struct(wanted):
        return pt.is_struct(given) and all(
            wanted.get_field_index(part.name) >= 0 and _fits(part.type, wanted.field(part.name).type) for part in given
        )
    if _is_any_list(wanted):
        is_long_enough = (
            not pt.is_fixed_size_list(given) or not pt.is_fixed_size_list(wanted) or given.list_size == wanted.list_size
        )
        return _is_any_list(given) and is_long_enough and _fits(given.value_type, wanted.value_type)
    if pt.is_timestamp(wanted):
        return pt.is_timestamp(given) and given.tz is not None
    return any(is_wanted(wanted) and any(fits(given) for fits in fitting) for is_wanted, fitting in _WIDER)


def _is_any_list(type_: pa.DataType) -> bool:
    return bool(pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_))
