import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.lake.lake import lake_at
from tests.pipelines.bridge.conftest import BridgeProcess, Device
from tests.plant.broker import RunningBroker
from tests.plant.present import present

JSON = "application/json"
STOPS = 5
CUT_SHORT = ("acks_left_out", "goodbye_cut_short", "stop_forced")


def span(first: int, count: int, epoch: int = 7) -> list[tuple[str, str]]:
    return [("epoch", str(epoch)), ("firstseq", str(first)), ("samplecount", str(count))]


def test_a_message_lands_with_its_head_read(bridge: BridgeProcess, device: Device) -> None:
    bridge.start_connected()
    device.send("catchment/up/dev-a/telemetry", b"[1,2]", [*span(0, 2), ("mine", "x")], JSON)
    device.send("catchment/reported/dev-a", b"{}")
    assert bridge.stop() == 0
    up, reported = bridge.rows()
    assert (up["kind"], up["device"], up["stream"], up["content_type"]) == ("up", "dev-a", "telemetry", JSON)
    assert (up["epoch"], up["first_seq"], up["count"], up["numbered_by"]) == (7, 0, 2, "device")
    assert {"name": "mine", "value": "x"} in up["properties"]
    assert up["payload"] == b"[1,2]"
    assert (reported["kind"], reported["device"], reported["stream"]) == ("reported", "dev-a", None)


