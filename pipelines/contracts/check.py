"""Check a batch against its contract, whole columns at once: cast its types, then find the first reason to refuse each row.

A body whose types do not fit is refused as a whole, with the reason; values are checked only after that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from pipelines.contracts.arrow import row_schema
from pipelines.errors import RefusedError
from pipelines.expressions.expression import compile_expression, contract_columns
from schemas.contract import NUMERIC_TYPES, Column, ColumnType, Contract
from schemas.envelope import EVENT_TIME, PAYLOAD, PAYLOAD_SHA256

# A clock that was never set says 1970; one that is set to 2100 or later is no clock. RFC 3339 text, for the reason.
EARLIEST, LATEST = "1990-01-01T00:00:00Z", "2100-01-01T00:00:00Z"
_EARLIEST_US, _LATEST_US = 631_152_000_000_000, 4_102_444_800_000_000

_FLOAT_LISTS = frozenset({
    ColumnType.LIST_FLOAT32, ColumnType.LIST_FLOAT64, ColumnType.VECTOR_FLOAT32, ColumnType.VECTOR_FLOAT64,
})  # fmt: skip


_Rows = TypeVar("_Rows", pa.RecordBatch, pa.Table)


# What the contract wants -> what may become it without losing a value's meaning.
_WIDER: tuple[tuple[Callable[[pa.DataType], bool], tuple[Callable[[pa.DataType], bool], ...]], ...] = (
    (pt.is_floating, (pt.is_floating, pt.is_integer)),
    (pt.is_integer, (pt.is_integer,)),
    (pt.is_string, (pt.is_large_string, pt.is_string_view)),
    (pt.is_binary, (pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary)),
)


@dataclass(frozen=True, slots=True)
class Check:
    """Rows for which `fails` is true are refused with `reason`; NULL does not refuse."""

    reason: str
    fails: pl.Expr


def reasons(rows: pa.Table | pa.RecordBatch, contract: Contract) -> pa.StringArray:
    """For each row the first reason to refuse it, null where it is accepted.

    Args:
        rows: conformed to the contract (`conform`); further columns do not disturb.
        contract: the contract.

    Raises:
        ExpressionError: a quality rule of the contract is not in the expression language.
    """
    count = rows.num_rows
    checks = checks_of(contract)
    if not count:
        return pa.array([], pa.string())
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    frame: Any = pl.from_arrow(table.select([name for name in table.column_names if name in _columns_read(contract)]))
    failed = frame.select(check.fails.fill_null(value=False).alias(str(index)) for index, check in enumerate(checks))
    verdicts = failed.get_columns()
    seen = [index for index, verdict in enumerate(verdicts) if verdict.any()]
    if not seen:
        return pa.nulls(count, pa.string())
    first = np.full(count, -1, np.int32)
    for index in reversed(seen):
        first[np.broadcast_to(verdicts[index].to_numpy(), (count,))] = index
    return pa.array([check.reason for check in checks], pa.string()).take(pa.array(first, mask=first < 0))


def quality_columns(contract: Contract) -> dict[str, ColumnType]:
    """Return the columns that a contract's quality rules may read."""
    return {**contract_columns(contract), EVENT_TIME: ColumnType.TIMESTAMP}


@lru_cache(maxsize=256)
def checks_of(contract: Contract) -> tuple[Check, ...]:
    """All checks of a contract, in the order in which their reasons count.

    Raises:
        ExpressionError: a quality rule is not in the expression language.
    """
    checks = list(_event_time_checks())
    for column in contract.columns:
        checks += _column_checks(column, pl.col(column.name), column.name)
        if column.type is ColumnType.LIST_STRUCT:
            checks += _item_checks(column)
            continue
        for field in column.fields:
            found = _column_checks(field, pl.col(column.name).struct.field(field.name), f"{column.name}.{field.name}")
            is_there = pl.col(column.name).is_not_null()  # a struct that is null has no field to ask for
            checks += [Check(check.reason, check.fails & is_there) for check in found]
    checks += _payload_checks(contract)
    columns = quality_columns(contract)
    for rule in contract.quality:
        expression = compile_expression(rule.expression, columns)
        checks.append(Check(f"quality rule {rule.name}: not fulfilled", ~expression.to_polars()))
    return tuple(checks)


@lru_cache(maxsize=256)
def _columns_read(contract: Contract) -> frozenset[str]:
    return frozenset(name for check in checks_of(contract) for name in check.fails.meta.root_names())


