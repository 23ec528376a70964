"""`catchment up`: the core's processes as children of one, restarted with growing pauses, stopped in order.

Children are whole processes of the same command, so that each can be killed, limited and watched alone. They end with their
parent, also when that is killed: an orphan would hold the lake, and the next start would be refused. Order of
stopping: first the bridge (nothing new lands), then the run loop (it ends the run in hand), then the model server.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import structlog

from catchment.runtime.clock import doubled_s
from catchment.runtime.exits import DONE, MEANINGS, USAGE
from pipelines.stopping import end_descendants

POLL_S = 0.1
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
# One after the other, and all of them within ten seconds: each ends by itself in seven, whatever it is doing (`stopping`).
NEXT_AFTER_S = 2.0
STOP_WITHIN_S = 9.5

_MEANINGS = {**MEANINGS, DONE: "it ended unasked"}

BRIDGE, RUN, MODELS, MAINTAIN = ("bridge",), ("run",), ("model", "serve"), "maintain"

# Run by a child before it becomes what it is to be: the kernel kills it when its parent ends, however that ends.
_TIE = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG; it outlives exec
if os.getppid() != int(parent):
    raise SystemExit(75)  # the parent ended before this was in force
os.execv(command[0], command)
"""

log = structlog.get_logger(__name__)


def tied_to_us(command: list[str]) -> list[str]:
    """The command as a child that ends with this process. The thread that starts it must live as long as the process."""
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]


@dataclass(slots=True)
class Child:
    """One process that is kept running."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_s: float = 0.0
    due_s: float = field(default=0.0)
    is_misconfigured: bool = False

    def tend(self, now_s: float) -> int | None:
        """Start it when due, note when it fell; the exit code of a fall just seen."""
        if self.process is None:
            if now_s >= self.due_s:
                self.process = subprocess.Popen(tied_to_us(self.command))
                self.started_s = now_s
                self.is_misconfigured = False
                log.info("started", child=self.name, pid=self.process.pid)
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.process = None
        self.failures = 1 if now_s - self.started_s > STEADY_S else self.failures + 1
        self.is_misconfigured = code == USAGE
        pause_s = LONGEST_PAUSE_S if self.is_misconfigured else doubled_s(FIRST_PAUSE_S, LONGEST_PAUSE_S, self.failures - 1)
        self.due_s = now_s + pause_s
        log.error("fell", child=self.name, code=code, means=_MEANINGS.get(code, "killed" if code < 0 else "it fell over"),
                  times=self.failures, again_in_s=pause_s)  # fmt: skip
        return code

    def terminate(self, wait_s: float) -> None:
        """Ask it to end, and wait for a while."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(wait_s)

    def end(self, wait_s: float) -> None:
        """Wait for its end, and kill it, with all that it has started, if that does not come."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, wait_s))
        except subprocess.TimeoutExpired:
            log.warning("killed", child=self.name, hint="its unfinished work is done again at the next start")
            end_descendants(self.process.pid)
            self.process.kill()
            self.process.wait()
        self.process = None


def stop_all(children: Sequence[Child], next_after_s: float = NEXT_AFTER_S, within_s: float = STOP_WITHIN_S) -> None:
    """Stop processes in order: the next one when the one before has ended, or after a while; what is left is killed."""
    until_s = time.monotonic() + within_s
    for child in children:
        child.terminate(next_after_s)
    for child in children:
        child.end(until_s - time.monotonic())


def supervise(config: Path, stop: Event, *, with_models: bool, maintain_every_s: float = 0) -> int:
    """Keep the core running until `stop` is set.

    Args:
        config: the configuration file, handed to every child.
        stop: ends it.
        with_models: whether there are models to serve.
        maintain_every_s: how often the lake is cleaned up; 0: never.

    A child that says its configuration is wrong is started again after a long pause, for somebody may correct it; the others
    go on: a wrong key for the model server must not stop what lands.

    Returns:
        0 after an ordered stop; 2 if every child says that its configuration is wrong, so that nothing runs at all.
    """
    base = [sys.executable, "-m", "pipelines"]
    wanted: list[tuple[str, ...]] = [BRIDGE, RUN, MODELS] if with_models else [BRIDGE, RUN]
    if maintain_every_s:
        wanted.append((MAINTAIN, "--every-s", f"{maintain_every_s:g}"))
    children = [Child(words[0], [*base, *words, "-c", str(config)]) for words in wanted]
    code = 0
    try:
        while not stop.is_set() and code == 0:
            for child in children:
                child.tend(time.monotonic())
            if all(child.is_misconfigured for child in children if child.name != MAINTAIN):
                log.error("nothing_runs", reason="every child says that its configuration is wrong", config=str(config))
                code = USAGE
            stop.wait(POLL_S)
    finally:
        stop_all(children)
    return code
