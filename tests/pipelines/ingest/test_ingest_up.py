"""The whole core as an operator runs it: real broker, real bridge, real loop, one command."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from schemas.envelope import ARROW_STREAM
from schemas.receipts import decode_receipt
from tests.plant.broker import RunningBroker
from tests.plant.core import MakeEnvelope

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 180


def properties_of(row: Any) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = ARROW_STREAM
    properties.UserProperty = list(row.properties)
    return properties


def catchment(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-W", "ignore", "-m", "pipelines", *words], env=environment, **options)


def test_a_child_with_a_wrong_configuration_waits_long_and_leaves_the_others_alone() -> None:
    from pipelines.commands.supervisor import LONGEST_PAUSE_S, Child

    falls = {}
    for name, code in (("models", 2), ("run", 1)):
        child = Child(name, [sys.executable, "-c", f"raise SystemExit({code})"])
        child.tend(100.0)
        assert child.process is not None
        child.process.wait(WAIT_S)
        assert child.tend(101.0) == code
        falls[name] = (child.is_misconfigured, child.due_s - 101.0)
    assert falls["models"] == (True, LONGEST_PAUSE_S)
    assert falls["run"][0] is False
    assert falls["run"][1] < LONGEST_PAUSE_S


def test_up_turns_published_samples_into_rows_and_receipts_and_stops_in_order(
    broker: RunningBroker, envelope: MakeEnvelope, tmp_path: Path
) -> None:
    config = tmp_path / "core.toml"
    config.write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n')
    heard: queue.Queue[bytes] = queue.Queue()
    device = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="car-1", protocol=mqtt.MQTTv5)
    device.on_message = lambda _client, _data, message: heard.put(bytes(message.payload))
    device.connect(broker.host, broker.port)
    device.subscribe("catchment/down/car-1/receipts", qos=1)
    device.loop_start()
    core = catchment("up", "-c", str(config))
    try:
        for start in range(0, 50, 10):
            row = envelope(start, 10)
            # Until the bridge has subscribed once, the broker has nobody to keep a message for: so it is sent again.
            while True:
                device.publish(row.topic, row.payload, qos=1, properties=properties_of(row))
                try:
                    receipt = decode_receipt(heard.get(timeout=3))
                except queue.Empty:
                    continue
                if receipt.settled["vehicle_telemetry"]["7"][-1][1] >= start + 10:
                    break
    finally:
        core.send_signal(signal.SIGTERM)
        assert core.wait(WAIT_S) == 0
        device.disconnect()
        device.loop_stop()
    books_process = catchment("books", "--json", "-c", str(config), stdout=subprocess.PIPE)
    books = json.loads(books_process.communicate()[0])
    assert books_process.returncode == 0
    assert books[0]["committed"] == 50
    assert books[0]["balanced"] is True


def _children(pid: int) -> set[int]:
    try:
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def _runs(pid: int) -> bool:
    """Whether it lives; one that has ended and whose parent has not looked yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def _started(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """An `up` whose bridge and run loop are at work: both have told of themselves."""
    with log.open("wb") as out:
        core = catchment("up", "-c", str(config), stdout=out, stderr=out)
    names = ("bridge", "run")
    _until(lambda: all(any((config.parent / "lake/status").glob(f"{name}-*")) for name in names), "bridge and run tell nothing")
    return core


def _ends(pids: set[int]) -> None:
    _until(lambda: not any(map(_runs, pids)), "an orphan is left")


@pytest.mark.slow
def test_no_process_of_a_killed_up_is_left_and_the_next_start_is_not_refused(broker: RunningBroker, tmp_path: Path) -> None:
    config, log = tmp_path / "core.toml", tmp_path / "up.log"
    config.write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n')
    core = _started(config, log)
    family = {*_children(core.pid), *(pid for child in _children(core.pid) for pid in _children(child))}
    core.kill()
    core.wait(WAIT_S)
    assert len(family) >= 2
    _ends(family)
    shutil.rmtree(tmp_path / "lake/status")
    core = _started(config, log)
    core.send_signal(signal.SIGTERM)
    assert core.wait(WAIT_S) == 0
    assert "fell" not in log.read_text()
