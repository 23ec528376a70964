"""The running agent: its health port, its heartbeat, and a configuration that changes under it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pyarrow as pa
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from schemas.ids import StreamName
from schemas.receipts import Receipt, RefusedStream, encode_receipt
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker, free_port

STREAM = StreamName("vehicle_telemetry")


def eventually(condition: Callable[[], Any], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


class Running:
    """An agent's process, its configuration and its log."""

    def __init__(self, folder: Path, broker_port: int) -> None:
        self.folder = folder
        self.health_port = free_port()
        self.path = folder / "agent.toml"
        self.log_path = folder / "agent.log"
        self._head = (
            f'device = "dev-a"\nstate_dir = "state"\n[broker]\nport = {broker_port}\n'
            f"[health]\nport = {self.health_port}\nready_within_s = 5\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def table(self, name: str, rows: int) -> str:
        path = self.folder / f"{name}.csv"
        path.write_text("event_time,speed_mps\n" + "".join(f"2024-05-01T00:00:{n % 60:02}Z,{n}\n" for n in range(rows)))
        return (
            f'[[source]]\nkind = "replay"\nstream = "{STREAM}"\nmax_samples = 50\n'
            f'options = {{ path = "{path}", rate_hz = 200.0 }}\n'
        )

    def write(self, *tables: str, uplink: str = "") -> None:
        self.path.write_text(f"{self._head}{uplink}{''.join(tables)}")

    def start(self) -> None:
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "edge_agent", "-c", str(self.path)], stderr=log)
        eventually(self._answers)

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def figure(self, name: str) -> float:
        found = [line for line in self.ask("/metrics")[1].splitlines() if line.startswith(f"catchment_agent_{name}")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def log(self) -> str:
        return self.log_path.read_text()

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return self.ask("/live")[0] == 200
        except OSError:
            return False


@pytest.fixture
def agent(broker: RunningBroker, tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path, broker.port)
    yield running
    if running.process is not None:
        running.process.terminate()
        assert running.process.wait(30) == 0, running.log()


@pytest.mark.slow
def test_ready_follows_the_link_and_the_receipts_and_live_does_not(broker: RunningBroker, agent: Running) -> None:
    agent.write(agent.table("one", 100_000))
    with FakeCore(broker.host, broker.port):
        agent.start()
        eventually(lambda: agent.figure("settled_samples_total") > 0)
        eventually(lambda: agent.ask("/ready")[0] == 200)
        balance = agent.figure("captured_samples_total") > 0
        assert balance
    broker.stop()
    eventually(lambda: agent.ask("/ready")[0] == 503)
    assert "no connection" in agent.ask("/ready")[1]
    assert agent.ask("/live") == (200, "live\n")
    broker.start()
    # Nobody settles: the broker alone is no progress.
    eventually(lambda: "last receipt" in agent.ask("/ready")[1], 40)
    assert agent.figure("connected") == 1


@pytest.mark.slow
def test_a_new_configuration_changes_what_it_names_and_nothing_else(broker: RunningBroker, agent: Running) -> None:
    one, two, three = (agent.table(name, 100_000) for name in ("one", "two", "three"))
    agent.write(one, two)
    with FakeCore(broker.host, broker.port) as core:
        agent.start()
        eventually(lambda: agent.figure("settled_samples_total") > 200)
        agent.write(one, three, uplink="[uplink]\nbytes_per_s = 1_000_000\n")
        agent.hang_up()
        eventually(lambda: "configuration_reloaded" in agent.log())
        eventually(lambda: "send_limits_changed" in agent.log())
        assert agent.figure("sources_running") == 2
        assert agent.log().count("source_ended") == 0
        before = agent.figure("settled_samples_total")
        eventually(lambda: agent.figure("settled_samples_total") > before + 200)
        assert len(core.landed_seqs(STREAM)) == 1, "the epoch goes on: nothing was started again but the source that changed"


def test_a_wrong_new_configuration_keeps_the_old_one_and_says_so(broker: RunningBroker, agent: Running) -> None:
    good = agent.table("one", 100_000)
    agent.write(good)
    with FakeCore(broker.host, broker.port):
        agent.start()
        eventually(lambda: agent.figure("settled_samples_total") > 0)
        for times, (wrong, fragment) in enumerate(
            (
                (good + '[[source]]\nkind = "replay"\nstream = "no_such_stream"\n', "no_such_stream"),
                (good.replace("[[source]]", "[[sauce]]"), "sauce"),
                (good.replace("rate_hz", "rate_herz"), "rate_herz"),
                (good[:-9], "TOML"),
            ),
            start=1,
        ):
            agent.write(wrong)
            agent.hang_up()
            eventually(lambda: agent.log().count("configuration_rejected") == times)  # noqa: B023 # called before the next turn
            assert fragment in agent.log()
        before = agent.figure("settled_samples_total")
        eventually(lambda: agent.figure("settled_samples_total") > before)
        assert agent.figure("sources_running") == 1


@pytest.mark.slow
def test_a_heartbeat_with_the_books_is_a_sample_like_any_other(broker: RunningBroker, agent: Running) -> None:
    agent.write(agent.table("one", 100), uplink="heartbeat_s = 1\n")
    with FakeCore(broker.host, broker.port) as core:
        agent.start()
        eventually(lambda: len(core.landed_seqs("agent_heartbeat")) == 1)
        eventually(lambda: sum(ranges.count for ranges in core.landed_seqs("agent_heartbeat").values()) >= 3)
        bodies = [body for head, body in list(core.landed) if head.stream == "agent_heartbeat"]
    rows = [row for body in bodies for row in pa.ipc.open_stream(body).read_all().to_pylist()]
    last = rows[-1]
    assert last["is_connected"]
    assert last["captured"] == last["settled"] + last["spooled"] + last["dropped"]
    books = {entry["stream"]: entry for entry in json.loads(last["books"])}
    assert books[STREAM]["captured"] == 100
    assert sum(entry["captured"] for entry in books.values()) == last["captured"]


def test_the_service_manager_hears_that_it_is_up_and_alive_and_stops(agent: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    address = agent.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        agent.write(agent.table("one", 10))
        agent.start()
        assert agent.process is not None
        heard = {listener.recv(100), listener.recv(100)}
        assert heard == {b"READY=1", b"WATCHDOG=1"}
        agent.process.terminate()
        while listener.recv(100) != b"STOPPING=1":
            pass


def test_what_needs_a_new_start_is_named(agent: Running) -> None:
    agent.write(agent.table("one", 10))
    agent.start()
    agent.path.write_text("log_level = 'debug'\n" + agent.path.read_text() + "[spool]\nlinger_ms = 5\n")
    agent.hang_up()
    eventually(lambda: "needs_restart" in agent.log())
    line = next(line for line in agent.log().splitlines() if "needs_restart" in line)
    assert "spool" in line
    assert "log_level" in line
    health_file = agent.folder / "state" / "health.json"
    eventually(health_file.exists)
    assert json.loads(health_file.read_text())["failure"] == ""


def test_a_stream_that_the_core_refuses_is_reported_wherever_one_looks(broker: RunningBroker, agent: Running) -> None:
    agent.write(agent.table("one", 20))
    with FakeCore(broker.host, broker.port):
        agent.start()
        eventually(lambda: agent.figure("settled_samples_total") == 20)
        eventually(lambda: agent.ask("/ready")[0] == 200)
    refused: dict[str, RefusedStream] = {STREAM: RefusedStream(20, 0, 20, "speed_mps: above the maximum of N [red]")}
    publish(broker.port, "catchment/down/dev-a/receipts", encode_receipt(Receipt(9, {}, refused=refused)))
    eventually(lambda: agent.ask("/ready")[0] == 503)
    assert "refused by the core: 100 % (20 in a row), mostly: speed_mps" in agent.ask("/ready")[1]
    assert agent.figure("refused_share") == 1
    eventually(lambda: "stream_refused_by_core" in agent.log())
    program = "from edge_agent.cli import main; main()"
    command = [sys.executable, "-c", program, "status", "-c", str(agent.path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}).stdout
    assert "refused by the core: 100 % (20 in a row), mostly: speed_mps: above the maximum of N [red]" in shown
    status = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert status["refused"][STREAM]["quarantined"] == 20
    assert status["health"]["refused"][STREAM]["in_row"] == 20
    publish(broker.port, "catchment/down/dev-a/receipts", encode_receipt(Receipt(10, {})))
    eventually(lambda: agent.ask("/ready")[0] == 200)


def publish(port: int, topic: str, body: bytes) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.publish(topic, body, qos=1, retain=True).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()
    client.reinitialise()
