"""`edge-agent try`: which sources, read how, with what exit code."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from edge_agent.capture.transforms import read_redaction_key
from edge_agent.commands.exits import EXIT_RETRY, EXIT_UNHEALTHY
from edge_agent.commands.status_reader import is_alive
from edge_agent.config import AgentConfig, SourceConfig, load_agent_config, load_contract
from edge_agent.errors import ConfigError
from edge_agent.health.file import read_health
from edge_agent.sources.registry import check_source
from edge_agent.trial.reading import TrialReader, quiet_log
from edge_agent.trial.result import Trial
from edge_agent.trial.tap import NotRunningError, TapRequest, ask_tap

# Kinds that any number of programs may read at once.
_SHARED = frozenset({"replay", "tail", "zeek", "directory", "mqtt-local"})
# Options with which a kind reads a file, which likewise takes nothing from the agent.
_FILE_OPTIONS = {"can": "log"}


def try_sources(path: Path, name: str, samples: int, wait_s: float) -> tuple[Trial, ...]:
    """Try the sources of a configuration.

    Args:
        path: the agent's TOML file.
        name: a source's `name`, a stream, a kind, `kind:stream`, or a source's number in the file from 1; "": all.
        samples: of each, at most.
        wait_s: for each.

    Raises:
        ConfigError: the configuration is wrong, or names no such source.
    """
    config = load_agent_config(path)
    chosen = select(config.source, name)
    key = read_redaction_key(config.redaction.key)
    with quiet_log(), _ended_by_signals():
        return tuple(_try_one(config, source, key, samples, wait_s) for source in chosen)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends a trial as Ctrl-C does: programs that a source started are ended before."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def select(sources: Sequence[SourceConfig], name: str) -> list[SourceConfig]:
    """The sources of this name.

    Raises:
        ConfigError: there is none.
    """
    found = [
        source
        for number, source in enumerate(sources, 1)
        if name
        in (
            "",
            str(number),
            source.stream,
            source.kind,
            f"{source.kind}:{source.stream}",
            source.name,
            source.label or source.name,
        )
    ]
    if not found:
        known = ", ".join(f"{number} {source.kind}:{source.stream}" for number, source in enumerate(sources, 1)) or "none"
        raise ConfigError(f"no source {name[:80]!r}: there is {known}" if name else "the configuration has no [[source]] to try")
    return found


def exit_code(trials: Sequence[Trial]) -> int:
    """0: all is well; 1: something was refused or failed; 75: nothing came in time, and nothing else is wrong."""
    if any(trial.failure or trial.refused or trial.rows_rejected for trial in trials):
        return EXIT_UNHEALTHY
    return 0 if all(trial.samples for trial in trials) else EXIT_RETRY


def _try_one(config: AgentConfig, source: SourceConfig, key: bytes, samples: int, wait_s: float) -> Trial:
    contract = load_contract(source)
    check_source(source.kind, source.resolved, contract)
    if not is_shared(source) and _is_running(config):
        try:
            return ask_tap(config.state_dir, TapRequest(source.name, samples, wait_s))
        except NotRunningError as error:
            note = f"{error}; a second reader may take samples from it, so it was not read"
        except OSError as error:
            note = f"the running agent does not answer: {error}; run it as the agent's user"
        return Trial(source.name, source.kind, source.stream, contract.version, failure=f"{note}; reload or stop the agent")
    return TrialReader(source, contract, key).read(samples, wait_s)


def is_shared(source: SourceConfig) -> bool:
    """Whether a second reader takes nothing from the agent's."""
    if source.kind == "camera":
        address = str(source.options.get("source", ""))
        return "://" not in address and not address.startswith("/dev/") and not source.options.get("format")
    return source.kind in _SHARED or bool(source.options.get(_FILE_OPTIONS.get(source.kind, "")))


def _is_running(config: AgentConfig) -> bool:
    health = read_health(config.state_dir)
    return health is not None and is_alive(health.pid)
