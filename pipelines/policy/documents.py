"""Read and write policy documents: YAML files that data scientists review like code, and their JSON Schema for editors.

A policy can be written as the text that a person would have written, and two of them compared.
`deploy/policies/policy.schema.json` is the schema that editors complete and check YAML by.
"""

import difflib
import json
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pipelines.contracts.yaml_source import YamlSource, parse_yaml, read_yaml, yaml_files
from pipelines.errors import ConfigError
from pipelines.inspect.code import bind_code
from schemas.errors import PolicyDocumentError
from schemas.policy import (
    MAX_EDGE_RULES,
    MAX_EXPRESSION_CHARS,
    MAX_RULES,
    Example,
    InspectStep,
    KeepRule,
    Policy,
    PriorityRule,
    Rule,
    SampleRule,
    policy_from_plain,
)

_PARTS: dict[str, type[msgspec.Struct]] = {
    "rules": Rule, "examples": Example, "keep": KeepRule, "sample": SampleRule, "priority": PriorityRule, "inspect": InspectStep,
}  # fmt: skip
_KINDS: tuple[type[msgspec.Struct], ...] = (Policy, *_PARTS.values())
_KEYS = {kind: frozenset(field.name for field in msgspec.structs.fields(kind)) for kind in _KINDS}

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


def load_policies(folder: str) -> tuple[Policy, ...]:
    """Every `*.yaml` policy of a folder, by file name; none for the folder "".

    Raises:
        ConfigError: a file is not a policy, or an id is used twice; the message names file and line.
    """
    if not folder:
        return ()
    found: dict[str, Path] = {}
    policies: list[Policy] = []
    for path in yaml_files(folder):
        policy = load_policy(path)
        if policy.id in found:
            raise ConfigError(f"{path}: policy id {policy.id!r} is already used in {found[policy.id]}; rename one")
        found[policy.id] = path
        policies.append(policy)
    return tuple(policies)


def load_policy(path: Path) -> Policy:
    """One policy document.

    Raises:
        ConfigError: not a policy; the message names file and line.
    """
    return bind_code(_policy(read_yaml(path)), path.parent)


def parse_policy(text: str, name: str = "policy") -> Policy:
    """A policy document that is at hand as text; `name` is what messages call it. Files of its steps are not looked for.

    Raises:
        ConfigError: not a policy; the message names the line.
    """
    return _policy(parse_yaml(Path(name), text.encode()))


def _policy(source: YamlSource) -> Policy:
    _refuse_unknown_keys(source)
    try:
        return policy_from_plain(source.value)
    except PolicyDocumentError as error:
        raise ConfigError(f"{source.where_of(str(error))}: {error}") from error


def _refuse_unknown_keys(source: YamlSource) -> None:
    """A misspelt key must not be ignored: `exmaples:` would be a policy without tests."""
    document: Any = source.value
    if not isinstance(document, dict):
        raise ConfigError(f"{source.path}:1: a policy is a mapping with id, streams and rules")
    _check_keys(source, document, _KEYS[Policy])
    for key, kind in _PARTS.items():
        items = document.get(key)
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict):
                _check_keys(source, item, _KEYS[kind], key, index)


def _check_keys(source: YamlSource, item: dict[Any, Any], known: frozenset[str], *steps: str | int) -> None:
    for key in item:
        if key not in known:
            raise ConfigError(f"{source.where(*steps, key)}: unknown key {str(key)[:80]!r}; there are {', '.join(sorted(known))}")


def to_yaml(policy: Policy) -> str:
    """The policy as YAML that `load_policy` reads back to the same version."""
    plain: Any = msgspec.to_builtins(policy)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    return text


def difference(old: Policy, new: Policy) -> str:
    """A unified diff of their YAML; empty if they say the same."""
    if old.version == new.version:
        return ""
    lines = difflib.unified_diff(to_yaml(old).splitlines(), to_yaml(new).splitlines(), old.label, new.label, lineterm="")
    return "\n".join(lines)


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
