"""Run the sources, replace them when the configuration changes, and name them in status and health.

A position is filed under kind, stream and all options. An option that says how something is read (its rate, a rename) may
change and leaves the position what it is; one that says what is read (the kind's `IDENTITY`) makes another source.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from edge_agent.capture.pump import SourcePump
from edge_agent.config import HEARTBEAT, SourceConfig
from edge_agent.sources.registry import identity_options

_MAX_LABEL_CHARS = 120

_STOP_WITHIN_S = 15.0

log = structlog.get_logger(__name__)
Build = Callable[[SourceConfig], SourcePump]


def reads_the_same(name: str, other: str) -> bool:
    """Whether two sources, by their names (kind:stream:options), read the same thing into the same stream."""
    kind, stream, options = _parts(name)
    other_kind, other_stream, other_options = _parts(other)
    if (kind, stream) != (other_kind, other_stream):
        return False
    identity = identity_options(kind)
    if identity is None:
        return False  # all options say what is read, and equal names are no question
    mine, its = _values(options, identity), _values(other_options, identity)
    return mine is not None and mine == its


def previous_source(name: str, known: Sequence[str], configured: Collection[str]) -> str | None:
    """The source whose position this one takes over.

    Args:
        name: of a source without a position.
        known: names that have one.
        configured: names of the sources that run: they keep theirs.
    """
    found = [other for other in known if other not in configured and reads_the_same(name, other)]
    return found[0] if len(found) == 1 else None  # two: nobody knows which was the last


def source_labels(sources: Sequence[SourceConfig]) -> dict[str, str]:
    """Source -> its label: `kind:stream`, then its own name, or what it reads where another source shares kind and stream."""
    shared = Counter(_stem(source) for source in sources)
    labels = {source.name: _label(source, is_shared=shared[_stem(source)] > 1) for source in sources}
    times = Counter(labels.values())
    return {name: label if times[label] == 1 else f"{label}#{_digest(name)}" for name, label in labels.items()}


def _parts(name: str) -> tuple[str, str, str]:
    kind, _, rest = name.partition(":")
    stream, _, options = rest.partition(":")
    return kind, stream, options


def _values(options: str, identity: tuple[str, ...]) -> bytes | None:
    try:
        values = msgspec.json.decode(options, type=dict[str, object])
    except msgspec.MsgspecError:
        return None
    return msgspec.json.encode({key: values.get(key) for key in identity}, order="sorted")


def _stem(source: SourceConfig) -> str:
    return f"{source.kind}:{source.stream}"


def _label(source: SourceConfig, *, is_shared: bool) -> str:
    if source.label:
        return f"{_stem(source)}:{source.label}"
    return f"{_stem(source)}:{_what(source)}" if is_shared else _stem(source)


def _what(source: SourceConfig) -> str:
    """The first option that says what the source reads."""
    identity = identity_options(source.kind) or ()
    found = next((value for key in identity if (value := source.options.get(key))), None)
    text = " ".join(map(str, found)) if isinstance(found, list) else str(found if found is not None else _digest(source.name))
    return text if len(text) <= _MAX_LABEL_CHARS else f"…{text[-_MAX_LABEL_CHARS:]}"


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=3).hexdigest()


class OnStopping(Protocol):
    """Tells the spool of a source that stops: what waits there for room must not hold it up."""

    def __call__(self, source: str, *, is_gone: bool = False) -> None:
        """Notify the spool that a source is stopping (`is_gone=False`) or has stopped."""
        ...


Spawn = Callable[[str, Callable[[threading.Event], None], threading.Event], threading.Thread]


@dataclass(slots=True)
class _Running:
    config: SourceConfig
    pump: SourcePump
    stop: threading.Event
    thread: threading.Thread


class SourceSupervisor:
    """Starts and stops pumps; used by the main thread alone, but for `running`.

    Args:
        build: makes the pump of a source.
        spawn: starts a thread.
        on_stopping: tells the spool, by the source's name, that a source is to stop, and that it has.
        stop_within_s: how long to wait for a source that is to stop.
    """

    def __init__(self, build: Build, spawn: Spawn, on_stopping: OnStopping, stop_within_s: float = _STOP_WITHIN_S) -> None:
        self._stop_within_s = stop_within_s
        self._build = build
        self._spawn = spawn
        self._on_stopping = on_stopping
        self._entries: list[_Running] = []
        self._count = 0

    @property
    def running(self) -> int:
        """Sources whose thread lives. The heartbeat never ends and captures nothing of the device: it is none of them."""
        return sum(entry.thread.is_alive() for entry in self._entries if entry.config.kind != HEARTBEAT)

    @property
    def pumps(self) -> tuple[SourcePump, ...]:
        """The sources' pumps."""
        return tuple(entry.pump for entry in self._entries)

    def states(self) -> dict[str, str]:
        """Source -> what it does now: runs, fails or has ended."""
        return {
            entry.pump.name: ("fails" if entry.pump.failing else "runs") if entry.thread.is_alive() else "ended"
            for entry in self._entries
            if entry.config.kind != HEARTBEAT
        }

    def apply(self, sources: Sequence[SourceConfig]) -> None:
        """Run exactly these. One that is unchanged is not touched; a changed one goes on where it was.

        Raises:
            ConfigError: one of them is wrong; nothing was changed.
        """
        known = [entry.config for entry in self._entries]
        new = [(source, self._build(source)) for source in sources if source not in known]
        stopping = [entry for entry in self._entries if entry.config not in sources]
        self._entries = [entry for entry in self._entries if entry.config in sources]
        stuck = [entry.config.name for entry in self._end(stopping)]
        for source, pump in new:
            if any(source.name == name or reads_the_same(source.name, name) for name in stuck):
                log.error("source_not_stopped", hint="its successor is not started; restart the agent", source=source.kind)
                continue
            self._count += 1
            stop = threading.Event()
            self._entries.append(_Running(source, pump, stop, self._spawn(f"source-{self._count}", pump.run, stop)))

    def stop(self) -> None:
        """End all; what they read is stored first."""
        self._end(self._entries)

    def _end(self, entries: Sequence[_Running]) -> list[_Running]:
        """End these; returns those that do not."""
        for entry in entries:
            entry.stop.set()
            self._on_stopping(entry.config.name)
        for entry in entries:
            entry.thread.join(self._stop_within_s)
        stuck = [entry for entry in entries if entry.thread.is_alive()]
        for entry in entries:
            if entry not in stuck:
                self._on_stopping(entry.config.name, is_gone=True)
        return stuck
