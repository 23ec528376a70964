"""A private mosquitto on a free loopback port, with the settings that lose nothing.

The demo starts one; so do the tests and the benchmarks (`tests/plant`), which is why each step has a function of its own.
"""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from catchment.runtime.clock import Clock
from pipelines.demo.processes import ProcessGroup, Program, ProgramFailedError
from pipelines.errors import RefusedError

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
