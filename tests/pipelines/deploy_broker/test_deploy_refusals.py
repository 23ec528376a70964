"""No refusal of the broker goes unnoticed: each role logs it with the next step, shows it, and sends again what matters."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from catchment.runtime.clock import SystemClock
from pipelines.config import CoreBrokerConfig, CoreConfig
from pipelines.director import DesiredOrders
from pipelines.errors import ConfigError, RetryLaterError
from pipelines.heartbeat import read_heartbeats
from pipelines.ingest.receipts import MqttPublisher
from pipelines.lake.lake import lake_at
from pipelines.refusals import PublishTracker, Refusals
from pipelines.rollout.connection import BrokerLink
from pipelines.rollout.fleet import publish_orders, reported_models
from pipelines.rollout.rollouts import Rollout, RolloutStore
from pipelines.rollout.server import ModelServer
from schemas.reason_codes import describe_reason
from schemas.reported import Reported, encode_reported
from schemas.rollout import PieceRequest, encode_piece_request
from schemas.topics import Topics
from tests.fakes.broker_fronts import RefusingFront
from tests.fakes.secured_broker import after_tick, until
from tests.plant.broker import MakeBroker, RunningBroker

NOT_AUTHORIZED, QUOTA_EXCEEDED = 0x87, 0x97


class HandClock(SystemClock):
    """The machine's clock, moved ahead by hand."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


class StillClock(SystemClock):
    """A clock that stands still but for what a test moves it: no share fills up however slow the machine is."""

    now_s = 1_000.0

    def monotonic_s(self) -> float:
        return self.now_s


@pytest.fixture
def front(broker: RunningBroker) -> Iterator[RefusingFront]:
    with RefusingFront(broker.port) as one:
        yield one


class Hearing(mqtt.Client):
    """A client that keeps what it hears."""

    def __init__(self, *_: object) -> None:  # paho's `reinitialise` calls it again, with arguments of its own
        super().__init__(CallbackAPIVersion.VERSION2, client_id="hears", protocol=mqtt.MQTTv5)
        self.heard: list[tuple[str, bytes]] = []
        self.on_message = lambda _c, _d, message: self.heard.append((message.topic, bytes(message.payload)))


@pytest.fixture
def client(broker: RunningBroker) -> Iterator[Hearing]:
    """A client of the broker itself that hears all that comes down."""
    one = Hearing()
    one.connect(broker.host, broker.port)
    one.loop_start()
    until(one.is_connected)
    one.subscribe("catchment/down/#", qos=1)
    yield one
    one.disconnect()
    one.loop_stop()
    one.reinitialise()


