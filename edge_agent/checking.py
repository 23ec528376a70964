"""`edge-agent check`: report everything that is wrong with a configuration at once, each with its line and what to do.

Files that a source names are read where a second reader takes nothing from the agent: columns never filled and times that
cannot be read are found so. Nothing is listened to or started.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.clock import SystemClock
from catchment.runtime.toml_config import Step, TomlSyntaxError, line_of, read_toml
from edge_agent.capture.transforms import build_transforms, read_redaction_key
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import (
    AgentConfig,
    SourceConfig,
    convert_document,
    convert_table,
    load_contract,
    with_identity,
)
from edge_agent.documents.trust import read_key_file
from edge_agent.errors import ConfigError, ModelError
from edge_agent.process import refuse_role_name
from edge_agent.sources.registry import check_source, names_given
from edge_agent.sources.rows.cells import tells_no_zone
from edge_agent.sources.rows.mapping import explain_unfilled, unfilled_columns
from edge_agent.trial.reading import TrialReader, quiet_log
from edge_agent.trial.result import Trial
from schemas.contract import Contract

_SAMPLES = 200
_WAIT_S = 5.0
# Kinds that read a file from its start, and the option that names it.
_FILES = {"can": "log", "replay": "path", "tail": "path", "zeek": "path"}


def examine_source(source: SourceConfig, contract: Contract, key: bytes) -> Iterator[str]:
    """Find faults of a source whose options are right in themselves."""
    start = source.resolved.get("time_start", "")
    if isinstance(start, str) and tells_no_zone(start) and not source.resolved.get("time_zone"):
        yield f"source {source.kind!r}: time_start = {start!r} tells no zone; write 2024-05-01T00:00:00Z or +02:00 at its end"
    names = names_given(source.kind, source.resolved, contract)
    if names is not None:
        unfilled = unfilled_columns(contract, names)
        if unfilled:
            yield f"source {source.kind!r}: {explain_unfilled(contract, unfilled, names)}"
            return
    path = source.resolved.get(_FILES.get(source.kind, ""), "")
    if isinstance(path, str) and path and Path(path).is_file():
        with quiet_log():
            trial = TrialReader(source, contract, key).read(_SAMPLES, _WAIT_S)
        yield from _of_trial(trial, path)


def _of_trial(trial: Trial, path: str) -> Iterator[str]:
    if trial.failure:
        yield f"source {trial.kind!r}: {path}: {trial.failure.removeprefix(f'source {trial.kind!r}: ')}"
        return
    refused = Counter({reason: count for reason, count in trial.rejected.items() if not reason.startswith("report:")})
    if not trial.samples and refused:
        reason, count = refused.most_common(1)[0]
        yield f"source {trial.kind!r}: {path}: no row becomes a sample: {reason} ({count:,})"
    elif trial.samples and trial.refused == len(trial.samples):
        reason, count = Counter(sample.refusal for sample in trial.samples).most_common(1)[0]
        why = next((f"; {cell}" for cell in trial.rejected if cell.startswith(f"cell {reason.partition(':')[0]}:")), "")
        yield f"source {trial.kind!r}: {path}: the core would refuse each of the first {count:,} samples: {reason}{why}"


class Fault(msgspec.Struct, frozen=True, rename={"message": "said"}):  # the name in --json
    """One thing that is wrong. `line` counts from 1; None: it is nowhere in the file."""

    line: int | None
    message: str

    def located(self, path: Path) -> str:
        """As compilers say it."""
        return f"{path}:{self.line}: {self.message}" if self.line else f"{path}: {self.message}"


class Checked(msgspec.Struct, frozen=True, rename={"report_lines": "told"}):  # the name in --json
    """The result of a check: faults, or without any the lines that describe what will run."""

    faults: tuple[Fault, ...]
    report_lines: tuple[str, ...] = ()


def check_file(path: Path) -> Checked:
    """Check all that can be checked without starting; the heads of files that are there are read.

    Raises:
        ConfigError: the file cannot be read at all.
    """
    try:
        text, document = read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the agent's TOML file with -c") from error
    except TomlSyntaxError as error:
        return Checked((Fault(error.fault.line, error.fault.message),))
    survey = _Survey(path, text)
    config = survey.convert(document)
    if config is not None:
        survey.look_closer(config)
    faults = sorted(survey.faults, key=lambda fault: fault.line or 0)
    return Checked(tuple(faults), tuple(survey.report_lines))


class _Survey:
    """Collects faults. A part that is wrong is left out of the configuration, so that the rest can be looked at, too."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._sources: tuple[int, ...] = ()
        self.faults: list[Fault] = []
        self.report_lines: list[str] = []

    def convert(self, document: dict[str, Any]) -> AgentConfig | None:
        """The configuration, less what is wrong with it; None where nothing is left to look at."""
        found = convert_document(self._text, document, self._path.absolute().parent)
        self.faults = [Fault(fault.line, fault.message) for fault in found.faults]
        self._sources = found.kept.get(("source",), ())
        return found.value

    def look_closer(self, config: AgentConfig) -> None:
        """Contracts, options, files: what only other rooms can judge."""
        key = self._try(("redaction", "key"), lambda: read_redaction_key(config.redaction.key)) or b""
        for at, source in enumerate(config.source):
            index = self._sources[at] if at < len(self._sources) else at
            if self._try(("source", index, "kind"), partial(_check_source, source, key)):
                contract = load_contract(source)
                for message in examine_source(source, contract, key):
                    self._tell(_nearest(self._text, ("source", index, "kind"), message), message)
                self.report_lines.append(
                    f"  source {source.kind} -> {source.stream} (contract {contract.version}, priority {source.priority})"
                )
        if not config.source:
            self.report_lines.append("  no [[source]]: nothing is captured")
        self._tls_files(config)
        self._director(config)
        if config.models:
            self.report_lines += self._try(("model",), lambda: _check_models(config)) or []
        if not self.faults:
            self._try(("broker", "tls", "cert"), lambda: self._identity(config))

    def _identity(self, config: AgentConfig) -> None:
        config = with_identity(self._path, config, "")
        refuse_role_name(config.state_dir, config.device)
        head = (
            f"{self._path}: device {config.device}, broker {config.broker.host}:{config.broker.port}, spool in {config.spool_dir}"
        )
        self.report_lines.insert(0, head)

    def _tls_files(self, config: AgentConfig) -> None:
        if config.broker.tls is None:
            return
        absent = {name: file for name in ("ca", "cert", "key") if not (file := getattr(config.broker.tls, name)).exists()}
        for name, file in absent.items() if not config.device else ():
            message = f"broker.tls.{name}: {file} is not there; edge-agent enrol and docs/operator/install.md make it"
            self._tell(("broker", "tls", name), message)
        if absent:
            self.report_lines.append(f"  not there yet: {', '.join(map(str, absent.values()))}; without them nothing is sent")

    def _director(self, config: AgentConfig) -> None:
        """Describe the keys whose orders are followed; none while the key file is missing."""
        director = config.director
        if director is None and config.models:
            self.report_lines.append(
                "  warning: no [director]: this device follows unsigned orders of the person who keeps the broker;"
                " the next release follows signed ones alone (catchment director show)"
            )
        if director is None or director.file is None:
            return
        if director.file.exists():
            self._try(("director", "file"), lambda: read_key_file(director.file or Path()))
        else:
            self.report_lines.append(f"  not there yet: {director.file}; without it no order is followed")

    def _try(self, steps: tuple[Step, ...], action: Callable[[], Any]) -> Any:
        """Return the result of the action; None where it reports a fault."""
        try:
            return action()
        except ConfigError as error:
            message = str(error).removeprefix(f"{self._path}: ")
            self._tell(_nearest(self._text, steps, message), message)
            return None

    def _tell(self, steps: tuple[Step, ...], message: str) -> None:
        fault = Fault(line_of(self._text, steps), message)
        if fault not in self.faults:
            self.faults.append(fault)


