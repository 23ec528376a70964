"""The agent as a process: delivers, survives SIGKILL, tells what is wrong, stays small."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.config import load_agent_config
from edge_agent.errors import ConfigError
from schemas.ids import StreamName
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker

STREAM = StreamName("vehicle_telemetry")


def write_config(folder: Path, port: int, rows: int, rate_hz: float = 0.0) -> Path:
    table = folder / "telemetry.csv"
    table.write_text("event_time,speed_mps\n" + "".join(f"2024-05-01T00:00:{n % 60:02}Z,{n}\n" for n in range(rows)))
    config = folder / "agent.toml"
    config.write_text(
        f'device = "dev-a"\nstate_dir = "state"\n[broker]\nport = {port}\n[uplink]\nresend_after_s = 2.0\n'
        f'[[source]]\nkind = "replay"\nstream = "{STREAM}"\nmax_samples = 50\n'
        f'options = {{ path = "{table}", rate_hz = {rate_hz} }}\n'
    )
    return config


def agent(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "edge_agent", *arguments]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from edge_agent.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_it_delivers_a_file_and_ends_when_all_is_settled(broker: RunningBroker, tmp_path: Path) -> None:
    config = write_config(tmp_path, broker.port, 3_000)
    with FakeCore(broker.host, broker.port) as core:
        done = cli("run", "-c", str(config), "--until-settled")
        assert done.returncode == 0, done.stderr
        assert [ranges.spans for ranges in core.landed_seqs(STREAM).values()] == [((0, 3_000),)]
    ledger = json.loads(cli("books", "-c", str(config), "--json").stdout)
    assert ledger["is_balanced"]
    assert ledger["books"][0]["settled"] == 3_000
    status = json.loads(cli("status", "-c", str(config), "--json").stdout)
    assert (status["is_running"], status["spooled"], status["health"]["failure"]) == (False, 0, "")
    assert "balanced" in cli("books", "-c", str(config)).stdout
    assert "connected" in cli("status", "-c", str(config)).stdout


@pytest.mark.slow
def test_kills_at_any_time_neither_lose_nor_repeat_a_row(broker: RunningBroker, tmp_path: Path) -> None:
    config = write_config(tmp_path, broker.port, 4_000, rate_hz=2_000)
    with FakeCore(broker.host, broker.port) as core:
        for pause_s in (0.5, 0.8, 1.1):
            process = subprocess.Popen(agent("-c", str(config), "--until-settled"), stderr=subprocess.DEVNULL)
            time.sleep(pause_s)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert subprocess.run(agent("-c", str(config), "--until-settled"), timeout=25, check=False).returncode == 0
        assert sum(ranges.count for ranges in core.landed_seqs(STREAM).values()) == 4_000
    ledger = json.loads(cli("books", "-c", str(config), "--json").stdout)
    assert ledger["books"][0] == {"stream": STREAM, "captured": 4_000, "settled": 4_000, "spooled": 0, "dropped": {}}


@pytest.mark.slow
def test_it_stops_in_order_on_sigterm_and_only_one_runs_per_folder(broker: RunningBroker, tmp_path: Path) -> None:
    config = write_config(tmp_path, broker.port, 100_000, rate_hz=1_000)
    process = subprocess.Popen(agent("-c", str(config)), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (tmp_path / "state" / "health.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = subprocess.run(agent("-c", str(config)), capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 75
    assert "another agent runs" in second.stderr
    assert json.loads(cli("status", "-c", str(config), "--json").stdout)["is_running"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert json.loads(cli("books", "-c", str(config), "--json").stdout)["is_balanced"]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('device = "Dev"\nstate_dir = "s"', ":1: "),
        ('device = "d"\nstate_dir = "s"\n[broker]\nhost = "broker.example"', "[broker.tls]"),
        ('device = "d"\nstate_dir = "s"\n[spool]\nmax_byte = 1', ":4: "),
        ('device = "d"\nstate_dir = "s"\n[spool]\nmax_bytes = 1000', "max_bytes 1000 must be within"),
        ('device = "d"\nstate_dir = "s"\n[[source]]\nkind = "replay"\nstream = "s"\nmax_samples = "3"', "max_samples"),
        ("device = ", "not TOML"),
        ('state_dir = "s"', "device"),
    ],
)
def test_a_wrong_configuration_names_file_and_key(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_agent_config(path)
    assert fragment in str(caught.value)
    assert str(path) in str(caught.value)
    done = cli("check", "-c", str(path))
    assert done.returncode == 2
    assert fragment in done.stderr
