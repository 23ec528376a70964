"""What devices are ordered is signed by the director: the server signs again in time, and the broker's keeper changes nothing."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from paho.mqtt import publish
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from edge_agent.documents.gate import CounterFile, DocumentGate, DocumentInbox
from edge_agent.documents.trust import DocumentTrust
from pipelines.commands.model import model_app
from pipelines.commands.rollout import rollout_app, serve
from pipelines.config import load_core_config
from pipelines.director import add_director_key, director_folder, first_director, require_director
from pipelines.rollout.rollouts import Rollout, RolloutStore
from pipelines.rollout.server import ModelServer
from schemas.ids import DeviceId
from schemas.reported import DocumentReport, Reported, encode_reported
from schemas.rollout import MAX_DESIRED_BYTES, DesiredModels, decode_desired
from schemas.signed_document import DocumentKind, decode_body, decode_document, decode_message
from tests.fakes import model_repository as fake
from tests.fakes.director import DAY_MS, NOW_MS, HandClock, OrderTaker
from tests.pipelines.rollout.test_rollout_push import WireDevice
from tests.plant.broker import Address, RunningBroker

TOPIC = "catchment/down/line-3/desired"


@pytest.fixture
def core_file(broker: RunningBroker, tmp_path: Path) -> Path:
    path = tmp_path / "core.toml"
    path.write_text(f'lake = "lake"\n[broker]\nhost = "{broker.host}"\nport = {broker.port}\n')
    return path


class ServedDevice:
    """A server without a broker: what it would have published."""

    def __init__(self, folder: Path) -> None:
        path = folder / "core.toml"
        path.write_text('lake = "lake"\n')
        self.config = load_core_config(path)
        self.keys = director_folder(self.config)
        self.clock = HandClock()
        self.store = RolloutStore(folder / "lake" / "models" / "rollouts")
        self.server = ModelServer(self.config, self.clock)
        self.messages: list[bytes] = []
        self.server._link.publish = self._keep  # type: ignore[method-assign,assignment]

    def _keep(self, _topic: str, body: bytes, **_: object) -> None:
        self.messages.append(body)

    def tick(self) -> int:
        """How many messages that were told."""
        before = len(self.messages)
        self.server.tick()
        return len(self.messages) - before


@pytest.fixture
def served(tmp_path: Path) -> ServedDevice:
    found = ServedDevice(tmp_path)
    found.store.save(Rollout("defects-1", "defects", 1, "defects/1.onnx", "line-3", 10))
    return found


def counter_of(body: bytes) -> int:
    return decode_document(decode_message(body).document, DocumentKind.DESIRED, DesiredModels).counter


def models_of(body: bytes) -> list[int]:
    order = decode_document(decode_message(body).document, DocumentKind.DESIRED, DesiredModels)
    return [model.version for model in decode_body(order, DesiredModels).models]


def test_an_order_is_signed_again_before_it_expires_and_not_sooner(served: ServedDevice, tmp_path: Path) -> None:
    (key,) = first_director(served.keys).public_keys
    assert [served.tick() for _ in range(3)] == [1, 0, 0]
    served.clock.wall_ms += 14 * DAY_MS
    assert served.tick() == 0
    served.clock.wall_ms += 2 * DAY_MS
    assert [served.tick() for _ in range(2)] == [1, 0]
    device = OrderTaker(tmp_path / "state", key, clock=HandClock(NOW_MS + 40 * DAY_MS))
    assert device.take(served.messages[0]) is None
    assert device.take(served.messages[1]) == (1,)


def test_an_order_is_signed_again_when_a_key_comes_or_goes(served: ServedDevice) -> None:
    assert served.tick() == 1  # unsigned: there is no key yet
    assert decode_desired(served.messages[0]).version == 1
    first_director(served.keys)
    assert [served.tick() for _ in range(2)] == [1, 0]
    add_director_key(served.keys)
    assert [served.tick() for _ in range(2)] == [1, 0]
    assert len(decode_message(served.messages[-1]).signatures) == 2
    (served.keys / "director-1.pem").unlink()
    assert served.tick() == 1
    assert [each.key for each in decode_message(served.messages[-1]).signatures] == list(
        require_director(served.keys).public_keys
    )
    assert counter_of(served.messages[1]) < counter_of(served.messages[2]) < counter_of(served.messages[3])


def test_a_restarted_server_counts_on_from_what_devices_have_seen(served: ServedDevice, tmp_path: Path) -> None:
    first_director(served.keys)
    served.tick()
    served.clock.wall_ms -= 100 * DAY_MS  # its clock is wrong, too
    again = ServedDevice(tmp_path)
    again.clock = served.clock
    again.tick()
    assert counter_of(again.messages[0]) > counter_of(served.messages[0])


def test_a_halted_rollout_is_an_order_of_no_model(served: ServedDevice, tmp_path: Path) -> None:
    (key,) = first_director(served.keys).public_keys
    served.tick()
    served.store.save(Rollout("defects-1", "defects", 1, "defects/1.onnx", "line-3", 10, state="halted"))
    assert [served.tick() for _ in range(2)] == [1, 0]
    device = OrderTaker(tmp_path / "state", key)
    assert device.take(served.messages[0]) == (1,)
    assert device.take(served.messages[1]) == ()
    assert device.take(served.messages[0]) is None


def test_the_server_logs_once_that_a_device_does_not_follow(served: ServedDevice) -> None:
    report = Reported("line-3", 1, "0", documents=(DocumentReport("desired", 5, 1, "signed by no key that this device trusts"),))
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            served.server._remember(DeviceId("line-3"), encode_reported(report))
    assert [entry["reason"] for entry in logs] == ["desired: signed by no key that this device trusts"]


@pytest.fixture
def server(core_file: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(load_core_config(core_file), stop))
    thread.start()
    yield
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def run(app: Any, *arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
@pytest.mark.broker
def test_through_a_real_broker_only_the_directors_orders_are_followed(
    broker: RunningBroker, core_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = ("-c", str(core_file))
    assert "director key: " in run(model_app, "init", *config)
    (key,) = require_director(director_folder(load_core_config(core_file))).public_keys
    request.getfixturevalue("server")
    shape = ("--width", "4", "--height", "4", "--layout", "flat", "--colour", "grey", "--labels", "dark,bright")
    for number in (1, 2):
        path = tmp_path / f"bright-{number}.onnx"
        path.write_bytes(fake.tiny_model(number / 100))
        run(model_app, "publish", "bright", str(path), *shape, *config)
    device, orders = SignedDevice(broker, key, tmp_path), Orders(broker)
    try:
        # The command orders at once; the server, which knows nothing of that, once more at its next tick. Then it is quiet.
        run(rollout_app, "start", "bright", "--version", "1", "--cohort", "line-3", *config)
        assert device.run_until(1).version == 1
        old = max(orders.wait_for(2), key=counter_of)
        run(rollout_app, "start", "bright", "--cohort", "line-3", *config)
        assert device.run_until(2).version == 2
        new = max(orders.wait_for(4), key=counter_of)
        device.run_until_taken(counter_of(new))
        unsigned = b'{"rollout":"x","name":"bright","version":1,"target":"bright/1.onnx","issued_ms":9}'
        for number, forged in enumerate((old, unsigned, new[:-9]), 1):
            publish.single(TOPIC, forged, 1, retain=True, hostname=broker.host, port=broker.port, protocol=MQTTv5)
            device.run_until_refused(number)
        publish.single(TOPIC, b"", 1, retain=True, hostname=broker.host, port=broker.port, protocol=MQTTv5)
        device.updater.run_once()
        report = device.orders.report()
        assert (report.refused, device.updater.report()[0].version) == (3, 2)
        assert report.counter == counter_of(new)
        assert orders.wait_for(8)[4:] == [old, unsigned, new[:-9], b""], "the server orders nothing more"
        assert len({counter_of(body) for body in orders.heard[:4]}) == 4
        assert [models_of(body) for body in orders.heard[:4]] == [[1], [1], [2], [2]]
    finally:
        orders.close()
        device.close()


class SignedDevice(WireDevice):
    """A device that trusts the director."""

    def __init__(self, broker: RunningBroker, key: str, folder: Path) -> None:
        state = folder / "state"
        counter = CounterFile(state, DocumentKind.DESIRED, (key,))
        trust = DocumentTrust((key,), "line-3")
        gate = DocumentGate(DocumentKind.DESIRED, DesiredModels, trust, counter, SystemClock(), MAX_DESIRED_BYTES)
        self.orders = DocumentInbox(DocumentKind.DESIRED, gate, counter, SystemClock(), MAX_DESIRED_BYTES)
        root = folder / "lake/models/metadata/1.root.json"
        super().__init__(broker, "line-3", root, state, self.orders)

    def run_until_taken(self, counter: int) -> None:
        for _ in range(60):
            if self.orders.report().counter >= counter:
                return
            self.updater.run_once()

    def run_until_refused(self, count: int) -> None:
        for _ in range(60):
            if self.orders.report().refused >= count:
                return
            self.updater.run_once()


class Orders:
    """Hears all that is published as this device's order, by whomever."""

    def __init__(self, broker: Address) -> None:
        self.heard: list[bytes] = []
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_message = lambda _client, _data, message: self.heard.append(bytes(message.payload))
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect(broker.host, broker.port)
        self._client.subscribe(TOPIC, qos=1)
        self._client.loop_start()
        assert subscribed.wait(20)

    def wait_for(self, count: int) -> list[bytes]:
        deadline = time.monotonic() + 20
        while len(self.heard) < count:
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)
        return list(self.heard)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client.reinitialise()
