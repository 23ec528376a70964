"""The programs that the demo starts, ended together whatever happens to the demo: see `leash`."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.errors import PipelineError

GRACE_S = 8.0
LOG_TAIL_BYTES = 2_000


class ProgramFailedError(PipelineError):
    """A program of the demo ended too early or with an error; the message names it and shows the end of its log."""


@dataclass(slots=True)
class Program:
    """One started program; what it prints lies in `log`."""

    name: str
    log: Path
    leash: subprocess.Popen[bytes]

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.leash.poll() is None

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, or None if it has not ended in time."""
        try:
            return self.leash.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Ask it to end (SIGTERM); after the grace time everything of it is killed."""
        if self.is_running:
            self.leash.terminate()

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


class ProcessGroup:
    """Starts programs, each on a leash and in a session of its own (Ctrl-C reaches the demo alone), and ends them all."""

    def __init__(self, logs: Path, grace_s: float = GRACE_S) -> None:
        self._logs = logs
        self._grace_s = grace_s
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        """Make the folder of logs."""
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End everything, last started first."""
        for program in reversed(self._programs):
            program.stop()
        for program in reversed(self._programs):
            if program.wait(self._grace_s + 5) is None:
                program.leash.kill()
                program.leash.wait()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Program:
        """Start a program; its output goes to `<logs>/<name>.log`."""
        log = self._logs / f"{name}.log"
        held = [sys.executable, "-m", "pipelines.demo.leash", str(os.getpid()), str(self._grace_s), *command]
        with log.open("ab") as out:
            leash = subprocess.Popen(
                held,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        program = Program(name, log, leash)
        self._programs.append(program)
        return program

    def check(self) -> None:
        """Make sure that all still run, or have ended well.

        Raises:
            ProgramFailedError: one has ended with an error.
        """
        for program in self._programs:
            status = program.leash.poll()
            if status is not None and status != 0:
                raise ProgramFailedError(f"{program.name} ended with status {status}; {program.log} ends with:\n{program.tail()}")
