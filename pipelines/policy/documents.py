"""Policy documents: files that data scientists review like code; and those in force in a lake, by hash, with their history.

A policy can be written as the text that a person would have written, and two of them compared.
`deploy/policies/policy.schema.json` is the schema that editors complete and check YAML by.

    policies/documents/<id>@<version>.json      what a policy says; written once, never changed
    policies/history/<n:06d>.json               who made which set active, when, and why; n counts from 1 without gaps

An entry takes its number by a hard link or a conditional put, which refuse to replace: of two people who apply at once, one is
told to look again.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from catchment.runtime.atomic_files import sync_folder
from pipelines.contracts.yaml_source import YamlSource, parse_yaml, read_yaml, yaml_files
from pipelines.errors import ConfigError, ConflictError, CorruptLakeError, NotFoundError
from pipelines.inspect.code import bind_code
from pipelines.lake.lake import Lake
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
        "upload": {"description": "On the device: of what is kept, the telling samples are sent within a budget."},
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
        "file": {"description": "Python code or an ONNX model, next to this file."},
        "function": {"description": "The function or class in the Python file."},
        "columns": {"description": "What your own function gives: name and type."},
        "max_ms": {"minimum": 1, "maximum": 600_000},
        "max_memory_mib": {"minimum": 64, "maximum": 65_536},
    },
    "Example": {"row": {"description": "Columns; those that are not named are NULL."}, "tags": {"description": "All its tags."}},
}
FOLDER = "policies"


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


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change of the active set.

    Attributes:
        number: counts from 1.
        at_us: when, microseconds since 1970.
        who: by whom.
        action: "apply" or "withdraw".
        policy: what was applied, `<id>@<version>`, or the id that was withdrawn.
        active: the whole set from then on, `<id>@<version>` each.
        note: why.
    """

    number: int
    at_us: int
    who: str
    action: str
    policy: str
    active: tuple[str, ...]
    note: str = ""


def history(lake: Lake) -> tuple[Entry, ...]:
    """Every change, oldest first.

    Raises:
        CorruptLakeError: an entry cannot be read.
    """
    return tuple(_read_entry(lake, number) for number in range(1, newest_number(lake) + 1))


def newest_number(lake: Lake, known: int = 0) -> int:
    """The number of the newest entry, 0 for none; looks no further back than `known`."""
    number = known
    while lake.local(_entry_path(lake, number + 1)).exists():
        number += 1
    return number


def active_policies(lake: Lake, number: int | None = None) -> tuple[Policy, ...]:
    """The set that is active now, or was after change `number`, by id.

    Raises:
        CorruptLakeError: an entry or a document is gone or not what was stored.
        NotFoundError: there is no such change.
    """
    newest = newest_number(lake)
    wanted = newest if number is None else number
    if not 0 <= wanted <= newest:
        raise NotFoundError(f"there is no change {wanted} of the policies; there are {newest}")
    return tuple(read_document(lake, label) for label in _read_entry(lake, wanted).active) if wanted else ()


def policies_in_force(lake: Lake, folder: str) -> tuple[Policy, ...]:
    """Return the policies that a run tags by: the lake's active set, and those of the configured folder whose ids it lacks.

    Raises:
        ConfigError: a file of the folder is no policy.
        CorruptLakeError: the active set cannot be read.
    """
    active = active_policies(lake)
    ids = {policy.id for policy in active}
    return (*active, *(policy for policy in load_policies(folder) if policy.id not in ids))


def apply_policy(lake: Lake, policy: Policy, who: str, at_us: int, note: str = "") -> Entry:
    """Make this version of a policy active in place of any other of its id; the same version again changes nothing.

    Raises:
        ConflictError: somebody else changed the set meanwhile.
        CorruptLakeError: the active set cannot be read.
    """
    number, labels = _active_labels(lake)
    if policy.label in labels:
        return _read_entry(lake, number)
    write_document(lake, policy)
    kept = [label for label in labels if label.partition("@")[0] != policy.id]
    entry = Entry(number + 1, at_us, who, "apply", policy.label, tuple(sorted([*kept, policy.label])), note)
    _append(lake, entry)
    return entry


def withdraw_policy(lake: Lake, policy_id: str, who: str, at_us: int, note: str = "") -> Entry:
    """Make a policy inactive.

    Raises:
        NotFoundError: it is not active.
        ConflictError: somebody else changed the set meanwhile.
    """
    number, labels = _active_labels(lake)
    kept = tuple(label for label in labels if label.partition("@")[0] != policy_id)
    if len(kept) == len(labels):
        raise NotFoundError(f"policy {policy_id!r} is not active; active are {', '.join(labels) or 'none'}")
    entry = Entry(number + 1, at_us, who, "withdraw", policy_id, kept, note)
    _append(lake, entry)
    return entry


def write_document(lake: Lake, policy: Policy) -> None:
    """Store what a policy says under its id and version, once."""
    path = _document_path(lake, policy.label)
    if not lake.local(path).exists():
        _make_folder(lake, path.parent)
        lake.put(path, msgspec.json.encode(policy))


def read_document(lake: Lake, label: str) -> Policy:
    """The policy of that id and version.

    Raises:
        CorruptLakeError: it is gone, or not what its name says.
    """
    path = _document_path(lake, label)
    try:
        policy = msgspec.json.decode(lake.local(path).read_bytes(), type=Policy)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{path}: an active policy cannot be read ({error}); restore it") from error
    if policy.label != label:
        raise CorruptLakeError(f"{path}: holds {policy.label}; restore it")
    return policy


def known_versions(lake: Lake, policy_id: str) -> tuple[str, ...]:
    """The versions of a policy that were ever applied, oldest first, `<id>@<version>` each."""
    applied = [entry.policy for entry in history(lake) if entry.action == "apply"]
    return tuple(dict.fromkeys(label for label in applied if label.partition("@")[0] == policy_id))


def _active_labels(lake: Lake) -> tuple[int, Sequence[str]]:
    number = newest_number(lake)
    return number, (_read_entry(lake, number).active if number else ())


def _read_entry(lake: Lake, number: int) -> Entry:
    path = _entry_path(lake, number)
    try:
        return msgspec.json.decode(lake.local(path).read_bytes(), type=Entry)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{path}: the history of the policies cannot be read ({error}); restore it") from error


def _append(lake: Lake, entry: Entry) -> None:
    path = _entry_path(lake, entry.number)
    _make_folder(lake, path.parent)
    try:
        lake.create(path, msgspec.json.encode(entry))
    except ConflictError as error:
        raise ConflictError(f"{path}: somebody else changed the active policies meanwhile; look, then try again") from error
    sync_folder(path.parent)


def _make_folder(lake: Lake, folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        sync_folder(lake.root)


def _document_path(lake: Lake, label: str) -> Path:
    return lake.root / FOLDER / "documents" / f"{label}.json"


def _entry_path(lake: Lake, number: int) -> Path:
    return lake.root / FOLDER / "history" / f"{number:06d}.json"
