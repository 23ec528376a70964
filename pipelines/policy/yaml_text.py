"""A policy as the text a person would have written, and how two of them differ."""

import difflib
from typing import Any

import msgspec
import yaml

from schemas.policy import Policy


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
