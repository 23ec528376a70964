"""The agent as a process takes a signed policy from a real broker, applies it offline, and tells what it refused."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from paho.mqtt import publish
from paho.mqtt.client import MQTTv5

from schemas.edge_policy import EdgeAction, EdgePolicy
from schemas.envelope import EVENT_TIME
from schemas.ids import DeviceId, StreamName
from schemas.topics import Topics
from tests.fakes.fake_core import FakeCore
from tests.fakes.policy_signer import PolicySigner, rule
from tests.plant.broker import RunningBroker
from tests.plant.present import present

STREAM = StreamName("vehicle_telemetry")
DEVICE = DeviceId("car-1")
ROWS = 3_000
SOURCE = '[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\nmax_samples = 100\noptions = { path = "table.csv" }\n'
RULES = (
    rule("hard-brakes", STREAM, "acceleration_mps2 < -5", EdgeAction.KEEP),
    rule("stands", STREAM, "speed_mps < 1", EdgeAction.DROP),
    rule("cruises", STREAM, "speed_mps between 1 and 20", EdgeAction.SAMPLE, rate=0.25),
    rule("fast", STREAM, "speed_mps > 30", EdgeAction.PRIORITY, priority=900),
)


def publish_policy(broker: RunningBroker, body: bytes) -> None:
    topic = Topics().policy(DEVICE)
    publish.single(topic, body, qos=1, retain=True, hostname=broker.host, port=broker.port, protocol=MQTTv5)


def write_config(folder: Path, port: int, key: str, source: str = SOURCE) -> Path:
    lines = []
    for row in range(ROWS):
        braking = -9 if row % 100 == 0 else 0
        lines.append(f"2024-05-01T00:{row // 60 % 60:02}:{row % 60:02}Z,{row % 40},{braking}\n")
    (folder / "table.csv").write_text("event_time,speed_mps,acceleration_mps2\n" + "".join(lines))
    config = folder / "agent.toml"
    table = source.replace('"table.csv"', f'"{folder / "table.csv"}"')
    config.write_text(
        f'device = "{DEVICE}"\nstate_dir = "state"\n[broker]\nport = {port}\n[uplink]\nreport_interval_s = 0.2\n'
        f'[policy]\npublic_key = "{key}"\n{table}'
    )
    return config


def wait_for(condition: Callable[[], Any], limit_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come about"
        time.sleep(0.05)


def agent(config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "edge_agent", "-c", str(config), *more]


def cli(*arguments: str) -> str:
    program = "from edge_agent.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True).stdout


def expected() -> tuple[int, int]:
    """How many rows stand still without braking, and how many are decided by their hash."""
    speeds = [row % 40 for row in range(ROWS) if row % 100]
    return sum(speed < 1 for speed in speeds), sum(1 <= speed <= 20 for speed in speeds)


@pytest.mark.slow
def test_a_policy_is_taken_applied_offline_and_an_older_one_refused(broker: RunningBroker, tmp_path: Path) -> None:
    signer = PolicySigner()
    config = write_config(tmp_path, broker.port, signer.public_key, source="")
    publish_policy(broker, signer.sign(EdgePolicy(7, 0, {STREAM: RULES})))
    with subprocess.Popen(agent(config), stderr=subprocess.DEVNULL) as process:
        wait_for((tmp_path / "state/policy.json").exists)
        process.terminate()
    broker.stop()
    # No network: the kept rules decide about every row from the first one on.
    write_config(tmp_path, broker.port, signer.public_key)
    with subprocess.Popen(agent(config, "--until-settled"), stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: _captured(config) == ROWS)
        broker.start()
        with FakeCore(broker.host, broker.port) as core:
            publish_policy(broker, signer.sign(EdgePolicy(6, 0, {})))
            process.wait(60)
            landed = [pa.ipc.open_stream(body).read_all() for _, body in core.landed]
    assert process.returncode == 0
    rows = pa.concat_tables(landed).sort_by(EVENT_TIME).to_pylist()
    stands, cruises = expected()
    ledger = json.loads(cli("books", "-c", str(config), "--json"))
    (books,) = ledger["books"]
    assert ledger["is_balanced"]
    assert books["captured"] == ROWS
    assert books["settled"] == len(rows)
    assert books["dropped"]["rule:stands"] == stands
    kept = cruises - books["dropped"]["rule:cruises"]
    assert 0.2 * cruises < kept < 0.3 * cruises
    assert len(rows) == ROWS - stands - books["dropped"]["rule:cruises"]
    assert all(row["speed_mps"] >= 1 or row["acceleration_mps2"] < -5 for row in rows)


@pytest.mark.slow
def test_a_refused_policy_is_reported_to_the_core(broker: RunningBroker, tmp_path: Path) -> None:
    signer = PolicySigner()
    config = write_config(tmp_path, broker.port, signer.public_key, source="")
    with FakeCore(broker.host, broker.port) as core, subprocess.Popen(agent(config), stderr=subprocess.DEVNULL) as process:
        publish_policy(broker, signer.sign(EdgePolicy(2, 0, {STREAM: RULES})))
        wait_for(lambda: core.reports and core.reports[-1].policy is not None and present(core.reports[-1].policy).version == 2)
        publish_policy(broker, PolicySigner().sign(EdgePolicy(3, 0, {})))
        wait_for(lambda: present(core.reports[-1].policy).refused == 1)
        assert "trusted key" in present(core.reports[-1].policy).reason
        publish_policy(broker, b"")
        publish_policy(broker, signer.sign(EdgePolicy(1, 0, {})))
        wait_for(lambda: present(core.reports[-1].policy).refused == 2)
        assert present(core.reports[-1].policy).version == 2
        process.terminate()
    assert json.loads(cli("status", "-c", str(config), "--json"))["health"]["policy"]["refused"] == 2


def _captured(config: Path) -> int:
    try:
        return sum(books["captured"] for books in json.loads(cli("books", "-c", str(config), "--json"))["books"])
    except subprocess.CalledProcessError:
        return 0  # the spool is not there yet
