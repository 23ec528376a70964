"""One device floods a real bridge on a real broker; the others keep their whole service, and it is told what to do."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from pipelines.config import AlarmConfig
from pipelines.heartbeat import read_heartbeats
from pipelines.lake.lake import lake_at
from pipelines.status.health import AlarmKind, assess
from pipelines.status.server import exposition
from pipelines.status.survey import survey
from tests.pipelines.bridge.conftest import BridgeProcess, Device, wait_until
from tests.plant.broker import RunningBroker
from tests.plant.present import present

SHARES = "[shares]\nbytes_per_s = 200000\nburst_bytes = 500000\n"


@pytest.fixture
def flooder(broker: RunningBroker) -> Iterator[Device]:
    one = Device(broker.host, broker.port, "flood")
    yield one
    one.close()


def span(first: int) -> list[tuple[str, str]]:
    return [("epoch", "7"), ("firstseq", str(first)), ("samplecount", "1")]


def notices(device: Device) -> list[dict[str, Any]]:
    return [json.loads(body) for topic, body in device.heard if topic.endswith("/share")]


@pytest.mark.slow
def test_a_flood_waits_on_its_device_and_every_message_of_another_is_landed(
    make_bridge: Callable[..., BridgeProcess], device: Device, flooder: Device
) -> None:
    bridge = make_bridge(more=f"seal_ms = 50\nreceive_maximum = 20\n{SHARES}")
    bridge.start_connected()
    flood = [flooder.publish("catchment/up/flood/telemetry", os.urandom(20_000), span(number)) for number in range(400)]
    calm = [device.publish("catchment/up/dev-a/telemetry", b"%d" % number, span(number)) for number in range(200)]
    for info in (*calm, *flood):
        info.wait_for_publish(30)  # nobody's acknowledgement is withheld
    bridge.wait_landed(device)
    rows = bridge.rows()
    landed = [row for row in rows if row["device"] == "flood"]
    assert {row["first_seq"] for row in rows if row["device"] == "dev-a" and row["stream"] == "telemetry"} == set(range(200))
    assert 25 <= len(landed) < 400
    wait_until(lambda: bool(notices(flooder)))
    notice = notices(flooder)[0]
    assert (notice["limit"], notice["bytes_per_s"]) == ("bytes", 200_000)
    assert 0 < notice["wait_ms"] <= 5_000
    assert notices(device) == []

    # What was not landed is sent again, once it may be.
    missing = sorted(set(range(400)) - {row["first_seq"] for row in landed})
    resends = 0

    def is_landed_after_another_send() -> bool:
        nonlocal resends
        resends += 1
        flooder.send("catchment/up/flood/telemetry", b"again", span(missing[0]))
        return again(bridge, missing[0])

    wait_until(is_landed_after_another_send)
    wait_until(lambda: any("flood" in heartbeat.over_share for heartbeat in read_heartbeats(lake_at(bridge.lake))))
    found = survey(lake_at(bridge.lake), time.time_ns() // 1_000)
    alarms = [alarm for alarm in assess(found, AlarmConfig()).found if alarm.kind is AlarmKind.SHARE]
    assert "device flood is over its share: bytes for" in alarms[0].text
    page = exposition(found)
    assert any(line.startswith("catchment_bridge_deferred_messages{") for line in page.splitlines())
    assert 'catchment_device_over_share{device="flood"} 1' in page
    # Each message that was sent is landed or deferred, and counted once.
    bridge.wait_landed(device)
    assert bridge.stop() == 0
    of_flood = sum(row["device"] == "flood" for row in bridge.rows())
    assert last_count(bridge, "deferred_messages") == 400 + resends - of_flood
    assert last_count(bridge, "refused") == last_count(bridge, "elsewhere") == last_count(bridge, "litter") == 0


def last_count(bridge: BridgeProcess, name: str) -> int:
    """A counter of the bridge as it ended."""
    line = [line for line in bridge.log().splitlines() if "bridge_counters" in line][-1]
    return int(present(re.search(rf"\b{name}=(\d+)", line))[1])


def again(bridge: BridgeProcess, seq: int) -> bool:
    return any(row["device"] == "flood" and row["first_seq"] == seq for row in bridge.rows())


def test_a_flood_of_parts_and_queries_delays_no_other_object(
    make_bridge: Callable[..., BridgeProcess], device: Device, flooder: Device
) -> None:
    bridge = make_bridge(more=f"seal_ms = 50\n{SHARES}")
    bridge.start_connected()
    total_bytes = min(64 * 1024**3, shutil.disk_usage(bridge.lake).free // 2)  # what no disk has room for is refused at once
    for number in range(1_000):
        flooder.publish(f"catchment/parts/flood/{number:064x}", b"x", [("offset", "0"), ("total", str(total_bytes))])
    content = os.urandom(300_000)
    for low in range(0, 300_000, 100_000):
        device.part(content, low, 100_000)
    device.wait_for_state(lambda state: state["settled"])
    assert bridge.stop() == 0
    unfinished = bridge.lake / "objects/.parts/flood"
    assert len(list(unfinished.iterdir())) <= 2 * 256


@pytest.mark.slow
def test_messages_with_large_properties_and_tiny_bodies_count_by_their_whole_size(
    make_bridge: Callable[..., BridgeProcess], device: Device, flooder: Device
) -> None:
    bridge = make_bridge(more=f"seal_ms = 50\n{SHARES}")
    bridge.start_connected()
    words = [("x" * 60_000, "y" * 60_000)]
    for info in [flooder.publish("catchment/up/flood/telemetry", b"{}", [*span(n), *words]) for n in range(60)]:
        info.wait_for_publish(30)
    bridge.wait_landed(device)
    assert 4 <= sum(row["device"] == "flood" for row in bridge.rows()) < 20
    assert bridge.stop() == 0


def retained(broker: RunningBroker, topic_filter: str) -> list[str]:
    found: list[str] = []
    with_flag = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="", protocol=mqtt.MQTTv5)
    with_flag.on_message = lambda _c, _d, message: found.append(message.topic) if message.retain else None
    with_flag.connect(broker.host, broker.port)
    with_flag.loop_start()
    wait_until(with_flag.is_connected)
    with_flag.subscribe(topic_filter, qos=1)
    time.sleep(0.5)
    with_flag.disconnect()
    with_flag.loop_stop()
    with_flag.reinitialise()
    return found


@pytest.mark.slow
def test_what_a_device_has_the_broker_keep_is_taken_back_but_for_its_report(
    broker: RunningBroker, make_bridge: Callable[..., BridgeProcess], device: Device, flooder: Device
) -> None:
    bridge = make_bridge(more=f"seal_ms = 50\n{SHARES}")
    bridge.start_connected()
    client = flooder.client
    for number in range(300):  # most of it over the share: that is taken back as well
        client.publish(f"catchment/up/flood/s{number}", os.urandom(20_000), qos=1, retain=True)
        client.publish(f"catchment/parts/flood/{number:064x}", os.urandom(1_000), qos=1, retain=True)
        client.publish(f"catchment/up/flood/No Stream {number}", b"x", qos=number % 2, retain=True)
    client.publish("catchment/reported/flood", b"x" * 5_000_000, qos=1, retain=True)
    client.publish("catchment/reported/dev-a", b"{}", qos=1, retain=True).wait_for_publish(30)
    bridge.wait_landed(device)
    wait_until(lambda: retained(broker, "catchment/#") == ["catchment/bridges/bridge-0", "catchment/reported/dev-a"])
    wait_until(lambda: any(notice["limit"] == "retained" for notice in notices(flooder)))
    wait_until(
        lambda: any(
            "taken back at the broker" in heartbeat.over_share.get("flood", "")
            for heartbeat in read_heartbeats(lake_at(bridge.lake))
        )
    )
    before = len(bridge.rows())
    bridge.wait_landed(device)
    assert len(bridge.rows()) == before + 1  # taking back is no message
    assert bridge.stop() == 0


@pytest.mark.slow
def test_two_bridges_that_both_own_a_device_do_not_take_back_from_each_other_for_ever(
    broker: RunningBroker, make_bridge: Callable[..., BridgeProcess], device: Device
) -> None:
    first, second = make_bridge(id="bridge-0"), make_bridge(id="bridge-1")
    first.start_connected()
    second.start_connected()
    packed = Properties(PacketTypes.PUBLISH)
    device.client.publish("catchment/up/dev-a/kept", b"{}", qos=1, retain=True, properties=packed).wait_for_publish(30)
    first.wait_landed(device)
    second.wait_landed(device)
    assert retained(broker, "catchment/up/#") == []
    assert first.stop() == second.stop() == 0
    for one in (first, second):
        assert "litter=1 " in one.log().splitlines()[-1] or "litter=1" in one.log()
        assert [row["stream"] for row in one.rows()].count("kept") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MiB in memory."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_small_disk_is_never_filled_and_the_others_go_on_beside_a_flood(
    broker: RunningBroker, small_disk: Path, device: Device, flooder: Device
) -> None:
    bridge = BridgeProcess(small_disk, broker.host, broker.port, more="seal_ms = 50")
    bridge.start_connected()
    try:
        contents = [os.urandom(30 * 1024 * 1024) for _ in range(6)]
        for low in range(0, len(contents[0]), 2 * 1024 * 1024):
            for content in contents:
                flooder.part(content, low, 2 * 1024 * 1024)
        flooder.wait_for_state(lambda state: state["settled"])
        for number in range(150):
            flooder.publish("catchment/up/flood/telemetry", os.urandom(200_000), span(number))
        for number in range(50):
            device.send("catchment/up/dev-a/telemetry", b"%d" % number, span(number))
        content = os.urandom(200_000)
        device.part(content, 0, 200_000)
        device.wait_for_state(lambda state: state["settled"])
        bridge.wait_landed(device)
        rows = bridge.rows()
        assert sum(row["device"] == "dev-a" for row in rows) == 51
        assert sum(row["device"] == "flood" for row in rows) < 100
        found = os.statvfs(small_disk)
        assert found.f_bavail > found.f_blocks // 20
        assert "disk_refused" not in bridge.log()
        assert "no room" in {state.get("reason", "").partition(":")[0] for state in flooder.states()}
        assert {notice["limit"] for notice in notices(flooder)} == {"disk"}
    finally:
        bridge.stop()
