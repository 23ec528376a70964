"""Heartbeats: each process of the core leaves a small file in the lake that says what it did and that it lives.

Files, not sockets: whoever wants to know needs no list of processes and ports, and one endpoint serves them all. They are
not synced: after a power cut nobody is alive.
"""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from pipelines.clock import Clock

FOLDER = "status"
EVERY_S = 2.0
log = structlog.get_logger(__name__)


class Beat(msgspec.Struct, frozen=True):
    """One process: its role, whether it gets on (`is_ready`) and if not why, and its counters since it started."""

    role: str
    name: str
    pid: int
    at_ms: int
    started_ms: int
    is_ready: bool
    trouble: str = ""
    counters: dict[str, float] = {}  # msgspec copies it


@dataclass(frozen=True, slots=True)
class Health:
    """What a process says of itself when asked."""

    is_ready: bool
    trouble: str = ""
    counters: Mapping[str, float] = field(default_factory=dict)


class Heart:
    """Beats on a thread of its own until the block is left; the last beat then says why it stopped.

    Args:
        root: the lake root.
        role: bridge or run.
        name: which of its role.
        clock: for the beat's time.
        ask: what to say; called on the heart's thread.
    """

    def __init__(self, root: Path, role: str, name: str, clock: Clock, ask: Callable[[], Health]) -> None:
        self._path = root / FOLDER / f"{role}-{name}.json"
        self._role, self._name, self._clock, self._ask = role, name, clock, ask
        self._started_ms = clock.now_ms()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role}-heart", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._beat(Health(False, f"stopped: {error}" if error is not None else "stopped in order", self._ask().counters))

    def _run(self) -> None:
        while True:
            self._beat(self._ask())
            if self._stop.wait(EVERY_S):
                return

    def _beat(self, health: Health) -> None:
        beat = Beat(
            self._role, self._name, os.getpid(), self._clock.now_ms(), self._started_ms, health.is_ready, health.trouble,
            dict(health.counters),
        )  # fmt: skip
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(exist_ok=True)
            beside.write_bytes(msgspec.json.encode(beat))
            beside.replace(self._path)
        except OSError as error:
            # The work itself meets the same disk and says so; a beat that is missing says it too.
            log.warning("beat_missed", path=str(self._path), error=str(error))


def read_beats(root: Path) -> list[Beat]:
    """The last beat of every process, by role and name."""
    folder = root / FOLDER
    found: list[Beat] = []
    for path in sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []:
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Beat))
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("beat_unreadable", path=str(path), error=str(error))
    return found
