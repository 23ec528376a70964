"""Start the programs of the demo, the private mosquitto among them, and end them together whatever happens: see `subreaper`.

The broker has a free loopback port and settings that lose nothing. The tests and the benchmarks (`tests/plant`) start it as
well, which is why each step has a function of its own.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from catchment.runtime.clock import Clock
from pipelines.errors import PipelineError, RefusedError

GRACE_S = 8.0
LOG_TAIL_BYTES = 2_000

HOST = "127.0.0.1"
START_S = 20.0
MAX_PACKET_BYTES = 16 * 1024 * 1024
_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {data}/
autosave_interval 1
max_queued_messages 1000000
max_queued_bytes 0
max_inflight_messages 100
max_packet_size {max_packet_bytes}
set_tcp_nodelay true
log_dest {log}
log_type error
log_type warning
"""


class ProgramFailedError(PipelineError):
    """A program of the demo ended too early or with an error; the message names it and shows the end of its log."""


@dataclass(slots=True)
class Program:
    """One started program; what it prints lies in `log`."""

    name: str
    log: Path
    subreaper: subprocess.Popen[bytes]

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.subreaper.poll() is None

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, or None if it has not ended in time."""
        try:
            return self.subreaper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Ask it to end (SIGTERM); after the grace time everything of it is killed."""
        if self.is_running:
            self.subreaper.terminate()

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


class ProcessGroup:
    """Starts programs, each under a subreaper and in a session of its own (Ctrl-C reaches the demo alone), and ends them all."""

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
                program.subreaper.kill()
                program.subreaper.wait()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Program:
        """Start a program; its output goes to `<logs>/<name>.log`."""
        log = self._logs / f"{name}.log"
        held = [sys.executable, "-m", "pipelines.demo.subreaper", str(os.getpid()), str(self._grace_s), *command]
        with log.open("ab") as out:
            subreaper = subprocess.Popen(
                held,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        program = Program(name, log, subreaper)
        self._programs.append(program)
        return program

    def check(self) -> None:
        """Make sure that all still run, or have ended well.

        Raises:
            ProgramFailedError: one has ended with an error.
        """
        for program in self._programs:
            status = program.subreaper.poll()
            if status is not None and status != 0:
                raise ProgramFailedError(f"{program.name} ended with status {status}; {program.log} ends with:\n{program.tail()}")


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def find_mosquitto() -> str:
    """The broker's program.

    Raises:
        RefusedError: it is not installed.
    """
    # Debian puts daemons where an ordinary user's PATH does not look.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise RefusedError("no broker mosquitto on this machine; install it, for example: sudo apt-get install mosquitto")
    return found


def lossless_config(port: int, data: Path, *, max_packet_bytes: int = MAX_PACKET_BYTES, log: str = "stderr") -> str:
    """A mosquitto.conf for one loopback listener whose sessions and queues are kept on disk.

    Args:
        port: port to listen on.
        data: existing folder of the broker's sessions and queues.
        max_packet_bytes: largest message.
        log: mosquitto's `log_dest`.
    """
    return _CONFIG.format(port=port, data=data, max_packet_bytes=max_packet_bytes, log=log)


def write_config(folder: Path, text: str) -> Path:
    """Write a mosquitto.conf whose broker keeps the rights of the user who starts it."""
    # A broker that drops root could not write into the folder.
    user = "user root\n" if os.geteuid() == 0 else ""
    config = folder / "mosquitto.conf"
    config.write_text(f"{text.rstrip()}\n{user}", encoding="utf-8")
    return config


def wait_for_listener(host: str, port: int, is_running: Callable[[], bool], clock: Clock) -> bool:
    """Wait until a port takes connections; False if its program has ended, or took longer than a broker's start may."""
    deadline_s = clock.monotonic_s() + START_S
    while clock.monotonic_s() < deadline_s and is_running():
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            clock.sleep(0.01)
        else:
            return True
    return False


def start_broker(group: ProcessGroup, folder: Path, clock: Clock) -> tuple[Program, int]:
    """Start it and wait until it answers.

    Returns:
        The program and its port.

    Raises:
        RefusedError: it is not installed.
        ProgramFailedError: it does not start.
    """
    binary, port = find_mosquitto(), free_port()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    program = group.start("broker", [binary, "-c", str(write_config(folder, lossless_config(port, data)))])
    if wait_for_listener(HOST, port, lambda: program.is_running, clock):
        return program, port
    raise ProgramFailedError(f"mosquitto did not start; {program.log} ends with:\n{program.tail()}")
