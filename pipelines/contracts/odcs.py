"""Read and write contracts as Open Data Contract Standard 3 YAML; docs/contracts.md describes the subset.

Columns are converted between ODCS properties and the plain form of a contract: ODCS's logical types, with physical type or
format, name the column types of a contract, and back.

A construct that the subset lacks and that would change the meaning (another logical type, a pattern, a library quality check)
is refused, never skipped; descriptions (servers, roles, support, pricing) are not read. A written contract is read back
equal.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from catchment.runtime.plain import plain_lines
from pipelines.contracts.yaml_source import YamlSource, read_yaml
from pipelines.errors import ConfigError, ExpressionError
from schemas.contract import LIST_TYPES, VECTOR_TYPES, ChipSpec, Column, ColumnType, Contract, PiiClass, contract_from_plain
from schemas.errors import ContractError

_Plain = dict[str, Any]
_KEYS = frozenset({
    "id", "name", "logicalType", "physicalType", "required", "unique", "logicalTypeOptions", "description", "customProperties",
    "enum", "businessName", "tags", "examples", "classification", "authoritativeDefinitions", "criticalDataElement",
    "semanticType", "physicalName",
})  # fmt: skip
_TIME_KEYS = frozenset({"timezone", "defaultTimezone"})
_VECTOR_KEYS = frozenset({"dimensions", "elementType"})
# What only describes a vector, and is let through unread.
_VECTOR_NOTES = frozenset({"distanceMetric", "embeddingModel", "embeddingModelVersion", "normalized"})
_CUSTOM = frozenset({"unit", "pii", "redact"})
_OPTIONS = {"minimum": "minimum", "maximum": "maximum", "maxLength": "max_length"}

# (logicalType, physicalType or logicalTypeOptions.format) -> column type; "" is what stands without either.
_TYPES: dict[tuple[str, str], ColumnType] = {
    ("string", ""): ColumnType.STRING,
    ("string", "string"): ColumnType.STRING,
    ("string", "binary"): ColumnType.BINARY,
    ("boolean", ""): ColumnType.BOOL,
    ("boolean", "bool"): ColumnType.BOOL,
    ("integer", ""): ColumnType.INT64,
    ("integer", "int64"): ColumnType.INT64,
    ("integer", "i64"): ColumnType.INT64,
    ("integer", "int32"): ColumnType.INT32,
    ("integer", "i32"): ColumnType.INT32,
    ("number", ""): ColumnType.FLOAT64,
    ("number", "float64"): ColumnType.FLOAT64,
    ("number", "f64"): ColumnType.FLOAT64,
    ("number", "float32"): ColumnType.FLOAT32,
    ("number", "f32"): ColumnType.FLOAT32,
    ("timestamp", ""): ColumnType.TIMESTAMP,
    ("timestamp", "timestamp"): ColumnType.TIMESTAMP,
}

# What is written: logicalType and physicalType.
WRITTEN: dict[ColumnType, tuple[str, str]] = {
    ColumnType.STRING: ("string", ""),
    ColumnType.BINARY: ("string", "binary"),
    ColumnType.BOOL: ("boolean", ""),
    ColumnType.INT64: ("integer", "int64"),
    ColumnType.INT32: ("integer", "int32"),
    ColumnType.FLOAT64: ("number", "float64"),
    ColumnType.FLOAT32: ("number", "float32"),
    ColumnType.TIMESTAMP: ("timestamp", ""),
}
ENGINE = "catchment"
_OBJECT_CUSTOM = frozenset({"payload", "chips", "eventTimeStep"})
_DAYS = frozenset({"d", "day", "days"})

API_VERSION = "v3.2.0"


def read_column(source: YamlSource, item: Any, *steps: str | int) -> _Plain:
    """The plain form of a column, as `contract_from_plain` takes it.

    Raises:
        ConfigError: not a property, or outside the subset; the message names file and line.
    """
    given = mapping(source, item, *steps)
    logical = str(given.get("logicalType") or "")
    known(source, given, _KEYS | {"array": {"items"}, "object": {"properties"}}.get(logical, set()), *steps)
    options = mapping(source, given.get("logicalTypeOptions") or {}, *steps, "logicalTypeOptions")
    plain: _Plain = {"name": given.get("name"), **custom_properties(source, given, _CUSTOM, *steps)}
    read = {"array": _array, "vector": _vector, "object": _object, "timestamp": _timestamp}.get(logical, _scalar)
    plain.update(read(source, given, options, steps))
    for key in ("required", "unique", "description"):
        if given.get(key):
            plain[key] = given[key]
    if given.get("physicalName") not in (None, given.get("name")):
        plain["source_name"] = given["physicalName"]
    allowed = given.get("enum") or options.get("enum")
    if allowed:
        plain["allowed"] = [entry.get("value") if isinstance(entry, dict) else entry for entry in allowed]
    return plain


def _scalar(source: YamlSource, given: _Plain, options: _Plain, steps: tuple[str | int, ...]) -> _Plain:
    known(source, options, {*_OPTIONS, "format", "enum"}, *steps, "logicalTypeOptions")
    bounds = {name: options[key] for key, name in _OPTIONS.items() if key in options}
    return {"type": str(_type(source, given, options, *steps)), **bounds}


def _timestamp(source: YamlSource, given: _Plain, options: _Plain, steps: tuple[str | int, ...]) -> _Plain:
    known(source, options, {*_TIME_KEYS, "format"}, *steps, "logicalTypeOptions")
    if options.get("timezone") is False:
        raise ConfigError(f"{source.where(*steps)}: timezone: false is not in the subset: a time without a zone names no instant")
    zone = str(options.get("defaultTimezone") or "")
    return {"type": str(_type(source, given, options, *steps)), "zone": "" if zone in ("UTC", "Etc/UTC") else zone}


def _array(source: YamlSource, given: _Plain, options: _Plain, steps: tuple[str | int, ...]) -> _Plain:
    known(source, options, {"maxItems"}, *steps, "logicalTypeOptions")
    items = mapping(source, given.get("items") or {}, *steps, "items")
    bounds = {"max_length": options["maxItems"]} if "maxItems" in options else {}
    if items.get("logicalType") == "object":
        known(source, items, {"logicalType", "description", "properties"}, *steps, "items")
        return {**_object(source, items, {}, (*steps, "items")), "type": str(ColumnType.LIST_STRUCT), **bounds}
    known(source, items, {"logicalType", "physicalType", "description"}, *steps, "items")
    item = column_type(str(items.get("logicalType") or ""), str(items.get("physicalType") or ""))
    found = f"list<{item}>"
    if found not in LIST_TYPES:
        raise ConfigError(f"{source.where(*steps)}: an array of {items.get('logicalType')!r} is not in the subset")
    return {"type": found, **bounds}


def _vector(source: YamlSource, _given: _Plain, options: _Plain, steps: tuple[str | int, ...]) -> _Plain:
    known(source, options, _VECTOR_KEYS | _VECTOR_NOTES, *steps, "logicalTypeOptions")
    found = f"vector<{options.get('elementType') or 'float32'}>"
    if found not in VECTOR_TYPES:
        raise ConfigError(f"{source.where(*steps)}: a vector of {options.get('elementType')!r} is not in the subset")
    return {"type": found, "length": options.get("dimensions")}


def _object(source: YamlSource, given: _Plain, options: _Plain, steps: tuple[str | int, ...]) -> _Plain:
    known(source, options, (), *steps, "logicalTypeOptions")
    items = given.get("properties") or ()
    fields = [read_column(source, item, *steps, "properties", index) for index, item in enumerate(items)]
    return {"type": str(ColumnType.STRUCT), "fields": fields}


def _type(source: YamlSource, given: _Plain, options: _Plain, *steps: str | int) -> ColumnType:
    physical = str(given.get("physicalType") or options.get("format") or "")
    type_ = column_type(str(given.get("logicalType") or ""), physical)
    if type_ is None:
        raise ConfigError(
            f"{source.where(*steps)}: column {given.get('name')}: logicalType {given.get('logicalType')!r} with "
            f"{physical!r} is not in the subset; there are {accepted_types()}, array, vector and object"
        )
    return type_


def write_column(column: Column) -> _Plain:
    """The ODCS property of a column."""
    plain: _Plain = {"name": column.name, **_written_type(column)}
    if column.source_name:
        plain = {"name": column.name, "physicalName": column.source_name, **_written_type(column)}
    if column.description:
        plain["description"] = column.description
    for name, is_set in (("required", column.required), ("unique", column.unique)):
        if is_set:
            plain[name] = True
    options = {**_written_options(column), **plain.pop("logicalTypeOptions", {})}
    if options:
        plain["logicalTypeOptions"] = options
    if column.allowed:
        plain["enum"] = [{"value": value} for value in column.allowed]
    custom: list[_Plain] = [{"property": "unit", "value": column.unit}] if column.unit else []
    if column.pii is not PiiClass.NONE:
        custom.append({"property": "pii", "value": str(column.pii)})
    if column.redact is not None:
        custom.append({"property": "redact", "value": msgspec.to_builtins(column.redact)})
    if custom:
        plain["customProperties"] = custom
    return plain


def _written_type(column: Column) -> _Plain:
    if column.type is ColumnType.LIST_STRUCT:
        fields = [write_column(field) for field in column.fields]
        return {"logicalType": "array", "items": {"logicalType": "object", "properties": fields}}
    if column.type in LIST_TYPES:
        return {"logicalType": "array", "items": _named(ColumnType(_item(column.type)))}
    if column.type in VECTOR_TYPES:
        return {"logicalType": "vector", "logicalTypeOptions": {"dimensions": column.length, "elementType": _item(column.type)}}
    if column.type is ColumnType.STRUCT:
        return {"logicalType": "object", "properties": [write_column(field) for field in column.fields]}
    if column.zone:
        return {**_named(column.type), "logicalTypeOptions": {"timezone": True, "defaultTimezone": column.zone}}
    return _named(column.type)


def _named(type_: ColumnType) -> _Plain:
    logical, physical = WRITTEN[type_]
    return {"logicalType": logical, "physicalType": physical} if physical else {"logicalType": logical}


def _item(type_: ColumnType) -> str:
    return type_.partition("<")[2].rstrip(">")


def _written_options(column: Column) -> _Plain:
    longest = "maxItems" if column.type in LIST_TYPES else "maxLength"
    bounds = (("minimum", column.minimum), ("maximum", column.maximum), (longest, column.max_length))
    return {name: int(bound) if float(bound).is_integer() else bound for name, bound in bounds if bound is not None}


def custom_properties(source: YamlSource, owner: _Plain, names: frozenset[str], *steps: str | int) -> _Plain:
    """The custom properties of ours; others belong to other tools and are let through."""
    found: _Plain = {}
    for index, item in enumerate(owner.get("customProperties") or ()):
        given = mapping(source, item, *steps, "customProperties", index)
        name = given.get("property")
        if name in names:
            found[str(name)] = given.get("value")
    return found


def mapping(source: YamlSource, value: Any, *steps: str | int) -> _Plain:
    """The value, which must be a mapping.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{source.where(*steps)}: a mapping is needed here, not {type(value).__name__}")
    return value


