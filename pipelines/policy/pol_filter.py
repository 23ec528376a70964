"""Takes over policies of IBM Spectrum Discover (Fusion Data Cataloging): `pol_filter` and AUTOTAG become rules.

One policy there is one filter, one action and a schedule. Here its filter becomes the expression of a rule for each tag it
sets. A schedule has nothing to say here: every run tags. What cannot be taken over is told, never dropped silently.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from pipelines.errors import ConfigError
from schemas.errors import SchemaError
from schemas.policy import MAX_EXPRESSION_CHARS, Policy, Rule

MAX_JSON_BYTES = 4 * 1024 * 1024
RENAMED: Mapping[str, str] = {"filename": "file_name"}
_OTHERS = {
    "DEEPINSPECT": "write an `inspect` step with your function",
    "CONTENTSEARCH": "write an `inspect` step `use: text` with its patterns",
    "IMPORT_TAGS": "send the tags as a column of their samples",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """The policies that were taken over, and what was not, as sentences."""

    policies: tuple[Policy, ...]
    notes: tuple[str, ...]


def import_policies(body: bytes, stream: str, renamed: Mapping[str, str] = RENAMED) -> Imported:
    """Read one policy or a list of them, as their REST API gives and takes them.

    Args:
        body: JSON.
        stream: the stream that the policies shall be for.
        renamed: their column names to ours, next to `filename`.

    Raises:
        ConfigError: not such JSON.
    """
    if len(body) > MAX_JSON_BYTES:
        raise ConfigError(f"larger than {MAX_JSON_BYTES} bytes")
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}") from error
    items = document if isinstance(document, list) else [document]
    policies: dict[str, Policy] = {}
    notes: list[str] = []
    for place, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("pol_id"), str):
            raise ConfigError(f"policy {place + 1}: needs pol_id, pol_filter, action_id and action_params")
        made = _policy(item, stream, {**RENAMED, **renamed}, notes)
        if made is not None and made.id in policies:
            notes.append(f"{item['pol_id']}: not taken over: another one has the id {made.id}")
        elif made is not None:
            policies[made.id] = made
    return Imported(tuple(policies.values()), tuple(notes))


def _policy(item: dict[str, Any], stream: str, renamed: Mapping[str, str], notes: list[str]) -> Policy | None:
    name, action = item["pol_id"][:80], str(item.get("action_id", ""))
    if action != "AUTOTAG":
        notes.append(
            f"{name}: not taken over: {action or 'no action'}; {_OTHERS.get(action, 'only AUTOTAG gives tags by a filter')}"
        )
        return None
    if str(item.get("pol_state", "active")) != "active":
        notes.append(f"{name}: not taken over: it is {str(item['pol_state'])[:40]}")
        return None
    try:
        when = _expression(str(item.get("pol_filter", "")), renamed)
        rules = tuple(Rule(tag, when) for tag in _tags(item.get("action_params")))
        if item.get("schedule") not in (None, "NOW"):
            notes.append(f"{name}: its schedule is left out: every run tags, and `catchment policy retag` tags history")
        return Policy(_word(name, "-"), (stream,), rules, str(item.get("policy_owner", "")), f"Taken over from {name}.")
    except (ConfigError, SchemaError) as error:
        notes.append(f"{name}: not taken over: {error}")
        return None


def _expression(text: str, renamed: Mapping[str, str]) -> str:
    if not 0 < len(text) <= MAX_EXPRESSION_CHARS:
        raise ConfigError(f"its pol_filter must have 1..{MAX_EXPRESSION_CHARS} characters")
    try:
        tree = sqlglot.parse_one(text)
    except (SqlglotError, RecursionError) as error:
        raise ConfigError(f"its pol_filter is not SQL: {str(error).splitlines()[0][:200]}") from error
    for column in tree.find_all(exp.Column):
        name = column.name.lower()
        column.replace(exp.column(renamed.get(name, name)))
    return tree.sql()


def _tags(params: Any) -> list[str]:
    """The tags of `{"tags": {"name": "value"}}`; the parameters may also be JSON in a text, as their API answers."""
    if isinstance(params, str):
        try:
            params = json.loads(params)
        except ValueError as error:
            raise ConfigError(f"its action_params are not JSON: {error}") from error
    tags = params.get("tags") if isinstance(params, dict) else None
    if not isinstance(tags, dict) or not tags:
        raise ConfigError("its action_params name no tags")
    return [f"{_word(str(name), '_')}:{_value(value)}" for name, value in tags.items()]


def _value(value: Any) -> str:
    found = re.sub(r"[^a-z0-9_.-]+", "-", str(value).lower()).strip("-")[:62]
    if not found:
        raise ConfigError(f"tag value {str(value)[:40]!r} has no letter or digit")
    return found


def _word(text: str, joint: str) -> str:
    found = re.sub(r"[^a-z0-9]+", joint, text.lower()).strip(joint)[:62]
    return found if found[:1].isalpha() else f"p{joint}{found}"
