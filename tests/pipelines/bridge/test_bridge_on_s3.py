"""A bridge whose lake root is S3-compatible storage: what it acknowledges lies there, whatever becomes of its own disk."""

import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.bridge.segment import walk
from pipelines.lake.remote import Remote
from tests.fakes.s3_faults import FaultyProxy
from tests.fakes.s3_server import S3, served
from tests.pipelines.bridge.conftest import BridgeProcess, Device


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    folder = tmp_path / "s3"
    folder.mkdir()
    with served(folder) as server:
        yield server


def section(s3: S3, port: int | None = None) -> str:
    config = s3.config("bridge", port)
    return f'[remote]\nurl = "{config.url}"\nendpoint = "{config.endpoint}"\ntimeout_s = 1\nretries = 1\nretry_s = 3\n'


def landed(s3: S3) -> list[dict[str, Any]]:
    remote, rows, number = Remote(s3.config("bridge")), [], 1
    while (found := remote.get(f"landing/bridge-0/{number:012d}.arrows")) is not None:
        rows += [row for _, batch in walk(pa.py_buffer(found[0])) for row in batch.to_pylist()]
        number += 1
    return rows


@pytest.mark.slow
def test_what_is_acknowledged_is_in_the_bucket_and_nothing_is_left_on_the_disk(
    make_bridge: Callable[..., BridgeProcess], device: Device, s3: S3
) -> None:
    bridge = make_bridge(more=section(s3))
    bridge.start_connected()
    content = os.urandom(100_000)
    for number in range(20):
        device.send("catchment/up/dev-a/telemetry", b"{}", [("epoch", "7"), ("firstseq", str(number)), ("samplecount", "1")])
    device.part(content, 0, 60_000)
    device.part(content, 60_000, 40_000)
    device.wait_for_state(lambda state: state.get("settled", False))
    assert bridge.stop() == 0
    assert {row["first_seq"] for row in landed(s3)} == set(range(20))
    assert not list(bridge.landing.glob("*.arrows"))
    stored = Remote(s3.config("bridge")).get(f"objects/{hashlib.sha256(content).hexdigest()}")
    assert stored is not None
    assert stored[0] == content
    bridge.start_connected()
    device.heard.clear()
    device.part(content, 0, 60_000)
    device.wait_for_state(lambda state: state.get("settled", False))


@pytest.mark.slow
def test_a_bridge_that_is_killed_and_loses_its_disk_loses_nothing_it_acknowledged(
    make_bridge: Callable[..., BridgeProcess], device: Device, s3: S3
) -> None:
    proxy = FaultyProxy(s3.port, 3, 0.1, hang_s=1.2)
    bridge = make_bridge(more=f"receive_maximum = 100\n{section(s3, proxy.port)}")
    bridge.start_connected()
    chance = random.Random(2)
    sent = 0
    for number in range(6):
        infos = []
        for _ in range(100):
            span = [("epoch", "7"), ("firstseq", str(sent)), ("samplecount", "1")]
            infos.append(device.publish("catchment/up/dev-a/telemetry", os.urandom(chance.randrange(1_000)), span))
            sent += 1
        time.sleep(chance.random())
        bridge.kill()
        if number % 2:
            shutil.rmtree(bridge.lake)
        bridge.start_connected()
        for info in infos:
            info.wait_for_publish(30)
    device.wait_until(lambda: {row["first_seq"] for row in landed(s3)} == set(range(sent)))
    bridge.stop()
    proxy.close()
    assert sum(proxy.done.values()) > proxy.done[""] > 10
