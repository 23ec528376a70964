"""What the systemd unit relies on: the agent says when it is ready, that it goes round, and that it stops."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket that a service manager listens on."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(40)
        yield listener, str(path)


def heard(listener: socket.socket, wanted: str) -> None:
    deadline_s = time.monotonic() + 40
    while time.monotonic() < deadline_s:
        if wanted in listener.recv(4096).decode().split():
            return
    pytest.fail(f"never said {wanted}")


@pytest.mark.slow
def test_the_agent_tells_the_service_manager_ready_then_alive_then_stopping(
    manager: tuple[socket.socket, str], tmp_path: Path
) -> None:
    listener, address = manager
    config = tmp_path / "agent.toml"
    config.write_text('device = "d1"\nstate_dir = "state"\n')
    # As the unit starts it: the command that checks, and becomes the agent under the same process id.
    program = [sys.executable, "-c", "from edge_agent.cli import main; main()", "run", "-c", str(config)]
    environment = {**os.environ, "NOTIFY_SOCKET": address}
    with subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL) as process:
        heard(listener, "READY=1")
        heard(listener, "WATCHDOG=1")
        process.send_signal(signal.SIGHUP)  # what ExecReload sends: it goes on
        heard(listener, "WATCHDOG=1")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        heard(listener, "STOPPING=1")
        assert process.wait(40) == 0
