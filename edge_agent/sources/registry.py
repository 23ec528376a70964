"""The kinds of sources, and how each is built from its options.

A kind is loaded when a configuration asks for it: a device that watches a folder carries no video decoder. Other packages
add kinds by the entry point `catchment.sources`; a built-in kind cannot be replaced by one.
"""

from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import cast

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Source
from edge_agent.sources.guarded import GuardedSource
from schemas.contract import Contract

Builder = Callable[[Mapping[str, object], Contract, Clock, bytes | None], Source]
Checker = Callable[[Mapping[str, object], Contract], object]

ENTRY_POINTS = "catchment.sources"
# kind -> the module that has `build` and `check`.
KINDS: dict[str, str] = {
    "camera": "edge_agent.sources.camera.source",
    "can": "edge_agent.sources.can.source",
    "directory": "edge_agent.sources.directory.source",
    "exec": "edge_agent.sources.exec.source",
    "mqtt-local": "edge_agent.sources.mqtt_local.source",
    "netflow": "edge_agent.sources.netflow.source",
    "nmea": "edge_agent.sources.nmea.source",
    "replay": "edge_agent.sources.replay.source",
    "syslog": "edge_agent.sources.syslog.source",
    "tail": "edge_agent.sources.tail.source",
    "zeek": "edge_agent.sources.zeek.source",
}


def build_source(
    kind: str,
    options: Mapping[str, object],
    contract: Contract,
    clock: Clock,
    position: bytes | None,
    folder: Path | None = None,
) -> Source:
    """Build a source that goes on at `position` (None: from its start).

    Args:
        kind: of source.
        options: of its kind.
        contract: of its stream.
        clock: handed to it.
        position: stored last.
        folder: where it may keep what it cannot read yet; None: nowhere.

    Raises:
        ConfigError: there is no such kind, or an option is unknown, missing or wrong; the message names the key.
        SourceError: it cannot be opened now; try again later.
    """
    builder, _ = _load(kind)
    with_folder = getattr(import_module(KINDS[kind]), "build_with_folder", None) if kind in KINDS and folder else None
    if with_folder is not None:
        return GuardedSource(kind, lambda: cast("Source", with_folder(options, contract, clock, position, folder)))
    return GuardedSource(kind, lambda: builder(options, contract, clock, position))


def build_trial_source(kind: str, options: Mapping[str, object], contract: Contract, clock: Clock) -> Source:
    """Build a source for a trial: from its start, in the form that takes nothing from whoever else reads the same.

    Raises:
        ConfigError: as `build_source`.
        SourceError: likewise.
    """
    builder, _ = _load(kind)
    trial_builder = getattr(import_module(KINDS[kind]), "build_trial", None) if kind in KINDS else None
    if trial_builder is not None:
        return GuardedSource(kind, lambda: cast("Source", trial_builder(options, contract, clock)))
    return GuardedSource(kind, lambda: builder(options, contract, clock, None))


def names_given(kind: str, options: Mapping[str, object], contract: Contract) -> tuple[str, ...] | None:
    """The names that a source of this kind gives whatever it reads; None where that depends on what it reads.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    _load(kind)
    names = getattr(import_module(KINDS[kind]), "names_given", None) if kind in KINDS else None
    return None if names is None else cast("tuple[str, ...] | None", names(options, contract))


def check_source(kind: str, options: Mapping[str, object], contract: Contract) -> None:
    """Check all of a source that can be checked without opening it.

    Raises:
        ConfigError: there is no such kind, or an option is unknown, missing or wrong; the message names the key.
    """
    _, check = _load(kind)
    if check is not None:
        check(options, contract)


def _load(kind: str) -> tuple[Builder, Checker | None]:
    try:
        if kind in KINDS:
            module = import_module(KINDS[kind])
            return cast("Builder", module.build), cast("Checker", module.check)
        for entry in metadata.entry_points(group=ENTRY_POINTS, name=kind):
            builder = entry.load()
            return cast("Builder", builder), cast("Checker | None", getattr(builder, "check", None))
    except Exception as error:
        raise ConfigError(f"source kind {kind[:80]!r} cannot be loaded: {error}; is its package installed whole?") from error
    known = sorted({*KINDS, *metadata.entry_points(group=ENTRY_POINTS).names})
    raise ConfigError(f"source kind {kind[:80]!r} is none of {', '.join(known)}; a plug-in's package must be installed")
