"""Derive schemas from a contract: Arrow's of a batch and of a table's rows, and the JSON Schema of a row as a device sends it.

Columns that could tell about a person are known here: their values stay out of everything that is kept next to the rows.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import pyarrow as pa

from schemas.contract import LIST_TYPES, STRUCT_TYPES, VECTOR_TYPES, Column, ColumnType, Contract, PiiClass, item_of
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

_Plain = dict[str, Any]
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES: dict[ColumnType, _Plain] = {
    ColumnType.STRING: {"type": "string"},
    ColumnType.BOOL: {"type": "boolean"},
    ColumnType.INT32: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    ColumnType.INT64: {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    ColumnType.FLOAT32: {"type": "number"},
    ColumnType.FLOAT64: {"type": "number"},
    ColumnType.TIMESTAMP: {"type": "string", "format": "date-time"},
    ColumnType.BINARY: {"type": "string", "contentEncoding": "base64"},
}


def arrow_type(column: Column) -> pa.DataType:
    """The type of the column in a batch and in the lake.

    Timestamps are instants, so in UTC whatever zone they are shown in. Vectors are lists, whose length is checked: Delta has
    no other, and Arrow cannot read a null vector back from Parquet.
    """
    if column.type in STRUCT_TYPES:
        item = pa.struct([pa.field(field.name, arrow_type(field)) for field in column.fields])
        return item if column.type is ColumnType.STRUCT else pa.list_(item)
    return ARROW_TYPES[column.type]


def reader_type(column: Column) -> pa.DataType:
    """The type in which a reader elsewhere may hold the column: vectors of their length, timestamps in their zone."""
    if column.type in STRUCT_TYPES:
        item = pa.struct([pa.field(field.name, reader_type(field)) for field in column.fields])
        return item if column.type is ColumnType.STRUCT else pa.list_(item)
    if column.length is not None:
        return pa.list_(ARROW_TYPES[column.type].value_type, column.length)
    return pa.timestamp("us", column.zone) if column.zone else ARROW_TYPES[column.type]


def contract_fields(contract: Contract) -> list[pa.Field]:
    """One nullable field per contract column, in the contract's order."""
    return [pa.field(column.name, arrow_type(column)) for column in contract.columns]


@lru_cache(maxsize=256)
def row_schema(contract: Contract) -> pa.Schema:
    """Return the schema of a batch of samples: event_time, the contract's columns, then payload and payload_sha256 if any."""
    payload = [pa.field(PAYLOAD, pa.binary()), pa.field(PAYLOAD_SHA256, pa.string())] if contract.payload else []
    return pa.schema([pa.field(EVENT_TIME, TIMESTAMP), *contract_fields(contract), *payload])


@lru_cache(maxsize=256)
def table_schema(contract: Contract) -> pa.Schema:
    """Return the schema of the stream's table in the lake: narrow, the payload by reference."""
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


def json_schema(contract: Contract) -> _Plain:
    """JSON Schema (2020-12) of one row of a JSON body. Quality rules are not in it: it has no words for them."""
    properties: _Plain = {EVENT_TIME: {"type": "string", "format": "date-time", "description": "RFC 3339 with a zone"}}
    properties |= {column.name: _nullable(column) for column in contract.columns}
    required = [column.name for column in contract.columns if column.required]
    schema: _Plain = {
        "$schema": _DRAFT,
        "$id": f"urn:catchment:contract:{contract.name}:{contract.version}",
        "title": f"{contract.name} {contract.version}",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    if contract.description:
        schema["description"] = contract.description
    if contract.payload is not None:
        properties["payload_b64"] = {"type": "string", "contentEncoding": "base64"}
        properties[PAYLOAD_SHA256] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
        if contract.payload.required:
            schema["anyOf"] = [{"required": ["payload_b64"]}, {"required": [PAYLOAD_SHA256]}]
    return schema


def _nullable(column: Column) -> _Plain:
    plain = _column(column)
    if column.required:
        return plain
    if "enum" in plain:
        plain["enum"] = [*plain["enum"], None]
    return {**plain, "type": [plain["type"], "null"]}


def _column(column: Column) -> _Plain:
    described = {"description": f"{column.description} [{column.unit}]".strip() if column.unit else column.description}
    plain = {**_typed(column), **({"description": described["description"]} if described["description"] else {})}
    for key, bound in (("minimum", column.minimum), ("maximum", column.maximum)):
        if bound is not None:
            plain[key] = int(bound) if float(bound).is_integer() else bound
    if column.max_length is not None and column.type is not ColumnType.BINARY:
        plain["maxItems" if column.type in LIST_TYPES else "maxLength"] = column.max_length
    if column.allowed:
        plain["enum"] = list(column.allowed)
    if column.source_name:
        plain["x-physicalName"] = column.source_name
    return plain


def _typed(column: Column) -> _Plain:
    if column.type is ColumnType.STRUCT:
        fields = {field.name: _nullable(field) for field in column.fields}
        needed = [field.name for field in column.fields if field.required]
        return {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}
    if column.type is ColumnType.LIST_STRUCT:
        return {"type": "array", "items": _nullable(item_of(column))}
    if column.type in LIST_TYPES | VECTOR_TYPES:
        item = _TYPES[ColumnType(column.type.partition("<")[2].rstrip(">"))]
        if column.length is not None:
            return {"type": "array", "items": item, "minItems": column.length, "maxItems": column.length}
        return {"type": "array", "items": {**item, "type": [item["type"], "null"]}}
    return dict(_TYPES[column.type])


def arrow_schema(contract: Contract) -> pa.Schema:
    """The Arrow schema of a batch for readers elsewhere: with units, zones and descriptions next to the types."""
    columns = {column.name: column for column in contract.columns}
    fields = [_annotated(field, columns[field.name]) if field.name in columns else field for field in row_schema(contract)]
    return pa.schema(fields, {"contract": f"{contract.name} {contract.version}"})


def _annotated(field: pa.Field, column: Column) -> pa.Field:
    pii = "" if column.pii == "none" else str(column.pii)
    words = {"unit": column.unit, "pii": pii, "description": column.description, "source_name": column.source_name}
    metadata = {key: value for key, value in words.items() if value}
    return pa.field(field.name, reader_type(column), nullable=not column.required, metadata=metadata or None)
