"""The JSON Schema of policy files, for editors that complete and check YAML; `deploy/policies/policy.schema.json` is this."""

import json
from typing import Any

import msgspec

from schemas.policy import MAX_EDGE_RULES, MAX_EXPRESSION_CHARS, MAX_RULES, Policy

_EXPRESSION = {"type": "string", "minLength": 1, "maxLength": MAX_EXPRESSION_CHARS}
_EXTRAS: dict[str, dict[str, dict[str, Any]]] = {
    "Policy": {
        "id": {"pattern": "^[a-z][a-z0-9-]{0,62}$", "description": "Its name; a version is a hash of the content."},
        "streams": {"minItems": 1, "description": "The streams whose rows it tags."},
        "rules": {"maxItems": MAX_RULES, "description": "Each gives its tag to the rows for which its expression is true."},
        "owner": {"description": "Who answers for it."},
        "examples": {"description": "Rows and the tags they must get: tests that `catchment policy test` runs."},
        "keep": {"maxItems": MAX_EDGE_RULES, "description": "On the device: kept whatever `sample` says."},
        "sample": {"maxItems": MAX_EDGE_RULES, "description": "On the device: of these a share is kept."},
        "priority": {"maxItems": MAX_EDGE_RULES, "description": "On the device: what goes last when the spool is full."},
        "inspect": {"description": "Columns computed from payloads or text, for the rules to use."},
    },
    "Rule": {
        "tag": {"pattern": "^[a-z][a-z0-9_]{0,62}(:[a-z0-9_.-]{1,62})?$", "description": "A word, or name:value."},
        "when": {**_EXPRESSION, "description": "SQL over the columns; NULL is not true."},
    },
    "KeepRule": {"when": _EXPRESSION},
    "SampleRule": {
        "when": _EXPRESSION,
        "rate": {"minimum": 0, "maximum": 1, "description": "The share kept."},
        "pressure": {"minimum": 0, "maximum": 1, "description": "Only while the spool is filled to this share."},
    },
    "PriorityRule": {
        "when": _EXPRESSION,
        "priority": {"minimum": 0, "maximum": 1_000_000, "description": "The lowest goes first."},
    },
    "InspectStep": {
        "use": {"description": "image, exif, text, onnx, or a name of your own."},
        "file": {"description": "Python code or an ONNX model, beside this file."},
        "function": {"description": "The function or class in the Python file."},
        "columns": {"description": "What your own function gives: name and type."},
        "max_ms": {"minimum": 1, "maximum": 600_000},
        "max_memory_mib": {"minimum": 64, "maximum": 65_536},
    },
    "Example": {"row": {"description": "Columns; those that are not named are NULL."}, "tags": {"description": "All its tags."}},
}


def policy_schema() -> dict[str, Any]:
    """The schema: draft 2020-12, unknown keys refused, every field with the bounds that the reader has."""
    (found,), parts = msgspec.json.schema_components([Policy], ref_template="#/$defs/{name}")
    for name, fields in _EXTRAS.items():
        part = parts[name]
        part["additionalProperties"] = False
        for field, more in fields.items():
            part["properties"][field].update(more)
        part["properties"] = {field: _without_defaults(each) for field, each in part["properties"].items()}
    parts["InspectStep"]["properties"].pop("code")  # put in by the reader
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Catchment policy",
        **found,
        "$defs": parts,
    }


def schema_text() -> str:
    """The schema as the file holds it."""
    return json.dumps(policy_schema(), indent=2, sort_keys=True) + "\n"


def _without_defaults(field: dict[str, Any]) -> dict[str, Any]:
    """An editor would write empty lists and texts out."""
    return {key: value for key, value in field.items() if key != "default"}
