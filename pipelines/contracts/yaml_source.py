"""Reads a YAML document that people write and review: plain values, and the line of each for error messages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError, NotFoundError

MAX_YAML_BYTES = 4 * 1024 * 1024
_MAX_DEPTH = 32
# Written in C, and ten times as fast: a core starts with a hundred contracts. What it refuses the other one reads, to say why.
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[(\d+|\.\.\.)\]")


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A YAML document: `value` in plain dicts, lists and scalars, and where each part of it stands."""

    path: Path
    value: Any
    root: yaml.Node

    def where(self, *steps: str | int) -> str:
        """`file:line` of the part at these keys and indexes, or of the nearest part above that exists."""
        node = self.root
        for step in steps:
            below = _child(node, step)
            if below is None:
                break
            node = below
        return f"{self.path}:{node.start_mark.line + 1}"

    def where_of(self, message: str) -> str:
        """`file:line` of the part that a msgspec message names as `$.rules[0].tag`."""
        match = re.search(r"`\$([^`]*)`", message)
        steps = _STEP.findall(match.group(1)) if match else []
        return self.where(*(name or (int(index) if index.isdecimal() else 0) for name, index in steps))


def read_yaml(path: Path) -> YamlSource:
    """Read one YAML document: no aliases, no duplicate keys, no tags, bounded size and depth.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it cannot be read, or is not such a document; the message names file and line.
    """
    try:
        with path.open("rb") as file:
            body = file.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file; give an existing one") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_yaml(path, body)


def parse_yaml(path: Path, body: bytes) -> YamlSource:
    """The same for bytes that are at hand; `path` is what messages call them.

    Raises:
        ConfigError: not such a document; the message names the line.
    """
    if len(body) > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_YAML_BYTES} bytes")
    try:
        text = body.decode("utf-8")
        try:
            return _parsed(path, text, _FAST)
        except (yaml.YAMLError, ValueError):
            return _parsed(path, text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}{_at(error.problem_mark)}: not YAML: {error.problem or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error


def _parsed(path: Path, text: str, loader: Any) -> YamlSource:
    _refuse_depth(path, text, loader)
    root = yaml.compose(text, Loader=loader)
    if root is None:
        raise ConfigError(f"{path}:1: the document is empty")
    _refuse_duplicates(path, root)
    return YamlSource(path, yaml.constructor.SafeConstructor().construct_document(root), root)


def yaml_files(folder: str, suffix: str = ".yaml") -> Iterator[Path]:
    """The files of a folder with this suffix, by name.

    Raises:
        ConfigError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give an existing one, or none")
    yield from sorted(path for path in root.iterdir() if path.name.endswith(suffix) and path.is_file())


def _refuse_depth(path: Path, text: str, loader: Any) -> None:
    """Aliases make a small document huge and depth exhausts the reader's stack; both show in the events."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{path}{_at(event.start_mark)}: aliases (*) are not read; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ConfigError(f"{path}{_at(event.start_mark)}: nested deeper than {_MAX_DEPTH} levels")


def _refuse_duplicates(path: Path, root: yaml.Node) -> None:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                    raise ConfigError(f"{path}:{key.start_mark.line + 1}: key {str(key.value)[:80]!r} is given twice or no text")
                seen.add(key.value)
                waiting.append(value)


def _at(mark: Any) -> str:
    return "" if mark is None else f":{mark.line + 1}"


def _child(node: yaml.Node, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        found: yaml.Node = node.value[step]
        return found
    return None
