"""Read a set spec from YAML, and its JSON Schema for editors; `deploy/sets/set.schema.json` is that schema."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from pipelines.contracts.yaml_source import YamlSource, parse_yaml, read_yaml
from pipelines.errors import ConfigError, RefusedError
from pipelines.training.sample_list import read_sample_list
from pipelines.training.spec import SetSpec

_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`(?: - at `\$([^`]*)`)?")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[(\d+)\]")


def load_spec(path: Path) -> SetSpec:
    """One set spec.

    Raises:
        NotFoundError: there is no such file, or no such list of samples.
        ConfigError: not a spec; the message names file, line and key.
    """
    return _with_lists(_spec(read_yaml(path)), path)


def _with_lists(spec: SetSpec, path: Path) -> SetSpec:
    """The spec with the samples that its files list, so that its version and the set's manifest hold them."""
    sources = []
    for source in spec.sources:
        if source.samples_from:
            names = read_sample_list(path.parent / source.samples_from)
            own = tuple(name for name in names if source.set_name or name.partition("/")[0] == source.stream)
            if not own:
                raise ConfigError(f"{path.parent / source.samples_from}: it lists no sample of {source.title}")
            source = msgspec.structs.replace(source, samples=own, samples_from="")  # noqa: PLW2901 - the filled one
        sources.append(source)
    return msgspec.structs.replace(spec, sources=tuple(sources))


def parse_spec(text: str, name: str = "spec") -> SetSpec:
    """A spec that is at hand as text; `name` is what messages call it.

    Raises:
        ConfigError: not a spec; the message names the line and the key.
    """
    return _spec(parse_yaml(Path(name), text.encode()))


def plain_spec(spec: SetSpec) -> dict[str, Any]:
    """The spec in plain values, as a manifest keeps it."""
    plain: dict[str, Any] = msgspec.to_builtins(spec)
    return plain


def spec_schema() -> dict[str, Any]:
    """The schema: draft 2020-12, unknown keys refused, with the bounds that the reader has."""
    (found,), parts = msgspec.json.schema_components([SetSpec], ref_template="#/$defs/{name}")
    for part in parts.values():
        part["properties"] = {name: _without_defaults(field) for name, field in part["properties"].items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Catchment set spec"}
    return {**head, **found, "$defs": parts}


def schema_text() -> str:
    """The schema as the file holds it."""
    return json.dumps(spec_schema(), indent=2, sort_keys=True) + "\n"


def _spec(source: YamlSource) -> SetSpec:
    if not isinstance(source.value, dict):
        raise ConfigError(f"{source.path}:1: a set spec is a mapping with id and sources")
    try:
        return msgspec.convert(source.value, SetSpec)
    except (msgspec.ValidationError, RefusedError) as error:
        raise ConfigError(_located(source, str(error))) from error


def _located(source: YamlSource, message: str) -> str:
    unknown = _UNKNOWN.match(message)
    if unknown is None:
        return f"{source.where_of(message)}: {message}"
    key, steps = unknown[1], [name or int(index) for name, index in _STEP.findall(unknown[2] or "")]
    known = _keys_at(steps)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    return f"{source.where(*steps, key)}: unknown key {key[:80]!r}; {hint}"


def _keys_at(steps: list[str | int]) -> list[str]:
    """The keys that the schema knows at a place."""
    schema = spec_schema()
    part: dict[str, Any] = schema
    for step in (None, *steps):
        part = part.get("items", {}) if isinstance(step, int) else part["properties"][step] if step else part
        part = next((each for each in part.get("anyOf", ()) if "$ref" in each), part)
        part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    return sorted(part.get("properties", {}))


def _without_defaults(field: dict[str, Any]) -> dict[str, Any]:
    """An editor would write empty lists and texts out."""
    return {key: value for key, value in field.items() if key != "default"}
