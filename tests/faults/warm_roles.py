"""Processes of the core that are killed and are back at once (`tests.faults.warm_start`)."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.faults.forks import NO_POOLS
from tests.faults.warm_start import Request

ROOT = Path(__file__).resolve().parents[2]


class WarmStart:
    """The process that has imported everything. What it started ends with it."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.faults.warm_start"]
        environment = {**os.environ, **NO_POOLS, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def close(self) -> None:
        """End it, and all that is left of its children."""
        self._process.communicate()

    def ask(self, request: Request) -> int:
        """The answer to one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@dataclass
class Role:
    """A process of the core, as an operator runs it: `catchment` and the words that `command` gives for each start."""

    warm: WarmStart
    command: Callable[[], tuple[str, ...]]
    log: Path
    pid: int = 0

    def start(self) -> None:
        """Again, if it was there before."""
        self.pid = self.warm.ask(Request(start=self.command(), log=str(self.log)))

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it and wait until it is gone."""
        if self.pid:
            os.kill(self.pid, number)
            self.warm.ask(Request(wait=self.pid))
            self.pid = 0

    def check_alive(self) -> None:
        """It runs; else what it said last."""
        assert self.warm.ask(Request(wait=self.pid, is_patient=False)) == -1, self.log.read_text()[-3_000:]
