"""A contract in languages that other tools read: JSON Schema of a row as a device sends it, the Arrow schema of a batch."""

from typing import Any

import pyarrow as pa

from pipelines.contracts.arrow import reader_type, row_schema
from schemas.contract import LIST_TYPES, VECTOR_TYPES, Column, ColumnType, Contract
from schemas.envelope import EVENT_TIME, PAYLOAD_SHA256

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
    if column.type in LIST_TYPES | VECTOR_TYPES:
        item = _TYPES[ColumnType(column.type.partition("<")[2].rstrip(">"))]
        if column.length is not None:
            return {"type": "array", "items": item, "minItems": column.length, "maxItems": column.length}
        return {"type": "array", "items": {**item, "type": [item["type"], "null"]}}
    return dict(_TYPES[column.type])


def arrow_schema(contract: Contract) -> pa.Schema:
    """The Arrow schema of a batch for readers elsewhere: with units, zones and descriptions beside the types."""
    columns = {column.name: column for column in contract.columns}
    fields = [_annotated(field, columns[field.name]) if field.name in columns else field for field in row_schema(contract)]
    return pa.schema(fields, {"contract": f"{contract.name} {contract.version}"})


def _annotated(field: pa.Field, column: Column) -> pa.Field:
    pii = "" if column.pii == "none" else str(column.pii)
    words = {"unit": column.unit, "pii": pii, "description": column.description, "source_name": column.source_name}
    metadata = {key: value for key, value in words.items() if value}
    return pa.field(field.name, reader_type(column), nullable=not column.required, metadata=metadata or None)
