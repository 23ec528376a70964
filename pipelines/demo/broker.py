"""A private mosquitto on a free loopback port, with the settings that lose nothing."""

import os
import shutil
import socket
from pathlib import Path

from catchment.runtime.clock import Clock
from pipelines.demo.processes import ProcessGroup, Program, ProgramFailedError
from pipelines.errors import RefusedError

HOST = "127.0.0.1"
START_S = 20.0
_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
user {user}
persistence true
persistence_location {data}/
autosave_interval 1
max_queued_messages 1000000
max_queued_bytes 0
max_inflight_messages 100
max_packet_size 16777216
set_tcp_nodelay true
log_dest stderr
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
        raise RefusedError("the demo needs the broker mosquitto; install it, for example: sudo apt-get install mosquitto")
    return found


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
    # A broker that drops root could not write into the demo's folder.
    user = "root" if os.geteuid() == 0 else "mosquitto"
    config = folder / "mosquitto.conf"
    config.write_text(_CONFIG.format(port=port, user=user, data=data), encoding="utf-8")
    program = group.start("broker", [binary, "-c", str(config)])
    deadline_s = clock.monotonic_s() + START_S
    while clock.monotonic_s() < deadline_s and program.is_running:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            clock.sleep(0.02)
        else:
            return program, port
    raise ProgramFailedError(f"mosquitto did not start; {program.log} ends with:\n{program.tail()}")
