"""Rollouts: cohorts that only grow, gates that halt, and a model pushed through a real broker."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from edge_agent.models.config import ModelConfig
from edge_agent.models.updater import ModelUpdater
from edge_agent.uplink.downlink import ModelRequest
from pipelines.commands.model import model_app
from pipelines.commands.rollout import rollout_app, serve
from pipelines.config import load_core_config
from pipelines.errors import RefusedError
from pipelines.rollout.cohorts import BUCKETS, Cohort, parse_cohort
from pipelines.rollout.keys import KeyFolder, KeyPlan
from pipelines.rollout.rollouts import Rollout, progress, wanted_by
from pipelines.rollout.server import answer
from schemas.ids import DeviceId
from schemas.reported import ModelReport, Reported, encode_reported
from schemas.topics import Topics
from tests.fakes import model_repository as fake
from tests.fakes.run_core import RunCore
from tests.plant.broker import RunningBroker

DEVICES = [f"line-{number}" for number in range(2000)]


# -- pure -----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, BUCKETS), st.integers(0, BUCKETS), st.text("abc", min_size=1, max_size=5))
def test_a_larger_share_covers_all_that_a_smaller_one_did(one: int, two: int, rollout: str) -> None:
    small, large = sorted((one, two))
    assert set(Cohort(small).among(rollout, DEVICES[:200])) <= set(Cohort(large).among(rollout, DEVICES[:200]))


def test_a_share_is_about_that_share_and_other_devices_in_each_rollout() -> None:
    first, second = (set(parse_cohort("10%").among(name, DEVICES)) for name in ("a", "b"))
    assert 150 < len(first) < 250
    assert len(first & second) < 60


@pytest.mark.parametrize(("text", "covered"), [("all", 2000), ("0%", 0), ("line-1,line-2", 2), ("line-19*", 111), ("100%", 2000)])
def test_cohorts_are_read_as_written(text: str, covered: int) -> None:
    assert len(parse_cohort(text).among("r", DEVICES)) == covered
    assert parse_cohort(str(parse_cohort(text))) == parse_cohort(text) or text == "0%"


@pytest.mark.parametrize("text", ["", "110%", "Line-1", "a b", "../x", "-5%"])
def test_a_cohort_of_nonsense_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_cohort(text)


def _rollout(name: str = "r", **changes: Any) -> Rollout:
    return msgspec.structs.replace(Rollout(name, "bright", 2, "bright/2.onnx", "all", 10), **changes)


def test_too_many_failures_halt_a_rollout_and_one_does_not() -> None:
    good, bad = ModelReport("bright", 2, "active"), ModelReport("bright", 1, "rolled_back", "boom", (2,))
    assert not progress(_rollout(), {"a": [bad]}).should_halt(_rollout())
    assert not progress(_rollout(), {"a": [bad], **{f"d{n}": [good] for n in range(4)}}).should_halt(_rollout())
    assert progress(_rollout(), {"a": [bad], "b": [bad], "c": [good], "d": []}).should_halt(_rollout())


def test_of_several_rollouts_the_one_issued_last_decides() -> None:
    old, new = _rollout("old"), _rollout("new", issued_ms=20, cohort="a")
    assert [item.name for device in ("a", "b") if (item := wanted_by(device, [new, old])) is not None] == ["new", "old"]
    assert wanted_by("a", [msgspec.structs.replace(new, state="halted"), old]) == old


@pytest.mark.parametrize(
    "path", ["../core.toml", "metadata/../../keys/root-1.pem", "rollouts/r.json", "/etc/passwd", ".lock", "targets/.lock"]
)
def test_nothing_outside_the_repository_can_be_requested(tmp_path: Path, path: str) -> None:
    core = fake.Core(tmp_path)
    found = answer(core.folder, json.dumps({"path": path, "offset": 0, "length": 10}).encode())
    assert (found.status, found.body) == ("refused", b"")


def test_a_link_out_of_the_repository_is_not_followed(tmp_path: Path) -> None:
    core = fake.Core(tmp_path)
    (core.folder / "targets" / "x").symlink_to(tmp_path / "keys" / "root-1.pem")
    assert answer(core.folder, b'{"path":"targets/x","offset":0,"length":10}').status == "refused"


def test_keys_are_never_overwritten_nor_read_when_others_could(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    keys.generate(KeyPlan())
    assert {path.stat().st_mode & 0o777 for path in keys.folder.iterdir()} == {0o600}
    with pytest.raises(RefusedError, match="never overwritten"):
        keys.generate(KeyPlan())
    (keys.folder / "targets-1.pem").chmod(0o644)
    with pytest.raises(RefusedError, match="chmod 600"):
        keys.signers("targets")


def test_publishing_without_the_offline_key_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    core = fake.Core(tmp_path)
    (tmp_path / "keys" / "targets-1.pem").unlink()
    before = (core.folder / "metadata" / "timestamp.json").read_bytes()
    with pytest.raises(RefusedError, match="targets key"):
        core.publish()
    assert (core.folder / "metadata" / "timestamp.json").read_bytes() == before
    assert core.repository.models() == []


# -- through a real broker ------------------------------------------------------------------------------------------------


class WireDevice:
    """A device with nothing but the models' part, on a real broker."""

    def __init__(self, broker: RunningBroker, name: str, root: Path, state: Path, orders: Any = None) -> None:
        self.topics = Topics()
        self.name = DeviceId(name)
        self.client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_message = self._on_message
        config = ModelConfig("bright", str(root), ("camera_frame",))
        self.updater = ModelUpdater(config, state, self._send, SystemClock(), orders=orders)
        ready = threading.Event()
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        self.client.subscribe([(self.topics.desired(self.name), 1), (self.topics.model_data(self.name), 1)])
        assert ready.wait(10)
        self.report()

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.topic == self.topics.desired(self.name):
            self.updater.on_desired(bytes(message.payload))
        else:
            properties: Any = message.properties
            self.updater.on_piece(properties.CorrelationData, properties.UserProperty, bytes(message.payload))

    def _send(self, request: ModelRequest) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = request.correlation
        self.client.publish(self.topics.model_get(self.name), request.body, qos=1, properties=properties)

    def report(self) -> None:
        body = encode_reported(Reported(str(self.name), 0, "test", models=self.updater.report()))
        self.client.publish(self.topics.reported(self.name), body, qos=1, retain=True).wait_for_publish(10)

    def run_until(self, version: int) -> ModelReport:
        deadline = time.monotonic() + 30
        while self.updater.report()[0].version != version and time.monotonic() < deadline:
            self.updater.run_once()
        self.report()
        return self.updater.report()[0]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.updater.close()


