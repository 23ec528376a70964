"""The sources that run, and how they become others while the rest of the agent goes on."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from edge_agent.capture.position_handover import reads_the_same
from edge_agent.capture.pump import SourcePump
from edge_agent.config import HEARTBEAT, SourceConfig

_STOP_WITHIN_S = 15.0

log = structlog.get_logger(__name__)
Build = Callable[[SourceConfig], SourcePump]


class OnStopping(Protocol):
    """Tells the spool of a source that stops: what waits there for room must not hold it up."""

    def __call__(self, source: str, *, is_gone: bool = False) -> None:
        """It is to stop, or it has."""
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
