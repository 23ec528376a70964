"""Several bridges share the devices: the owner of a device lands its messages, no matter which process is stopped or killed."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from pipelines.bridge.landing_writer import Partition
from pipelines.errors import ConfigError
from tests.pipelines.bridge.conftest import BridgeProcess, Device
from tests.plant.present import present

DEVICES = [f"dev-{number}" for number in range(12)]


def test_each_device_belongs_to_exactly_one_bridge_and_the_shares_are_even() -> None:
    names = [f"car-{number}" for number in range(10_000)]
    owners = Counter(index for name in names for index in range(5) if Partition(index, 5).owns(name))
    assert sum(owners.values()) == len(names)
    assert all(1_800 < share < 2_200 for share in owners.values())


def test_the_split_is_the_same_for_ever() -> None:
    # Bridges of different versions run side by side during an update: another hash would leave devices to nobody.
    assert [device for device in DEVICES if Partition(0, 2).owns(device)] == ["dev-1", "dev-5", "dev-7", "dev-8", "dev-9"]


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (0, 0), (2, 2)])
def test_a_share_that_cannot_be_is_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigError, match="0 to partitions - 1"):
        Partition(index, count)


@pytest.mark.slow
def test_two_bridges_that_are_stopped_and_killed_land_every_message_and_each_only_its_own(
    make_bridge: Callable[..., BridgeProcess], device: Device
) -> None:
    bridges = [
        make_bridge(id=f"bridge-{index}", more=f"partition = {index}\npartitions = 2\nseal_ms = 50\nreceive_maximum = 100")
        for index in range(2)
    ]
    for one in bridges:
        one.start_connected()
    chance = random.Random(5)
    sent = 0
    for number in range(8):
        infos = []
        for _ in range(150):
            span = [("epoch", "7"), ("firstseq", str(sent)), ("samplecount", "1")]
            topic = f"catchment/up/{DEVICES[sent % len(DEVICES)]}/telemetry"
            infos.append(device.publish(topic, os.urandom(chance.randrange(2_000)), span))
            sent += 1
        time.sleep(chance.random() / 5)
        victim = bridges[number % 2]
        if number % 4 == 3:
            assert victim.stop() == 0
        else:
            victim.kill()
        victim.start_connected()
        for info in infos:
            info.wait_for_publish(30)
    seen = [seqs_of(one, index, sent) for index, one in enumerate(bridges)]
    assert seen[0] | seen[1] == set(range(sent))
    assert not seen[0] & seen[1]


def seqs_of(bridge: BridgeProcess, index: int, sent: int) -> set[int]:
    mine = {seq for seq in range(sent) if Partition(index, 2).owns(DEVICES[seq % len(DEVICES)])}
    deadline = time.monotonic() + 30
    while (seen := {row["first_seq"] for row in bridge.rows()}) != mine and time.monotonic() < deadline:
        time.sleep(0.05)
    bridge.stop()
    assert all(Partition(index, 2).owns(row["device"]) for row in bridge.rows())
    return seen


@pytest.mark.slow
def test_a_word_of_an_earlier_process_that_a_killed_broker_still_knew_does_not_end_a_bridge(
    make_bridge: Callable[..., BridgeProcess], device: Device
) -> None:
    first = make_bridge()
    first.start_connected()
    device.client.publish("catchment/bridges/bridge-0", b"0000000000001-00000000", qos=1, retain=True).wait_for_publish(30)
    device.client.publish("catchment/bridges/bridge-0", b"of an earlier version", qos=1, retain=True).wait_for_publish(30)
    device.send("catchment/up/dev-a/telemetry", b"{}")
    device.wait_until(lambda: bool(first.rows()))
    assert present(first.process).poll() is None
    device.client.publish("catchment/bridges/bridge-0", b"9999999999999-00000000", qos=1, retain=True).wait_for_publish(30)
    assert present(first.process).wait(30) == 2
    assert "took over the session" in first.log()
