"""The kinds of sources: found, loaded and built.

A built-in kind is a folder here with a module `source`; its name is the folder's, with hyphens (`mqtt_local` is `mqtt-local`).
Other packages add kinds by the entry point `catchment.sources`, which names a module of the same shape:

    IDENTITY = ("path",)                              # the options that say what is read; without it, all of them
    def build(options, contract, clock, position)     # a source that goes on at a position
    def check(options, contract)                      # all that can be checked without opening anything; optional

or the function `build` itself, which may carry `check` and `IDENTITY` as attributes. A kind is loaded when a configuration
names it: a device that watches a folder carries no video decoder. A built-in kind cannot be replaced.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import structlog

from catchment.runtime.clock import Clock
from edge_agent.errors import AgentError, ConfigError, SourceError
from edge_agent.sources.api import SampleBatch, Source
from schemas.contract import Contract

ResultT = TypeVar("ResultT")

log = structlog.get_logger(__name__)

Builder = Callable[[Mapping[str, object], Contract, Clock, bytes | None], Source]

ENTRY_POINTS = "catchment.sources"
_PACKAGE = "edge_agent.sources"
_MODULE = "source"


class GuardedSource:
    """Another source whose foreign exceptions (a plug-in's, a decoder's) do not end the agent.

    Attributes:
        rejected: reason -> rows, cells or files refused, where the source counts them.
    """

    def __init__(self, kind: str, build: Callable[[], Source]) -> None:
        self._kind = kind
        self._source = self._guarded("build", build)

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many rows, cells or files were refused since the source was built."""
        counts = getattr(self._source, "rejected", None)
        return dict(counts) if isinstance(counts, dict) else {}

    @property
    def position(self) -> bytes | None:
        """The source's position before anything was read, where it has one."""
        found = getattr(self._source, "position", None)
        return found if isinstance(found, bytes) else None

    @property
    def unfilled(self) -> tuple[str, ...]:
        """Required columns of the contract that the source knows it never fills."""
        found = getattr(self._source, "unfilled", ())
        return found if isinstance(found, tuple) else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names in what the source reads that fill no column, where it knows."""
        found = getattr(self._source, "left_out", ())
        return found if isinstance(found, tuple) else ()

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name for it, where the source knows."""
        found = getattr(self._source, "matched", {})
        return found if isinstance(found, dict) else {}

    @property
    def complaint(self) -> str:
        """Describe what is wrong although the source runs: samples that wait, and the missing setting; empty where nothing is."""
        found = getattr(self._source, "complaint", "")
        return found if isinstance(found, str) else ""

    @property
    def inner(self) -> Source:
        """The source itself."""
        return self._source

    def read(self, max_samples: int) -> SampleBatch | None:
        """The next samples.

        Raises:
            SourceError: the source failed.
            SourceEndedError: there will never be more.
        """
        return self._guarded("read", lambda: self._source.read(max_samples))

    def stored(self, batch: SampleBatch) -> None:
        """The batch is durable.

        Raises:
            SourceError: the source failed.
        """
        self._guarded("stored", lambda: self._source.stored(batch))

    def close(self) -> None:
        """Close files and end processes. A source that cannot is left behind: what comes next must not wait for it."""
        try:
            self._source.close()
        except Exception as error:  # noqa: BLE001 # a foreign source may raise anything, and it is done with
            log.warning("source_not_closed", source=self._kind, error=f"{type(error).__name__}: {error}")

    def _guarded(self, step: str, action: Callable[[], ResultT]) -> ResultT:
        try:
            return action()
        except AgentError:
            raise
        except Exception as error:
            raise SourceError(f"source {self._kind!r} failed in {step}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class SourceKind:
    """The declarations of a kind.

    Attributes:
        build: makes a source that goes on at a position.
        identity: the options that say what is read: a change of any other keeps the position. None: all of them say it.
        check: checks the options without opening anything.
        build_with_folder: like `build`, for a kind that keeps in a folder what it cannot read yet.
        build_trial: makes a source that takes nothing from other readers of the same.
        names_given: the names that a source gives, or None where that depends on what it reads.
    """

    build: Builder
    identity: tuple[str, ...] | None = None
    check: Callable[[Mapping[str, object], Contract], object] | None = None
    build_with_folder: Callable[[Mapping[str, object], Contract, Clock, bytes | None, Path], Source] | None = None
    build_trial: Callable[[Mapping[str, object], Contract, Clock], Source] | None = None
    names_given: Callable[[Mapping[str, object], Contract], tuple[str, ...] | None] | None = None


@cache
def built_in_kinds() -> frozenset[str]:
    """The names of the kinds that come with the agent. Looks at folders, and imports none of them."""
    roots = [Path(root) for root in import_module(_PACKAGE).__path__]
    folders = [(root, found.name) for root in roots for found in pkgutil.iter_modules([str(root)]) if found.ispkg]
    kinds = [name for root, name in folders if any(found.name == _MODULE for found in pkgutil.iter_modules([str(root / name)]))]
    return frozenset(name.replace("_", "-") for name in kinds)


def load_kind(kind: str) -> SourceKind:
    """Load a kind.

    Raises:
        ConfigError: there is no such kind, or its package cannot be imported or does not declare a kind.
    """
    try:
        if kind in built_in_kinds():
            return _declared(import_module(f"{_PACKAGE}.{kind.replace('-', '_')}.{_MODULE}"))
        for entry in metadata.entry_points(group=ENTRY_POINTS, name=kind):
            return _declared(entry.load())
    except Exception as error:
        raise ConfigError(f"source kind {kind[:80]!r} cannot be loaded: {error}; is its package installed whole?") from error
    known = sorted({*built_in_kinds(), *metadata.entry_points(group=ENTRY_POINTS).names})
    raise ConfigError(f"source kind {kind[:80]!r} is not one of {', '.join(known)}; a plug-in's package must be installed")


def identity_options(kind: str) -> tuple[str, ...] | None:
    """The options that say what a source of this kind reads; None where the kind does not declare them or cannot be loaded."""
    try:
        return load_kind(kind).identity
    except ConfigError:
        return None  # reported where the source is checked


def build_source(
    kind: str,
    options: Mapping[str, object],
    contract: Contract,
    clock: Clock,
    position: bytes | None,
    folder: Path | None = None,
) -> GuardedSource:
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
    loaded = load_kind(kind)
    with_folder = loaded.build_with_folder
    if with_folder is not None and folder is not None:
        return GuardedSource(kind, lambda: with_folder(options, contract, clock, position, folder))
    return GuardedSource(kind, lambda: loaded.build(options, contract, clock, position))


def build_trial_source(kind: str, options: Mapping[str, object], contract: Contract, clock: Clock) -> Source:
    """Build a source for a trial: from its start, in the form that takes nothing from other readers of the same.

    Raises:
        ConfigError: as `build_source`.
        SourceError: likewise.
    """
    loaded = load_kind(kind)
    trial = loaded.build_trial
    if trial is not None:
        return GuardedSource(kind, lambda: trial(options, contract, clock))
    return GuardedSource(kind, lambda: loaded.build(options, contract, clock, None))


def names_given(kind: str, options: Mapping[str, object], contract: Contract) -> tuple[str, ...] | None:
    """The names that a source of this kind gives whatever it reads; None where that depends on what it reads.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    names = load_kind(kind).names_given
    return None if names is None else names(options, contract)


def check_source(kind: str, options: Mapping[str, object], contract: Contract) -> None:
    """Check all of a source that can be checked without opening it.

    Raises:
        ConfigError: there is no such kind, or an option is unknown, missing or wrong; the message names the key.
    """
    check = load_kind(kind).check
    if check is not None:
        check(options, contract)


def _declared(by: Any) -> SourceKind:
    """The kind that a module declares, or a function with attributes."""
    identity = getattr(by, "IDENTITY", None)
    if identity is not None and (isinstance(identity, str) or not all(isinstance(name, str) for name in identity)):
        raise TypeError(f"IDENTITY is {identity!r}, not a tuple of option names")
    build = by.build if isinstance(by, ModuleType) else by
    optional = {name: getattr(by, name, None) for name in ("check", "build_with_folder", "build_trial", "names_given")}
    return SourceKind(build, None if identity is None else tuple(identity), **optional)
