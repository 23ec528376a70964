"""An agent whose spool cannot be opened stays up, says so wherever one asks, and captures as soon as it can."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.plant.broker import free_port


def eventually(condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


class Waiting:
    """An agent in whose spool's place something else lies."""

    def __init__(self, folder: Path) -> None:
        self.port, self.state = free_port(), folder / "state"
        table = folder / "rows.csv"
        table.write_text("event_time,speed_mps\n2024-05-01T00:00:00Z,1\n")
        self.config = folder / "agent.toml"
        self.config.write_text(
            f'device = "dev-a"\nstate_dir = "{self.state}"\n[broker]\nport = {free_port()}\n[health]\nport = {self.port}\n'
            f'[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\noptions = {{ path = "{table}" }}\n'
        )
        self.state.mkdir()
        self.in_the_way = self.state / "spool"
        self.in_the_way.write_text("no folder")
        command = [sys.executable, "-m", "edge_agent", "-c", str(self.config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def status(self) -> dict[str, object]:
        program = "from edge_agent.cli import main; main()"
        command = [sys.executable, "-c", program, "status", "-c", str(self.config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(tmp_path)
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.mark.slow
def test_it_is_live_and_not_ready_and_says_why_until_the_spool_opens(waiting: Waiting) -> None:
    eventually(lambda: waiting.ask("/live")[0] == 200)
    live, ready = waiting.ask("/live"), waiting.ask("/ready")
    assert (live[0], ready[0]) == (200, 503)
    assert "cannot be opened" in live[1]
    assert "cannot be opened" in ready[1]
    eventually(lambda: "cannot be opened" in str(waiting.status().get("health")))
    assert waiting.process.poll() is None
    waiting.in_the_way.unlink()
    eventually(lambda: 'captured_samples_total{stream="vehicle_telemetry"} 1' in waiting.ask("/metrics")[1])


def test_it_ends_at_once_when_stopped_while_it_waits(waiting: Waiting) -> None:
    eventually(lambda: waiting.ask("/live")[0] == 200)
    waiting.process.send_signal(signal.SIGTERM)
    _, errors = waiting.process.communicate(timeout=30)
    assert waiting.process.returncode == 0
    assert b"spool_not_open" in errors