def _event_time_checks() -> tuple[Check, ...]:
    micros = pl.col(EVENT_TIME).to_physical()
    return (
        Check(f"{EVENT_TIME}: missing", micros.is_null()),
        Check(f"{EVENT_TIME}: before {EARLIEST} or after {LATEST}", (micros < _EARLIEST_US) | (micros >= _LATEST_US)),
    )


def _column_checks(column: Column, value: pl.Expr, name: str) -> list[Check]:
    found: list[Check] = []
    if column.required:
        found.append(Check(f"{name}: required, but null", value.is_null()))
    if column.type in (ColumnType.FLOAT32, ColumnType.FLOAT64):
        found.append(Check(f"{name}: NaN or infinite", ~value.is_finite()))
    if column.type in _FLOAT_LISTS:
        items = value.cast(pl.List(pl.Float64))
        found.append(Check(f"{name}: NaN or infinite", ~items.list.eval(pl.element().is_finite()).list.all()))
    if column.minimum is not None:
        found.append(Check(f"{name}: below the minimum of {column.minimum:g}", value < _bound(column, column.minimum)))
    if column.maximum is not None:
        found.append(Check(f"{name}: above the maximum of {column.maximum:g}", value > _bound(column, column.maximum)))
    if column.allowed:
        found.append(Check(f"{name}: not one of {', '.join(column.allowed)}"[:200], ~value.is_in(list(column.allowed))))
    if column.length is not None:
        is_other = (value.list.len() != column.length) | value.list.eval(pl.element().is_null()).list.any()
        found.append(Check(f"{name}: not a vector of {column.length} numbers", is_other))
    if column.max_length is not None:
        length, unit = _length(column, value)
        found.append(Check(f"{name}: longer than {column.max_length} {unit}", length > column.max_length))
    return found


def _item_checks(column: Column) -> list[Check]:
    """The checks of each struct of a list: one that fails refuses the row. An item that is null has no field to ask for."""
    checks: list[Check] = []
    for field in column.fields:
        for check in _column_checks(field, pl.element().struct.field(field.name), f"{column.name}[].{field.name}"):
            fails = check.fails.fill_null(value=False) & pl.element().is_not_null()
            checks.append(Check(check.reason, pl.col(column.name).list.eval(fails).list.any()))
    return checks


def _length(column: Column, value: pl.Expr) -> tuple[pl.Expr, str]:
    if column.type is ColumnType.STRING:
        return value.str.len_chars(), "characters"
    return (value.bin.size(), "bytes") if column.type is ColumnType.BINARY else (value.list.len(), "items")


def _bound(column: Column, bound: float) -> pl.Expr:
    """The bound in the column's own type where that is exact, so that an int64 is not compared as a double."""
    if column.type in NUMERIC_TYPES and float(bound).is_integer() and abs(bound) < 2**53:
        return pl.lit(int(bound))
    return pl.lit(float(bound))


def _payload_checks(contract: Contract) -> list[Check]:
    spec = contract.payload
    if spec is None:
        return []
    payload, digest = pl.col(PAYLOAD), pl.col(PAYLOAD_SHA256)
    missing = [Check(f"{PAYLOAD}: missing", payload.is_null() & digest.is_null())] if spec.required else []
    return [
        *missing,
        Check(f"{PAYLOAD}: larger than {spec.max_bytes} bytes", payload.bin.size() > spec.max_bytes),
        Check(f"{PAYLOAD}: empty", payload.bin.size() == 0),
        Check(f"{PAYLOAD_SHA256}: missing next to a payload", payload.is_not_null() & digest.is_null()),
        Check(f"{PAYLOAD_SHA256}: not 64 lower-case hexadecimal digits", ~digest.str.contains("^[0-9a-f]{64}$")),
    ]


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
        if pt.is_list(field.type) and pt.is_struct(field.type.value_type):
            return _widen_items(column, field)
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


def _widen_items(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array:
    """A list of structs, its structs field by field."""
    given = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pt.is_null(given.type):
        return pa.nulls(len(given), field.type)
    lengths = pc.fill_null(pc.list_value_length(given), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    items = _widen_struct(pc.list_flatten(given), field.type.value_field)
    return pa.ListArray.from_arrays(offsets, items, type=field.type, mask=given.is_null())


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