def known(source: YamlSource, given: _Plain, names: frozenset[str] | set[str] | tuple[str, ...], *steps: str | int) -> None:
    """Every key of the mapping must be one of these names.

    Raises:
        ConfigError: one is not.
    """
    for key in given:
        if key not in names:
            shown = ", ".join(sorted(names)) or "none"
            raise ConfigError(f"{source.where(*steps, key)}: {str(key)[:80]!r} is not in the subset; there are {shown}")


def column_type(logical: str, physical: str) -> ColumnType | None:
    """The column type; None if the subset has none for it."""
    return _TYPES.get((logical, physical))


def accepted_types() -> str:
    """List the accepted types for an error message."""
    return ", ".join(f"{logical}/{physical}" if physical else logical for logical, physical in _TYPES)


def load_odcs(path: Path) -> Contract:
    """The contract that an ODCS document describes.

    Raises:
        ConfigError: not YAML, not ODCS 3, or outside the subset; the message names file and line.
    """
    source = read_yaml(path)
    document = mapping(source, source.value)
    if document.get("kind") != "DataContract" or not str(document.get("apiVersion", "")).startswith("v3."):
        raise ConfigError(f"{source.where()}: needs kind: DataContract and apiVersion: v3.x")
    tables = document.get("schema")
    if not isinstance(tables, list) or len(tables) != 1:
        raise ConfigError(f"{source.where('schema')}: schema must list exactly one object: the stream")
    table = mapping(source, tables[0], "schema", 0)
    try:
        contract = contract_from_plain(_plain(source, document, table))
    except ContractError as error:
        raise ConfigError(f"{_line_of(source, str(error))}: {error}") from error
    _check_quality(source, contract)
    return contract


