"""The Arrow schemas that follow from a contract: of a batch of samples, and of the rows of a stream's table.

Which columns could tell about a person: their values stay out of everything that is kept beside the rows themselves.
"""

from collections.abc import Iterable
from functools import lru_cache

import pyarrow as pa

from schemas.contract import Column, ColumnType, Contract, PiiClass
from schemas.envelope import EVENT_TIME, PAYLOAD, PAYLOAD_SHA256

TIMESTAMP = pa.timestamp("us", "UTC")
ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    ColumnType.STRING: pa.string(),
    ColumnType.BOOL: pa.bool_(),
    ColumnType.INT32: pa.int32(),
    ColumnType.INT64: pa.int64(),
    ColumnType.FLOAT32: pa.float32(),
    ColumnType.FLOAT64: pa.float64(),
    ColumnType.TIMESTAMP: TIMESTAMP,
    ColumnType.BINARY: pa.binary(),
    ColumnType.LIST_STRING: pa.list_(pa.string()),
    ColumnType.LIST_BOOL: pa.list_(pa.bool_()),
    ColumnType.LIST_INT32: pa.list_(pa.int32()),
    ColumnType.LIST_INT64: pa.list_(pa.int64()),
    ColumnType.LIST_FLOAT32: pa.list_(pa.float32()),
    ColumnType.LIST_FLOAT64: pa.list_(pa.float64()),
    ColumnType.VECTOR_FLOAT32: pa.list_(pa.float32()),
    ColumnType.VECTOR_FLOAT64: pa.list_(pa.float64()),
}


def arrow_type(column: Column) -> pa.DataType:
    """The type of the column in a batch and in the lake.

    Timestamps are instants, so in UTC whatever zone they are shown in. Vectors are lists, whose length is checked: Delta has
    no other, and Arrow cannot read a null vector back from Parquet.
    """
    if column.type is ColumnType.STRUCT:
        return pa.struct([pa.field(field.name, arrow_type(field)) for field in column.fields])
    return ARROW_TYPES[column.type]


def reader_type(column: Column) -> pa.DataType:
    """The type in which a reader elsewhere may hold the column: vectors of their length, timestamps in their zone."""
    if column.type is ColumnType.STRUCT:
        return pa.struct([pa.field(field.name, reader_type(field)) for field in column.fields])
    if column.length is not None:
        return pa.list_(ARROW_TYPES[column.type].value_type, column.length)
    return pa.timestamp("us", column.zone) if column.zone else ARROW_TYPES[column.type]


def contract_fields(contract: Contract) -> list[pa.Field]:
    """One nullable field per contract column, in the contract's order."""
    return [pa.field(column.name, arrow_type(column)) for column in contract.columns]


@lru_cache(maxsize=256)
def row_schema(contract: Contract) -> pa.Schema:
    """What a batch of samples looks like: event_time, the contract's columns, then payload and payload_sha256 if any."""
    payload = [pa.field(PAYLOAD, pa.binary()), pa.field(PAYLOAD_SHA256, pa.string())] if contract.payload else []
    return pa.schema([pa.field(EVENT_TIME, TIMESTAMP), *contract_fields(contract), *payload])


@lru_cache(maxsize=256)
def table_schema(contract: Contract) -> pa.Schema:
    """What a row of the stream's table in the lake looks like: narrow, the payload by reference."""
    payload = [
        pa.field("payload_shard", pa.string()),
        pa.field("payload_row", pa.int32()),
        pa.field("payload_offset", pa.int64()),
        pa.field("payload_length", pa.int64()),
        pa.field(PAYLOAD_SHA256, pa.string()),
    ]
    return pa.schema([
        pa.field("device", pa.string()),
        pa.field("epoch", pa.int64()),
        pa.field("seq", pa.int64()),
        pa.field(EVENT_TIME, TIMESTAMP),
        pa.field("received_at", TIMESTAMP),
        pa.field("run", pa.int64()),
        pa.field("contract_version", pa.string()),
        *contract_fields(contract),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("tag_rules", pa.list_(pa.string())),
        *(payload if contract.payload else []),
    ])  # fmt: skip


def is_private(column: Column) -> bool:
    """Whether the contract gives the column, or a field of it, a class of personal data."""
    return column.pii is not PiiClass.NONE or any(field.pii is not PiiClass.NONE for field in column.fields)


def private_columns(*contracts: Contract) -> frozenset[str]:
    """The private columns of these versions of a stream's contract: what one of them calls private is private in all."""
    return frozenset(column.name for contract in contracts for column in contract.columns if is_private(column))


def private_by_stream(contracts: Iterable[Contract]) -> dict[str, frozenset[str]]:
    """The private columns of each stream, over all versions of its contract."""
    found: dict[str, frozenset[str]] = {}
    for contract in contracts:
        found[contract.name] = found.get(contract.name, frozenset()) | private_columns(contract)
    return found
