"""Reads policy documents: YAML files that data scientists review like code.

A policy as the text a person would have written, and how two of them differ.
"""

import difflib
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pipelines.contracts.yaml_source import YamlSource, parse_yaml, read_yaml, yaml_files
from pipelines.errors import ConfigError
from pipelines.inspect.code import bind_code
from schemas.errors import PolicyDocumentError
from schemas.policy import Example, InspectStep, KeepRule, Policy, PriorityRule, Rule, SampleRule, policy_from_plain

_PARTS: dict[str, type[msgspec.Struct]] = {
    "rules": Rule, "examples": Example, "keep": KeepRule, "sample": SampleRule, "priority": PriorityRule, "inspect": InspectStep,
}  # fmt: skip
_KINDS: tuple[type[msgspec.Struct], ...] = (Policy, *_PARTS.values())
_KEYS = {kind: frozenset(field.name for field in msgspec.structs.fields(kind)) for kind in _KINDS}


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
