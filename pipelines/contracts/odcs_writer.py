"""Writes a contract as Open Data Contract Standard 3 YAML: what `load_odcs` reads back to an equal contract."""

from typing import Any

import msgspec
import yaml

from catchment.runtime.plain import plain_lines
from pipelines.contracts.odcs_columns import write_column
from schemas.contract import Contract

API_VERSION = "v3.2.0"
_Plain = dict[str, Any]


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
