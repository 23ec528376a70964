"""What `rollout start` and `rollout halt` order through a real broker, with one model server, none, or two."""

import threading
import time
from pathlib import Path

import pytest
import structlog
from paho.mqtt import subscribe
from paho.mqtt.client import MQTTv5

from pipelines.commands.rollout import serve
from pipelines.config import CoreConfig, load_core_config
from pipelines.director import director_folder, first_director
from pipelines.rollout.fleet import reported_models
from pipelines.rollout.rollouts import RolloutStore
from schemas.reported import Reported, encode_reported
from schemas.rollout import DesiredModels
from schemas.signed_document import DocumentKind, decode_body, decode_document, decode_message
from tests.fakes import model_repository as fake
from tests.fakes.run_core import RunCore
from tests.plant.broker import RunningBroker

pytestmark = pytest.mark.broker


@pytest.fixture
def core_config(broker: RunningBroker, tmp_path: Path, run_core: RunCore) -> CoreConfig:
    """A core with a signed model, and five devices that have reported."""
    path = tmp_path / "core.toml"
    path.write_text(f'lake = "lake"\n[broker]\nhost = "{broker.host}"\nport = {broker.port}\n')
    config = load_core_config(path)
    assert run_core("model", "init", "-c", str(path)).code == 0
    first_director(director_folder(config))
    model = tmp_path / "bright.onnx"
    model.write_bytes(fake.tiny_model())
    shape = ("--width", "4", "--height", "4", "--layout", "flat", "--colour", "grey")
    assert run_core("model", "publish", "bright", str(model), *shape, "-c", str(path)).code == 0
    for number in range(5):
        report(broker, f"line-{number}")
    while len(reported_models(config)) < 5:
        time.sleep(0.05)
    return config


def report(broker: RunningBroker, device: str) -> None:
    from paho.mqtt import publish

    body = encode_reported(Reported(device, 0, "test"))
    publish.single(f"catchment/reported/{device}", body, 1, retain=True, hostname=broker.host, port=broker.port, protocol=MQTTv5)


def retained(broker: RunningBroker, device: str) -> list[int]:
    """The versions that the order which the broker keeps for a device names."""
    message = subscribe.simple(f"catchment/down/{device}/desired", 1, hostname=broker.host, port=broker.port, protocol=MQTTv5)
    order = decode_document(decode_message(message.payload).document, DocumentKind.DESIRED, DesiredModels)
    return [model.version for model in decode_body(order, DesiredModels).models]


def test_a_cohort_of_nobody_is_named_and_refused_unless_forced(
    core_config: CoreConfig, tmp_path: Path, run_core: RunCore
) -> None:
    start = ("rollout", "start", "bright", "-c", str(tmp_path / "core.toml"))
    refused = run_core(*start, "--cohort", "0.01%")
    assert refused.code == 3
    assert "covers 0 of 5 devices known" in refused.err
    assert RolloutStore(tmp_path / "lake/models/rollouts").all() == []
    assert run_core(*start, "--cohort", "lime-*").code == 3
    assert "covers 0 of 5 devices known" in run_core(*start, "--cohort", "0.01%", "--force").out
    assert "covers 2 of 5 devices known" in run_core(*start, "--cohort", "line-1,line-2").out
    assert "covers 5 of 5 devices known" in run_core(*start, "--cohort", "all").out


def test_a_halt_without_a_model_server_leaves_no_order_in_force(
    core_config: CoreConfig, broker: RunningBroker, tmp_path: Path, run_core: RunCore
) -> None:
    config = ("-c", str(tmp_path / "core.toml"))
    assert run_core("rollout", "start", "bright", "--cohort", "line-1", *config).code == 0
    assert retained(broker, "line-1") == [1]
    halted = run_core("rollout", "halt", "bright-1", *config)
    assert (halted.code, "1 devices notified" in halted.out) == (0, True)
    assert retained(broker, "line-1") == []


def test_a_server_that_starts_after_a_halt_takes_the_order_back(
    core_config: CoreConfig, broker: RunningBroker, tmp_path: Path, run_core: RunCore
) -> None:
    config = ("-c", str(tmp_path / "core.toml"))
    assert run_core("rollout", "start", "bright", "--cohort", "line-*", "--waves", "none", *config).code == 0
    RolloutStore(tmp_path / "lake/models/rollouts").halt("bright-1", "by hand")  # its command did not reach the broker
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(core_config, stop))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while any(retained(broker, f"line-{number}") for number in range(5)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join(20)


def test_a_second_model_server_waits_and_takes_over_when_the_first_ends(core_config: CoreConfig) -> None:
    stops = [threading.Event(), threading.Event()]
    with structlog.testing.capture_logs() as logs:
        threads = [threading.Thread(target=serve, args=(core_config, stop)) for stop in stops]

        def count(event: str) -> int:
            return sum(entry["event"] == event for entry in logs)

        def wait_for(event: str, times: int) -> None:
            deadline = time.monotonic() + 20
            while count(event) < times:
                assert time.monotonic() < deadline, f"{event} not {times} times"
                time.sleep(0.02)

        threads[0].start()
        wait_for("model_server_ready", 1)
        threads[1].start()
        wait_for("model_server_waits", 1)
        assert (count("model_server_ready"), count("broker_connection_ended")) == (1, 0)
        stops[0].set()
        threads[0].join(20)
        wait_for("model_server_ready", 2)
        stops[1].set()
        threads[1].join(20)