@pytest.fixture
def core_file(broker: RunningBroker, tmp_path: Path) -> Path:
    path = tmp_path / "core.toml"
    path.write_text(f'lake = "lake"\n[broker]\nhost = "{broker.host}"\nport = {broker.port}\n')
    return path


@pytest.fixture
def server(core_file: Path) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(load_core_config(core_file), stop))
    thread.start()
    yield
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def _do(app: Any, *arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_model_is_pushed_to_devices_through_a_real_broker(
    broker: RunningBroker, core_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = ("-c", str(core_file))
    _do(model_app, "init", *config)
    request.getfixturevalue("server")
    for number, padding in ((1, 0), (2, 400_000)):
        model = tmp_path / f"bright-{number}.onnx"
        model.write_bytes(fake.tiny_model(number / 100, padding))
        shape = ("--width", "4", "--height", "4", "--layout", "flat", "--colour", "grey", "--labels", "dark,bright")
        assert f"version {number}" in _do(model_app, "publish", "bright", str(model), *shape, *config)
    root = tmp_path / "lake/models/metadata/1.root.json"
    first = WireDevice(broker, "cam-1", root, tmp_path / "cam-1")
    try:
        assert "1 devices notified" in _do(rollout_app, "start", "bright", "--version", "1", "--cohort", "cam-*", *config)
        assert first.run_until(1).state == "active"
        _do(rollout_app, "start", "bright", "--cohort", "all", *config)
        assert first.run_until(2).state == "active"
        late = WireDevice(broker, "cam-2", root, tmp_path / "cam-2")  # told by the server, once it reports
        try:
            assert late.run_until(2).state == "active"
        finally:
            late.close()
        status = json.loads(_do(rollout_app, "status", "--json", *config).splitlines()[-1])
    finally:
        first.close()
    assert [row["version"] for row in json.loads(_do(model_app, "ls", "--json", *config).splitlines()[-1])] == [1, 2]
    newest = next(row for row in status["rollouts"] if row["version"] == 2)
    assert (newest["state"], newest["active"], newest["on_probation"]) == ("running", [], ["cam-1", "cam-2"])


def test_a_real_model_is_published_and_answers_on_the_device_as_it_did_here(shared_data: Path, tmp_path: Path) -> None:
    from pipelines.rollout.golden import try_model

    core = fake.Core(tmp_path / "core")
    body = (shared_data / "models/mnist.onnx").read_bytes()
    trial = try_model(body)
    published = core.repository.publish("bright", body, trial.image, softmax=True, golden=trial.golden)
    device = fake.Device(core, tmp_path / "state")
    assert device.want(published) == "active"


def test_exit_codes_say_what_to_do_next(tmp_path: Path, run_core: RunCore) -> None:
    config = tmp_path / "core.toml"
    config.write_text('lake = "lake"\n[broker]\nport = 1\n')
    assert run_core("model", "ls", "-c", str(tmp_path / "absent.toml")).code == 2
    assert run_core("model", "ls", "-c", str(config)).code == 3
    assert run_core("model", "init", "-c", str(config)).code == 0
    assert run_core("model", "init", "-c", str(config)).code == 3
    assert run_core("model", "show", "nobody", "-c", str(config)).code == 3
