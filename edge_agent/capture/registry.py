"""The kinds of sources, and how each is built from its options."""

from collections.abc import Callable, Mapping

from edge_agent.capture.batch import Source
from edge_agent.capture.directory import build_directory
from edge_agent.capture.exec import build_exec
from edge_agent.capture.replay import build_replay
from edge_agent.clock import Clock
from edge_agent.errors import ConfigError
from schemas.contract import Contract

Builder = Callable[[Mapping[str, object], Contract, Clock, bytes | None], Source]

KINDS: dict[str, Builder] = {"directory": build_directory, "exec": build_exec, "replay": build_replay}


def build_source(kind: str, options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> Source:
    """Build a source that goes on at `position` (None: from its start).

    Raises:
        ConfigError: there is no such kind, or an option is unknown, missing or wrong; the message names the key.
        SourceError: it cannot be opened now; try again later.
    """
    builder = KINDS.get(kind)
    if builder is None:
        raise ConfigError(f"source kind {kind[:80]!r} is none of {', '.join(sorted(KINDS))}")
    return builder(options, contract, clock, position)
