"""`edge-agent check`: everything that is wrong with a configuration, at once, each with its line and what to do."""

import re
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.clock import SystemClock
from edge_agent.capture.refine import build_refiner, read_redaction_key
from edge_agent.clock_quality import ClockWatch
from edge_agent.complaints import explain_toml, explain_value
from edge_agent.config import (
    MAX_CONFIG_BYTES,
    AgentConfig,
    SourceConfig,
    convert_document,
    convert_table,
    load_contract,
    with_identity,
)
from edge_agent.documents.trust import read_key_file
from edge_agent.errors import ConfigError
from edge_agent.places import Step, line_of, parse_path
from edge_agent.process.ownership import refuse_role_name
from edge_agent.sources.registry import check_source
from edge_agent.trial.examine import examine_source

_MAX_ROUNDS = 100
_PATH = re.compile(r"`\$\.?([^`]*)`")
_FIRST_WORD = re.compile(r"^(\w+)\b")
_NAMED = re.compile(r"field `(\w+)`")


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong. `line` counts from 1; None: it is nowhere in the file."""

    line: int | None
    said: str

    def located(self, path: Path) -> str:
        """As compilers say it."""
        return f"{path}:{self.line}: {self.said}" if self.line else f"{path}: {self.said}"


class Checked(msgspec.Struct, frozen=True):
    """What a check found: faults, and where there are none the lines that tell what will run."""

    faults: tuple[Fault, ...]
    told: tuple[str, ...] = ()


def check_file(path: Path) -> Checked:
    """Check all that can be checked without starting; the heads of files that are there are read.

    Raises:
        ConfigError: the file cannot be read at all.
    """
    try:
        text = path.read_bytes()[:MAX_CONFIG_BYTES].decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the agent's TOML file with -c") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}; save it as UTF-8") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return Checked((Fault(*explain_toml(text, error)),))
    survey = _Survey(path, text)
    config = survey.convert(document)
    if config is not None:
        survey.look_closer(config)
    faults = sorted(survey.faults, key=lambda fault: fault.line or 0)
    return Checked(tuple(faults), tuple(survey.told))


class _Survey:
    """Collects faults. A part that is wrong is taken out of the document, so that the rest can be looked at, too."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._sources: list[int] = []
        self._removed: set[tuple[Step, ...]] = set()
        self.faults: list[Fault] = []
        self.told: list[str] = []

    def convert(self, document: dict[str, Any]) -> AgentConfig | None:
        """The configuration, less what is wrong with it; None where nothing is left to look at."""
        document = deepcopy(document)
        listed = document.get("source")
        self._sources = list(range(len(listed))) if isinstance(listed, list) else []
        for _ in range(_MAX_ROUNDS):
            try:
                return convert_document(document, self._path.absolute().parent)
            except msgspec.ValidationError as error:
                steps = _place(document, str(error))
                _, said = explain_value(self._text, error, AgentConfig)
                if not self._is_our_doing(steps, str(error)):
                    self._tell(self._original(steps), self._renumbered(said, steps))
                if not self._take_out(document, steps, str(error)):
                    return None
        return None

    def look_closer(self, config: AgentConfig) -> None:
        """Contracts, options, files: what only other rooms can judge."""
        key = self._try(("redaction", "key"), lambda: read_redaction_key(config.redaction.key)) or b""
        for at, source in enumerate(config.source):
            index = self._sources[at] if at < len(self._sources) else at
            if self._try(("source", index, "kind"), partial(_check_source, source, key)):
                contract = load_contract(source)
                for said in examine_source(source, contract, key):
                    self._tell(_nearest(self._text, ("source", index, "kind"), said), said)
                self.told.append(
                    f"  source {source.kind} -> {source.stream} (contract {contract.version}, priority {source.priority})"
                )
        if not config.source:
            self.told.append("  no [[source]]: nothing is captured")
        self._tls_files(config)
        self._director(config)
        if config.model is not None:
            self._try(("model",), lambda: _check_model(config.model or {}))
        if not self.faults:
            self._try(("broker", "tls", "cert"), lambda: self._identity(config))

    def _identity(self, config: AgentConfig) -> None:
        config = with_identity(self._path, config, "")
        refuse_role_name(config.state_dir, config.device)
        head = (
            f"{self._path}: device {config.device}, broker {config.broker.host}:{config.broker.port}, spool in {config.spool_dir}"
        )
        self.told.insert(0, head)

    def _tls_files(self, config: AgentConfig) -> None:
        if config.broker.tls is None:
            return
        absent = {name: file for name in ("ca", "cert", "key") if not (file := getattr(config.broker.tls, name)).exists()}
        for name, file in absent.items() if not config.device else ():
            said = f"broker.tls.{name}: {file} is not there; edge-agent enrol and docs/operator/install.md make it"
            self._tell(("broker", "tls", name), said)
        if absent:
            self.told.append(f"  not there yet: {', '.join(map(str, absent.values()))}; without them nothing is sent")

    def _director(self, config: AgentConfig) -> None:
        """Whose orders are followed; where the key file is not there yet, nobody's."""
        director = config.director
        if director is None and config.model is not None:
            self.told.append(
                "  warning: no [director]: this device follows unsigned orders of whoever keeps the broker;"
                " the next release follows signed ones alone (catchment director show)"
            )
        if director is None or director.file is None:
            return
        if director.file.exists():
            self._try(("director", "file"), lambda: read_key_file(director.file or Path()))
        else:
            self.told.append(f"  not there yet: {director.file}; without it no order is followed")

    def _try(self, steps: tuple[Step, ...], action: Callable[[], Any]) -> Any:
        """What the action gives; None where it complains."""
        try:
            return action()
        except ConfigError as error:
            said = str(error).removeprefix(f"{self._path}: ")
            self._tell(_nearest(self._text, steps, said), said)
            return None

    def _tell(self, steps: tuple[Step, ...], said: str) -> None:
        fault = Fault(line_of(self._text, steps), said)
        if fault not in self.faults:
            self.faults.append(fault)

    def _is_our_doing(self, steps: tuple[Step, ...], message: str) -> bool:
        """What is missing now was there, was wrong, and was told."""
        if message.startswith("device is missing"):
            return ("device",) in self._removed
        if " is missing: " in message:
            return any(gone[:-1] == steps for gone in self._removed)
        named = _NAMED.search(message)
        return "missing required field" in message and named is not None and (*steps, named.group(1)) in self._removed

    def _take_out(self, document: dict[str, Any], steps: tuple[Step, ...], message: str) -> bool:
        """Remove what is wrong, or put something in the place of what is missing. False where nothing is left to judge."""
        missing = _NAMED.search(message) if "missing required field" in message else None
        if missing and steps in ((), ("broker", "tls")):
            _table(document, steps)[missing.group(1)] = "."
            return True
        if not steps:
            document["device"] = "unnamed"
            return message.startswith("device is missing")
        if len(steps) == 2 and steps[0] == "source":
            self._sources.pop(int(steps[1]))
        self._removed.add(steps)
        del _table(document, steps[:-1])[steps[-1]]
        return True

    def _original(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Sources taken out before must not shift the lines of those after."""
        if len(steps) > 1 and steps[0] == "source" and isinstance(steps[1], int) and steps[1] < len(self._sources):
            return (steps[0], self._sources[steps[1]], *steps[2:])
        return steps

    def _renumbered(self, said: str, steps: tuple[Step, ...]) -> str:
        original = self._original(steps)
        return said if original == steps else said.replace(f"source[{steps[1]}]", f"source[{original[1]}]")


def _place(document: dict[str, Any], message: str) -> tuple[Step, ...]:
    """The way to what is wrong: the table that the message names, and the key that it begins with or speaks of."""
    found = _PATH.search(message)
    steps = parse_path(found.group(1)) if found else ()
    named = _NAMED.search(message) if "unknown field" in message else _FIRST_WORD.match(message)
    table = _table(document, steps)
    return (*steps, named.group(1)) if named and isinstance(table, dict) and named.group(1) in table else steps


def _table(document: dict[str, Any], steps: tuple[Step, ...]) -> Any:
    found: Any = document
    for step in steps:
        found = found[step]
    return found


def _check_source(source: SourceConfig, key: bytes) -> bool:
    contract = load_contract(source)
    check_source(source.kind, source.resolved, contract)
    build_refiner(contract, source.report, key, ClockWatch(SystemClock()), None)
    return True


def _check_model(table: dict[str, Any]) -> None:
    from edge_agent.models.config import ModelConfig  # noqa: PLC0415 # loaded only where models run
    from edge_agent.models.model_process import check_extra  # noqa: PLC0415 # likewise

    convert_table("model", table, ModelConfig)
    check_extra()


def _nearest(text: str, steps: tuple[Step, ...], said: str) -> tuple[Step, ...]:
    """A complaint of another room names its key somewhere in its words: the first one that stands in that table."""
    table = steps[:-1] if steps[0] == "source" else steps
    words = [word for word in re.findall(r"[a-z_]{3,}", said) if word not in ("source", "options")]
    for name in _once(words):
        for inner in ((*table, "options", name), (*table, name)):
            if _has_line(text, inner):
                return inner
    return _quoted(text, table, said) or steps


def _quoted(text: str, table: tuple[Step, ...], said: str) -> tuple[Step, ...] | None:
    """The option whose value a complaint quotes, where it names no key."""
    found: Any = tomllib.loads(text)
    for step in table:
        found = found[step] if isinstance(step, int) else found.get(step, {})
    options = found.get("options", {}) if isinstance(found, dict) else {}
    for name, value in options.items() if isinstance(options, dict) else ():
        if any(repr(one) in said for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)):
            return (*table, "options", name)
    return None


def _has_line(text: str, steps: tuple[Step, ...]) -> bool:
    """Whether the key itself stands where the path leads, be it inside an inline table."""
    number = line_of(text, steps)
    return number is not None and re.search(rf"\b{steps[-1]}\"?\s*=", text.splitlines()[number - 1]) is not None


def _once(words: list[str]) -> Iterator[str]:
    yield from dict.fromkeys(words)