def _check_source(source: SourceConfig, key: bytes) -> bool:
    contract = load_contract(source)
    check_source(source.kind, source.resolved, contract)
    build_transforms(contract, source.report, key, ClockWatch(SystemClock()), None)
    return True


def _check_models(config: AgentConfig) -> list[str]:
    """What models get on this device: its class, and what the installed ones take, measured."""
    from edge_agent.models.config import ModelConfig  # noqa: PLC0415 # loaded only where models run
    from edge_agent.models.device_class import measure_active, probe_device  # noqa: PLC0415 # likewise
    from edge_agent.models.device_models import check_models  # noqa: PLC0415 # likewise
    from edge_agent.models.model_process import check_extra  # noqa: PLC0415 # likewise

    configs = [convert_table("model", table, ModelConfig) for table in config.models]
    check_models(configs)
    check_extra()
    lines = []
    try:
        lines.append(f"  device: {probe_device()}")
        for each in configs:
            found = measure_active(each, config.state_dir) or f"model {each.name}: none installed yet"
            lines.append(f"  {found}; limit {each.max_memory_mib} MiB, {each.max_ms} ms")
    except ModelError as error:
        lines.append(f"  warning: {error}")
    return lines


def _nearest(text: str, steps: tuple[Step, ...], message: str) -> tuple[Step, ...]:
    """A complaint of another room names its key somewhere in its words: the first one that stands in that table."""
    table = steps[:-1] if steps[0] == "source" else steps
    words = [word for word in re.findall(r"[a-z_]{3,}", message) if word not in ("source", "options")]
    for name in _once(words):
        for inner in ((*table, "options", name), (*table, name)):
            if _has_line(text, inner):
                return inner
    return _quoted(text, table, message) or steps


def _quoted(text: str, table: tuple[Step, ...], message: str) -> tuple[Step, ...] | None:
    """The option whose value a complaint quotes, where it names no key."""
    found: Any = tomllib.loads(text)
    for step in table:
        found = found[step] if isinstance(step, int) else found.get(step, {})
    options = found.get("options", {}) if isinstance(found, dict) else {}
    for name, value in options.items() if isinstance(options, dict) else ():
        if any(repr(one) in message for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)):
            return (*table, "options", name)
    return None


def _has_line(text: str, steps: tuple[Step, ...]) -> bool:
    """Whether the key itself stands where the path leads, be it inside an inline table."""
    number = line_of(text, steps)
    return number is not None and re.search(rf"\b{steps[-1]}\"?\s*=", text.splitlines()[number - 1]) is not None


def _once(words: list[str]) -> Iterator[str]:
    yield from dict.fromkeys(words)