def _plain(source: YamlSource, document: _Plain, table: _Plain) -> _Plain:
    custom = custom_properties(source, table, _OBJECT_CUSTOM, "schema", 0)
    columns = [
        read_column(source, item, "schema", 0, "properties", index) for index, item in enumerate(table.get("properties") or ())
    ]
    plain: _Plain = {
        "name": table.get("name") or document.get("name"),
        "version": document.get("version"),
        "columns": columns,
        "quality": [_quality(source, item, index) for index, item in enumerate(table.get("quality") or ())],
        "retention_days": _retention_days(source, document),
        "owner": _owner(source, document),
        "description": _purpose(document.get("description")),
    }
    if "payload" in custom:
        plain["payload"] = _renamed(
            source, custom["payload"], {"mediaTypes": "media_types", "maxBytes": "max_bytes"}, {"required", "redact"}
        )
    if "eventTimeStep" in custom:
        plain["event_time_step_s"] = custom["eventTimeStep"]
    if "chips" in custom:
        names = set(ChipSpec.__struct_encode_fields__)
        plain["chips"] = [_renamed(source, chip, {}, names) for chip in custom["chips"]]
    return plain


def _quality(source: YamlSource, item: Any, index: int) -> _Plain:
    steps = ("schema", 0, "quality", index)
    given = mapping(source, item, *steps)
    if given.get("type") != "custom" or given.get("engine") != ENGINE:
        raise ConfigError(
            f"{source.where(*steps)}: a quality rule must be type: custom, engine: {ENGINE}, with the expression as "
            "implementation; other kinds are not carried out here"
        )
    return {"name": given.get("name"), "expression": given.get("implementation")}


