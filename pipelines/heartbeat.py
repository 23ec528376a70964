"""Heartbeats: each process of the core leaves a small file in the lake that says what it did and that it lives.

Files, not sockets: a reader needs no list of processes and ports, and one endpoint serves them all. They are
not synced: after a power cut nobody is alive. Of a remote lake the same goes to the bucket under the same name, less often and
on a thread of its own, so that a storage that is away holds nothing up.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from catchment.runtime.atomic_files import write_unsynced
from catchment.runtime.clock import Clock
from pipelines.errors import RetryLaterError
from pipelines.lake.lake import Lake

FOLDER = "status"
EVERY_S = 2.0
REMOTE_EVERY_S = 20.0
LAST_WORD_S = 2.0
_AT_WORK_MS = 10_000
log = structlog.get_logger(__name__)


class Heartbeat(msgspec.Struct, frozen=True):
    """One process: its role, whether it gets on (`is_ready`) and if not why, and its counters since it started.

    `warnings` are for a person to look at, though the process gets on.
    """

    role: str
    name: str
    pid: int
    at_ms: int
    started_ms: int
    is_ready: bool
    trouble: str = ""
    counters: dict[str, float] = {}  # msgspec copies it
    host: str = ""
    warnings: tuple[str, ...] = ()
    over_share: dict[str, str] = {}  # likewise


@dataclass(frozen=True, slots=True)
class ProcessHealth:
    """The report of a process; `over_share`: devices that send more than they may, and what of it waits."""

    is_ready: bool
    trouble: str = ""
    counters: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    over_share: Mapping[str, str] = field(default_factory=dict)


class Heartbeats:
    """Writes heartbeats on a thread of its own until the block is left; the last one says why it stopped.

    Args:
        lake: the lake.
        role: bridge or run.
        name: which of its role.
        clock: for the heartbeat's time.
        ask: what to say; called on the heartbeat thread.
    """

    def __init__(self, lake: Lake, role: str, name: str, clock: Clock, ask: Callable[[], ProcessHealth]) -> None:
        self._path = lake.root / FOLDER / f"{role}-{name}.json"
        self._role, self._name, self._clock, self._ask = role, name, clock, ask
        self._started_ms = clock.now_ms()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role}-heartbeat", daemon=True)
        self._store = lake.store
        self._last = b""
        self._remote_thread = threading.Thread(target=self._run_remote, name=f"{role}-remote-heartbeat", daemon=True)
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._remote_thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._write_heartbeat(
            ProcessHealth(False, f"stopped: {error}" if error is not None else "stopped in order", self._ask().counters)
        )
        self._is_over.set()
        self._remote_thread.join(LAST_WORD_S)

    def _run(self) -> None:
        while True:
            self._write_heartbeat(self._ask())
            if self._stop.wait(EVERY_S):
                return

    def _run_remote(self) -> None:
        sent, is_over = b"", False
        while not is_over:
            is_over = self._is_over.wait(REMOTE_EVERY_S if sent else EVERY_S)
            if self._last == sent:
                continue
            sent = self._last
            try:
                self._store.publish(f"{FOLDER}/{self._path.name}", sent)
            except RetryLaterError as error:
                log.warning("heartbeat_missed", path=self._store.table_uri(f"{FOLDER}/{self._path.name}"), error=str(error))

    def _write_heartbeat(self, health: ProcessHealth) -> None:
        heartbeat = Heartbeat(
            self._role, self._name, os.getpid(), self._clock.now_ms(), self._started_ms, health.is_ready, health.trouble,
            dict(health.counters), socket.gethostname(), health.warnings, dict(health.over_share),
        )  # fmt: skip
        self._last = msgspec.json.encode(heartbeat)
        _write(self._path, self._last)


@contextmanager
def starting(root: Path, role: str, name: str, clock: Clock) -> Iterator[None]:
    """Leave a heartbeat that says why a process does not start.

    A heartbeat of another process of this role that is at work is left alone.
    """
    try:
        yield
    except Exception as error:
        path, started_ms = root / FOLDER / f"{role}-{name}.json", clock.now_ms()
        if not _is_at_work(path, started_ms):
            words = f"does not start: {error}"
            heartbeat = Heartbeat(role, name, os.getpid(), clock.now_ms(), started_ms, False, words, {}, socket.gethostname())
            _write(path, msgspec.json.encode(heartbeat))
        raise


def _is_at_work(path: Path, now_ms: int) -> bool:
    try:
        heartbeat = msgspec.json.decode(path.read_bytes(), type=Heartbeat)
    except (OSError, msgspec.MsgspecError):
        return False
    if heartbeat.host != socket.gethostname():
        return now_ms - heartbeat.at_ms < _AT_WORK_MS
    return heartbeat.pid != os.getpid() and Path(f"/proc/{heartbeat.pid}").exists() and now_ms - heartbeat.at_ms < _AT_WORK_MS


def _write(path: Path, body: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_unsynced(path, body)
    except OSError as error:
        # The work itself meets the same disk and says so; a missing heartbeat says it too.
        log.warning("heartbeat_missed", path=str(path), error=str(error))


def read_heartbeats(lake: Lake) -> list[Heartbeat]:
    """The last heartbeat of every process, by role and name."""
    folder = lake.root / FOLDER
    found: list[Heartbeat] = []
    for path in sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []:
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Heartbeat))
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("heartbeat_unreadable", path=str(path), error=str(error))
    return found


def read_remote_heartbeats(lake: Lake, here: Sequence[Heartbeat]) -> list[Heartbeat]:
    """The last heartbeat of every process of other machines, not among `here`. It may list a bucket: for people only.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    known = {(heartbeat.host, heartbeat.pid, heartbeat.started_ms) for heartbeat in here}
    found: list[Heartbeat] = []
    for file in lake.store.published(FOLDER):
        stored = lake.store.read_tagged(file.name)
        try:
            heartbeat = msgspec.json.decode(stored[0], type=Heartbeat) if stored is not None else None
        except msgspec.MsgspecError as error:
            log.warning("heartbeat_unreadable", path=file.name, error=str(error))
            continue
        if heartbeat is not None and (heartbeat.host, heartbeat.pid, heartbeat.started_ms) not in known:
            found.append(heartbeat)
    return found
