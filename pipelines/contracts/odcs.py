"""Read and write contracts as Open Data Contract Standard 3 YAML; docs/contracts.md describes the subset.

A construct that the subset lacks and that would change the meaning (another logical type, a pattern, a library quality check) is
refused, never skipped; descriptions (servers, roles, support, pricing) are not read. A written contract is read back equal.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml

from catchment.runtime.plain import plain_lines
from pipelines.contracts.odcs_columns import custom_properties, known, mapping, read_column, write_column
from pipelines.contracts.yaml_source import YamlSource, read_yaml
from pipelines.errors import ConfigError, ExpressionError
from schemas.contract import Contract, contract_from_plain
from schemas.errors import ContractError

ENGINE = "catchment"
_OBJECT_CUSTOM = frozenset({"payload", "chips", "eventTimeStep"})
_DAYS = frozenset({"d", "day", "days"})
_Plain = dict[str, Any]


API_VERSION = "v3.2.0"


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
        names = {"name", "size", "overlap", "level"}
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
        chips = [{"name": chip.name, "size": chip.size, "overlap": chip.overlap, "level": chip.level} for chip in contract.chips]
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
