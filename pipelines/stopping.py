"""Ending on SIGTERM or SIGINT: in order if that is quick, and within ten seconds whatever the process is doing.

Every process of the core may be killed at any instruction and goes on at its next start; what it has in hand is then done
again. So one that does not end in order in time ends at once: a library that waits for a worker that never comes, a run that
takes minutes, a storage that is away, hold no stop up.
"""

import os
import select
import signal
import threading
from contextlib import suppress
from pathlib import Path
from threading import Event

import structlog

from catchment.runtime.exits import FORCED

# `catchment up` stops its processes one after the other, and is to end within ten seconds itself.
WITHIN_S = 7.0

log = structlog.get_logger(__name__)


def stop_on_signals(within_s: float = WITHIN_S) -> Event:
    """Make an event that SIGTERM and SIGINT set. So long after the first one the process ends, with all that it has started.

    Call it on the main thread, once.
    """
    stop = Event()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # A handler of Python's waits for the main thread, which may be within a library; this is written to at once.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, stop, within_s), name="stop", daemon=True).start()
    return stop


def _watch(reading: int, stop: Event, within_s: float) -> None:
    while not {signal.SIGTERM, signal.SIGINT} & set(os.read(reading, 64)):
        pass
    stop.set()
    select.select([], [], [], within_s)
    log.warning("stop_forced", after_s=within_s, hint="unfinished work is done again at the next start")
    end_descendants(os.getpid())
    os._exit(FORCED)


def end_descendants(pid: int) -> None:
    """Kill the processes that a process has started, and those that they have; not itself."""
    for child in _children(pid):
        end_descendants(child)
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it has ended meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(text) for text in path.read_text().split()]
    return found
