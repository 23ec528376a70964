"""Answers reach programs on the device at once, before they are stored, and one that does not read holds nothing up."""

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge_agent.errors import ConfigError
from edge_agent.models.local_consumers import ExecConsumer, LocalAnswer, LocalConsumers, SocketConsumer, TopicConsumer
from edge_agent.sources.api import Scalar
from schemas.contract import builtin_contract
from tests.fakes import model_repository as fake
from tests.fakes.model_repository import frames, picture
from tests.plant.broker import Broker, free_port


def answer(label: str = "defect", score: float = 0.9, columns: Mapping[str, Scalar] | None = None) -> LocalAnswer:
    return LocalAnswer(
        "camera_frame", 7, "bright", 3, {"predicted_label": label, "predicted_score": score, **(columns or {})}, 4.0
    )


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError("not within 30 s")


@pytest.fixture
def made() -> Iterator[Callable[..., LocalConsumers]]:
    built: list[LocalConsumers] = []

    def build(*configs: Any, restart_s: float = 1.0) -> LocalConsumers:
        built.append(LocalConsumers(configs, restart_s))
        return built[-1]

    yield build
    for consumers in built:
        consumers.close()


def client(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    found.connect(str(path))
    found.settimeout(30)
    return found


def test_a_program_at_the_socket_gets_the_answers_it_wants(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "answers"
    consumers = made(SocketConsumer(str(path), ("defect",), 0.8))
    with client(path) as ejector:
        for each in (answer(), answer("ok"), answer(score=0.5), answer(score=0.95)):
            consumers.send(each, 1.0)
        got = [json.loads(ejector.recv(65_536)) for _ in range(2)]
    assert [each["columns"]["predicted_score"] for each in got] == [0.9, 0.95]
    assert got[0] | {"columns": None} == {
        "stream": "camera_frame", "event_time_us": 7, "model": "bright", "version": 3, "age_ms": 4.0, "columns": None,
    }  # fmt: skip
    assert consumers.counts == {"notified": 2, "dropped": 0}
    assert consumers.delay_p95_ms() == 3.0


def test_a_program_that_does_not_read_costs_its_own_answers_and_no_others(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "answers"
    consumers = made(SocketConsumer(str(path)))
    with client(path), client(path) as reading:
        for _ in range(2_000):
            consumers.send(answer(columns={"predicted_values": [1.0] * 500}), 1.0)
            reading.recv(65_536)
    assert consumers.counts["dropped"] > 0
    consumers.send(answer(), 1.0)  # both have gone: nobody is there
    with client(path) as later:
        consumers.send(answer("again"), 1.0)
        assert json.loads(later.recv(65_536))["columns"]["predicted_label"] == "again"


def test_a_socket_left_behind_is_replaced_and_another_file_is_not(made: Any, tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.bind(str(tmp_path / "answers"))
    left.close()
    made(SocketConsumer(str(tmp_path / "answers")))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="choose a path"):
        LocalConsumers((SocketConsumer(str(tmp_path / "file")),))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_program_gets_lines_and_is_started_again_when_it_ends(made: Any, tmp_path: Path) -> None:
    out = tmp_path / "lines"
    script = f"import sys\nopen({str(out)!r}, 'a').write(sys.stdin.readline())\n"
    consumers = made(ExecConsumer((sys.executable, "-c", script)), restart_s=0.0)

    def two_starts() -> bool:
        consumers.send(answer(), 1.0)
        return out.exists() and out.read_text().count("\n") >= 2

    until(two_starts)
    assert all(json.loads(line)["model"] == "bright" for line in out.read_text().splitlines())


def test_a_program_that_never_reads_holds_nothing_up(made: Any) -> None:
    consumers = made(ExecConsumer((sys.executable, "-c", "import time; time.sleep(60)")))
    for _ in range(500):
        consumers.send(answer(columns={"predicted_values": [1.0] * 500}), 1.0)
    assert consumers.counts["dropped"] > 400


def test_a_program_that_is_not_there_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="cannot be started"):
        LocalConsumers((ExecConsumer(("/no/such/program",)),))


@pytest.mark.parametrize(("topic", "host"), [("a/+", "127.0.0.1"), ("", "127.0.0.1"), ("a", "broker.example")])
def test_a_topic_is_plain_and_on_this_machine(topic: str, host: str) -> None:
    with pytest.raises(ConfigError):
        TopicConsumer(topic, host)


@pytest.mark.broker
def test_answers_come_on_a_topic_of_the_devices_broker(made: Any, tmp_path: Path) -> None:
    port, got = free_port(), list[bytes]()
    broker = Broker(tmp_path, config=f"listener {port} 127.0.0.1\nallow_anonymous true", port=port)
    broker.start()
    try:
        listening = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        listening.on_message = lambda _client, _data, message: got.append(bytes(message.payload))
        listening.connect("127.0.0.1", port)
        listening.subscribe("line/eject")
        listening.loop_start()
        consumers = made(TopicConsumer("line/eject", port=port))

        def has_come() -> bool:
            consumers.send(answer(), 1.0)
            return bool(got)

        until(has_come)
        listening.disconnect()
        listening.loop_stop()
    finally:
        broker.stop()
    assert json.loads(got[0])["columns"]["predicted_label"] == "defect"


def test_what_a_running_model_says_reaches_the_socket_and_is_reported(core: "fake.Core", tmp_path: Path) -> None:
    path = tmp_path / "answers"
    device = fake.Device(core, tmp_path / "state", notify=(SocketConsumer(str(path), ("bright",)),))
    device.want(core.publish())
    predictor = device.models.predictor(builtin_contract("camera_frame"))
    assert predictor is not None
    with client(path) as ejector:
        pending = predictor.submit(frames(picture(3), picture(250)))
        got = json.loads(ejector.recv(65_536))
        assert pending.wait(30)
    assert (got["model"], got["version"], got["columns"]["predicted_label"]) == ("bright", 1, "bright")
    figures = device.models.report()[0].figures
    assert figures.counts["notified"] == 1  # type: ignore[union-attr]
    assert figures.delay_p95_ms > 0  # type: ignore[union-attr]
    device.close()