def start_bridge(folder: Path, port: int) -> subprocess.Popen[bytes]:
    config = folder / "core.toml"
    config.write_text(f'lake = "lake"\n[broker]\nport = {port}\n')
    with (folder / "bridge.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "pipelines", "bridge", "-c", str(config)], stdout=log, stderr=log)


def heartbeat(lake: Path, role: str) -> Any:
    return next((one for one in read_heartbeats(lake_at(lake)) if one.role == role), None) if lake.is_dir() else None


@pytest.mark.parametrize(
    ("publishes", "subscriptions", "hint"),
    [
        ({"catchment/bridges/": NOT_AUTHORIZED}, {}, "must be the bridge.id"),
        ({}, {"catchment/up/": NOT_AUTHORIZED}, "catchment/up/+/+: 0x87 not authorised"),
        ({}, {"catchment/bridges/": NOT_AUTHORIZED}, "catchment/bridges/bridge-0: 0x87 not authorised"),
    ],
    ids=("its word", "a subscription", "its word's subscription"),
)
def test_a_bridge_without_its_rights_stops_with_the_remedy(
    front: RefusingFront, tmp_path: Path, publishes: dict[str, int], subscriptions: dict[str, int], hint: str
) -> None:
    front.publishes, front.subscriptions = publishes, subscriptions
    process = start_bridge(tmp_path, front.port)
    assert process.wait(30) == 2
    assert hint in (tmp_path / "bridge.log").read_text()


@pytest.mark.slow
def test_a_bridge_whose_answers_are_refused_says_so_in_its_heartbeat(
    front: RefusingFront, client: Hearing, tmp_path: Path
) -> None:
    front.publishes = {"catchment/down/dev-a/objects": NOT_AUTHORIZED}
    process = start_bridge(tmp_path, front.port)
    try:
        until(lambda: "connected " in (tmp_path / "bridge.log").read_text())
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [("offset", "0"), ("total", "5")]
        client.publish("catchment/parts/dev-a/" + "0" * 64, b"", qos=1, properties=properties).wait_for_publish(20)
        until(lambda: (found := heartbeat(tmp_path / "lake", "bridge")) is not None and "down/+/objects" in found.trouble)
        found = heartbeat(tmp_path / "lake", "bridge")
        assert not found.is_ready
        assert found.counters["refused_messages"] == 1
        assert "broker_refused_message" in (tmp_path / "bridge.log").read_text()
    finally:
        process.terminate()
        assert process.wait(30) == 0


def config_of(front: RefusingFront, folder: Path) -> CoreConfig:
    return CoreConfig(lake=str(folder / "lake"), broker=CoreBrokerConfig(port=front.port))


def test_a_model_server_sends_refused_orders_again_and_shows_them_meanwhile(
    front: RefusingFront, client: Hearing, tmp_path: Path
) -> None:
    front.publishes = {"catchment/down/cam-1/": NOT_AUTHORIZED}
    RolloutStore(tmp_path / "lake/models/rollouts").save(Rollout("r", "bright", 1, "bright/1.onnx", "cam-1,cam-2", 1))
    clock = HandClock()
    server = ModelServer(config_of(front, tmp_path), clock)
    server.open()
    try:
        server.tick()
        until(lambda: "down/+/desired" in server.health().trouble)
        until(lambda: [topic for topic, _ in client.heard] == ["catchment/down/cam-2/desired"])
        for _ in range(3):
            server.tick()
        assert front.refused == ["catchment/down/cam-1/desired"]
        front.publishes = {}
        clock.ahead_s += 60
        until(after_tick(server, lambda: len(client.heard) == 2))
        assert {topic for topic, _ in client.heard} == {"catchment/down/cam-1/desired", "catchment/down/cam-2/desired"}
        until(lambda: server.health().is_ready)
        assert server.health().counters["refused_messages"] == 1
    finally:
        server.close()


def test_a_model_server_whose_subscription_is_refused_stops_with_the_remedy(front: RefusingFront, tmp_path: Path) -> None:
    front.subscriptions = {"catchment/reported/": NOT_AUTHORIZED}
    server = ModelServer(config_of(front, tmp_path), SystemClock())
    with pytest.raises(ConfigError, match=r"reported/\+: 0x87 not authorised"):
        server.open()


def test_a_rollout_whose_orders_are_refused_is_an_error_and_not_a_number(
    front: RefusingFront, client: Hearing, tmp_path: Path
) -> None:
    client.publish("catchment/reported/cam-1", encode_reported(Reported("cam-1", 0, "t")), qos=1, retain=True).wait_for_publish(
        20
    )
    rollout, config = Rollout("r", "bright", 1, "bright/1.onnx", "all", 1), config_of(front, tmp_path)
    reports = reported_models(config)
    front.publishes = {"catchment/down/": NOT_AUTHORIZED}
    with pytest.raises(ConfigError, match="cam-1/desired: 0x87 not authorised"):
        publish_orders(config, rollout, reports, DesiredOrders.open(config, SystemClock()))
    front.publishes = {"catchment/down/": QUOTA_EXCEEDED}
    with pytest.raises(RetryLaterError, match="0x97 quota exceeded"):
        publish_orders(config, rollout, reports, DesiredOrders.open(config, SystemClock()))
    front.subscriptions = {"catchment/reported/": NOT_AUTHORIZED}
    with pytest.raises(ConfigError, match="0x87"):
        reported_models(config)


def test_a_refused_receipt_is_no_receipt_and_names_the_right_that_is_missing(front: RefusingFront, client: Hearing) -> None:
    front.publishes = {"catchment/down/dev-a/": NOT_AUTHORIZED}
    with MqttPublisher(CoreBrokerConfig(port=front.port), "run") as publisher:
        with pytest.raises(RetryLaterError, match="1 of 2 messages, as catchment/down/dev-a/receipts: 0x87"):
            publisher.publish({"catchment/down/dev-a/receipts": b"{}", "catchment/down/dev-b/receipts": b"{}"})
        assert "catchment/down/+/receipts" in publisher.refusals.trouble
        front.publishes = {}
        publisher.publish({"catchment/down/dev-a/receipts": b"{}"})
        assert publisher.refusals.trouble == ""
    until(lambda: len(client.heard) >= 2)
    for topic in {topic for topic, _ in client.heard}:
        client.publish(topic, b"", qos=1, retain=True).wait_for_publish(20)


def test_a_link_says_why_the_broker_does_not_let_it_in(make_broker: MakeBroker) -> None:
    guarded = make_broker(extra="allow_anonymous false\npassword_file /dev/null")
    link = BrokerLink(CoreBrokerConfig(port=guarded.port), "x", (), lambda _message: None)
    with pytest.raises(RetryLaterError, match="refuses the connection"):
        link.open(2)


def test_an_answer_that_comes_before_its_message_is_noted_is_not_lost() -> None:
    tracker, codes = PublishTracker(), list[int]()
    tracker.answered(7, 0x87)
    tracker.sent(7, codes.append)
    tracker.sent(8, codes.append)
    tracker.answered(8, 0)
    tracker.sent(7, codes.append)  # numbers come again
    tracker.answered(7, 0)
    assert codes == [0x87, 0, 0]


def test_refusals_are_logged_once_a_minute_for_each_rule_and_counted_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = HandClock()
    found = Refusals(Topics(), clock)
    for number in range(50):
        assert found.judge(f"catchment/down/dev-{number}/objects", NOT_AUTHORIZED)
    assert found.judge("catchment/models/data/dev-1", QUOTA_EXCEEDED)
    assert found.count == 51
    assert "catchment/down/+/objects" in found.trouble
    assert "catchment/models/data/+" in found.trouble
    assert capsys.readouterr().out.count("broker_refused_message") == 2
    clock.ahead_s += 61
    found.judge("catchment/down/dev-1/objects", NOT_AUTHORIZED)
    assert capsys.readouterr().out.count("broker_refused_message") == 1
    for number in range(50):
        assert "catchment/down/+/objects" in found.trouble
        assert not found.judge(f"catchment/down/dev-{number}/objects", 0)
    assert "down" not in found.trouble


@pytest.mark.parametrize("code", [*range(0x80, 0xA3), 0xFF])
def test_every_refusal_has_words_and_a_next_step(code: int) -> None:
    text = describe_reason(code)
    assert text.startswith(f"0x{code:02x} ")
    assert ": " in text


def test_the_access_rule_of_a_topic_names_no_device() -> None:
    topics = Topics("plant/a")
    sha = "0" * 64
    for topic, rule in (
        ("up/dev/telemetry", "up/+/+"),
        (f"parts/dev/{sha}", "parts/+/+"),
        ("reported/dev", "reported/+"),
        ("models/get/dev", "models/get/+"),
        ("models/data/dev", "models/data/+"),
        ("down/dev/receipts", "down/+/receipts"),
        ("down/dev/receipts/1", "down/+/receipts/1"),
        ("bridges/bridge-0", "bridges/bridge-0"),
    ):
        assert topics.rule_of(f"plant/a/{topic}") == f"plant/a/{rule}"


@pytest.mark.slow
def test_one_device_s_flood_of_reports_and_requests_leaves_the_model_server_to_the_others(
    broker: RunningBroker, client: Hearing, tmp_path: Path
) -> None:
    config = CoreConfig(lake=str(tmp_path / "lake"), broker=CoreBrokerConfig(port=broker.port))
    targets = tmp_path / "lake/models/targets"
    targets.mkdir(parents=True)
    (targets / "x").write_bytes(bytes(300_000))
    server = ModelServer(config, StillClock())
    server.open()
    client.subscribe("catchment/models/data/+", qos=1)
    client.subscribe("catchment/models/get/+", qos=1)
    request = encode_piece_request(PieceRequest("targets/x", 0, 262_144))
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = b"q"
    try:
        for number in range(600):
            client.publish("catchment/models/get/flood", request, qos=1, retain=True, properties=properties)
            client.publish("catchment/reported/flood", b"%d" % number, qos=1)
        client.publish("catchment/reported/flood", b"x" * 5_000_000, qos=1)
        client.publish("catchment/models/get/calm", request, qos=1, properties=properties)
        client.publish("catchment/reported/calm", encode_reported(Reported("calm", 0, "t")), qos=1)
        until(lambda: any(topic == "catchment/models/data/calm" for topic, _ in client.heard))
        until(after_tick(server, lambda: "calm" in server._reports))
        answered = sum(topic == "catchment/models/data/flood" for topic, _ in client.heard)
        counters = server.health().counters
        assert answered == 256
        assert counters["deferred_requests"] == 600 - answered
        assert counters["litter"] == 600
        until(lambda: [body for topic, body in client.heard if topic == "catchment/models/get/flood"].count(b"") == 600)
        assert server.health().is_ready
    finally:
        server.close()