def _retention_days(source: YamlSource, document: _Plain) -> int | None:
    found = None
    for index, item in enumerate(document.get("slaProperties") or ()):
        steps = ("slaProperties", index)
        given = mapping(source, item, *steps)
        if given.get("property") != "retention":
            continue
        value = given.get("value")
        if given.get("unit") not in _DAYS or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{source.where(*steps)}: retention is a whole number of days (value: 365, unit: d)")
        found = value
    return found


def _owner(source: YamlSource, document: _Plain) -> str:
    team = document.get("team") or {}
    return str(mapping(source, team, "team").get("name") or "") if not isinstance(team, list) else ""


def _purpose(description: Any) -> str:
    return str(description.get("purpose") or "").strip() if isinstance(description, dict) else ""


def _check_quality(source: YamlSource, contract: Contract) -> None:
    # Imported here: checks pull in the engine, which reading a document does not need.
    from pipelines.contracts.check import quality_columns  # noqa: PLC0415
    from pipelines.expressions.expression import compile_expression  # noqa: PLC0415

    for index, rule in enumerate(contract.quality):
        try:
            compile_expression(rule.expression, quality_columns(contract))
        except ExpressionError as error:
            where = source.where("schema", 0, "quality", index, "implementation")
            raise ConfigError(f"{where}: quality rule {rule.name}: {error}") from error


def _renamed(source: YamlSource, given: Any, names: dict[str, str], kept: set[str]) -> _Plain:
    known(source, mapping(source, given, "schema", 0, "customProperties"), {*names, *kept}, "schema", 0, "customProperties")
    return {names.get(key, key): value for key, value in given.items()}


def _line_of(source: YamlSource, message: str) -> str:
    """The compiled form's `$.columns[3]` is `schema[0].properties[3]` here; a column's name in the message serves too."""
    return source.where_of(message.replace("$.columns", "$.schema[0].properties").replace("$.quality", "$.schema[0].quality"))


def to_odcs(contract: Contract) -> str:
    """The ODCS document of this contract."""
    table: _Plain = {"name": contract.name, "logicalType": "object", "physicalType": "stream"}
    custom: list[_Plain] = []
    if contract.payload is not None:
        value: _Plain = {"mediaTypes": list(contract.payload.media_types), "maxBytes": contract.payload.max_bytes}
        redact = {} if contract.payload.redact is None else {"redact": msgspec.to_builtins(contract.payload.redact)}
        custom.append({"property": "payload", "value": {**value, "required": contract.payload.required, **redact}})
    if contract.event_time_step_s is not None:
        custom.append({"property": "eventTimeStep", "value": contract.event_time_step_s})
    if contract.chips:
        chips = [{"overlap": 0, "level": 0, **msgspec.to_builtins(chip)} for chip in contract.chips]
        custom.append({"property": "chips", "value": chips})
    if custom:
        table["customProperties"] = custom
    table["properties"] = [write_column(column) for column in contract.columns]
    if contract.quality:
        table["quality"] = [
            {"name": rule.name, "type": "custom", "engine": "catchment", "implementation": rule.expression}
            for rule in contract.quality
        ]
    document: _Plain = {
        "apiVersion": API_VERSION,
        "kind": "DataContract",
        "id": f"urn:catchment:contract:{contract.name}",
        "name": contract.name,
        "version": contract.version,
        "status": "active",
    }
    if contract.description:
        document["description"] = {"purpose": contract.description}
    if contract.owner:
        document["team"] = {"name": contract.owner}
    document["schema"] = [table]
    if contract.retention_days is not None:
        document["slaProperties"] = [{"property": "retention", "value": contract.retention_days, "unit": "d"}]
    text = _dumped(document, is_readable=True)
    # A name with an invisible character in it would not survive being printed as it stands: YAML's own escapes do.
    return text if plain_lines(text) == text else _dumped(document, is_readable=False)


def _dumped(document: _Plain, *, is_readable: bool) -> str:
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=is_readable, width=120))