def test_json_without_a_span_is_numbered_on(bridge: BridgeProcess, device: Device) -> None:
    bridge.start_connected()
    for body in (b"[{},{},{}]", b'{"a":1}', b"not json"):
        device.send("catchment/up/dev-a/telemetry", body, content_type=JSON)
    device.send("catchment/up/dev-a/other", b"[{},{}]")
    bridge.stop()
    rows = bridge.rows()
    assert [(row["stream"], row["first_seq"], row["count"]) for row in rows] == [
        ("telemetry", 0, 3),
        ("telemetry", 3, 1),
        ("telemetry", 4, 1),
        ("other", 0, 2),
    ]
    assert {row["numbered_by"] for row in rows} == {"bridge"}
    assert len({row["epoch"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("topic", "properties", "reason"),
    [
        ("catchment/up/Dev_A/telemetry", [], "device id"),
        ("catchment/up/dev-a/1st", [], "stream name"),
        ("catchment/up/dev-a/telemetry", [("epoch", "1")], "go together"),
        ("catchment/up/dev-a/telemetry", [("source", "/devices/dev-b")], "contradicts"),
        ("catchment/up/dev-a/telemetry", [("contentencoding", "zstd")], "not zstd"),
        ("catchment/parts/dev-a/../../etc", [], ""),
        ("catchment/parts/dev-a/abc", [], "digest"),
        ("catchment/parts/dev-a/" + "0" * 64, [("offset", "-1"), ("total", "9")], "offset"),
    ],
)
def test_a_bad_topic_or_head_lands_as_refused_with_the_reason(
    bridge: BridgeProcess, device: Device, topic: str, properties: list[tuple[str, str]], reason: str
) -> None:
    bridge.start_connected()
    device.send(topic, b"{}", properties)
    device.send("catchment/up/dev-a/telemetry", b"{}")
    device.wait_until(lambda: any(row["kind"] == "up" for row in bridge.rows()))
    bridge.stop()
    rows = bridge.rows()
    assert rows[-1]["kind"] == "up"
    if topic.count("/") == 3 or len(rows) == 2:
        assert rows[0]["kind"] == "refused"
        assert reason in rows[0]["refusal"]
        assert rows[0]["payload"] == b"{}"


@pytest.mark.slow
def test_nothing_the_broker_acknowledged_is_lost_when_the_bridge_is_killed_again_and_again(
    make_bridge: Callable[..., BridgeProcess], device: Device
) -> None:
    bridge = make_bridge(more="seal_ms = 50\nreceive_maximum = 200")
    bridge.start_connected()  # From here on the broker holds a session for it.
    chance = random.Random(1)
    sent = 0
    for _ in range(6):
        infos = []
        for _ in range(400):
            body = b"%d " % sent + os.urandom(chance.randrange(3000))
            infos.append(device.publish("catchment/up/dev-a/telemetry", body, span(sent, 1)))
            sent += 1
        time.sleep(chance.random() / 4)
        bridge.kill()
        bridge.start()
        for info in infos:
            info.wait_for_publish(30)
    bridge.wait_landed(device)
    bridge.stop()
    assert {row["first_seq"] for row in bridge.rows() if row["stream"] == "telemetry"} == set(range(sent))
    numbers = sorted(int(path.name[:12]) for path in bridge.landing.glob("*.arrows"))
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
def test_a_restarted_broker_gives_the_bridge_what_came_meanwhile(
    bridge: BridgeProcess, broker: RunningBroker, device: Device
) -> None:
    bridge.start_connected()
    bridge.kill()
    for number in range(50):
        device.send("catchment/up/dev-a/telemetry", b"{}", span(number, 1))
    broker.restart()
    bridge.start_connected()
    bridge.wait_landed(device)
    bridge.stop()
    assert {row["first_seq"] for row in bridge.rows() if row["stream"] == "telemetry"} == set(range(50))


def test_a_second_bridge_with_the_same_id_ends_the_first_with_a_clear_error(
    make_bridge: Callable[..., BridgeProcess], tmp_path: Path
) -> None:
    first = make_bridge()
    first.start_connected()
    second = make_bridge()
    second.folder = tmp_path / "elsewhere"
    second.folder.mkdir()
    second.start_connected()
    assert present(first.process).wait(30) == 2
    assert "took over the session" in first.log()
    assert present(second.process).poll() is None
    assert second.stop() == 0


def test_a_second_bridge_in_the_same_lake_does_not_start(make_bridge: Callable[..., BridgeProcess]) -> None:
    first, second = make_bridge(), make_bridge()
    first.start_connected()
    second.start()
    assert present(second.process).wait(30) == 2
    assert first.stop() == 0


@pytest.mark.slow
def test_stopping_acknowledges_what_is_durable_so_that_nothing_comes_twice(bridge: BridgeProcess, device: Device) -> None:
    """A disk that is too slow for a stop makes a bridge leave acknowledgements out, and it says so: then once more."""
    for epoch in range(7, 7 + STOPS):
        bridge.start_connected()
        for number in range(200):
            device.publish("catchment/up/dev-a/telemetry", b"{}", span(number, 1, epoch))
        device.send("catchment/up/dev-a/telemetry", b"{}", span(200, 1, epoch))
        before = len(bridge.log())
        bridge.stop()
        is_in_order = not any(event in bridge.log()[before:] for event in CUT_SHORT)
        bridge.start_connected()
        bridge.wait_landed(device)
        bridge.stop()
        seqs = [row["first_seq"] for row in bridge.rows() if (row["stream"], row["epoch"]) == ("telemetry", epoch)]
        assert set(seqs) == set(range(201))
        if is_in_order:
            assert sorted(seqs) == list(range(201))
            return
    pytest.fail(f"not one of {STOPS} stops was in order")


@pytest.mark.slow
def test_a_bridge_beats_with_its_counters_and_says_when_it_stopped(bridge: BridgeProcess, device: Device) -> None:
    from pipelines.heartbeat import read_heartbeats

    bridge.start_connected()
    device.send("catchment/up/dev-a/things", b"{}")
    device.wait_until(
        lambda: any(
            heartbeat.is_ready and heartbeat.counters["messages"] >= 1 for heartbeat in read_heartbeats(lake_at(bridge.lake))
        )
    )
    assert bridge.stop() == 0
    (heartbeat,) = read_heartbeats(lake_at(bridge.lake))
    assert (heartbeat.role, heartbeat.trouble) == ("bridge", "stopped in order")
