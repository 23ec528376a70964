"""The whole core as an operator runs it: real broker, real bridge, real loop, one command."""

import json
import os
import queue
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from schemas.envelope import ARROW_STREAM
from schemas.receipts import decode_receipt

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 60


def properties_of(row: Any) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = ARROW_STREAM
    properties.UserProperty = list(row.properties)
    return properties


def catchment(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-W", "ignore", "-m", "pipelines", *words], env=environment, **options)


def test_a_child_with_a_wrong_configuration_waits_long_and_leaves_the_others_alone() -> None:
    from pipelines.up import LONGEST_PAUSE_S, Child

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


def test_up_turns_published_samples_into_rows_and_receipts_and_stops_in_order(broker: Any, envelope: Any, tmp_path: Path) -> None:
    config = tmp_path / "core.toml"
    config.write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n')
    heard: queue.Queue[bytes] = queue.Queue()
    device = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="car-1", protocol=mqtt.MQTTv5)
    device.on_message = lambda _client, _data, message: heard.put(message.payload)
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
                    said = decode_receipt(heard.get(timeout=3))
                except queue.Empty:
                    continue
                if said.settled["vehicle_telemetry"]["7"][-1][1] >= start + 10:
                    break
    finally:
        core.send_signal(signal.SIGTERM)
        assert core.wait(WAIT_S) == 0
        device.disconnect()
        device.loop_stop()
    told = catchment("books", "--json", "-c", str(config), stdout=subprocess.PIPE)
    books = json.loads(told.communicate()[0])
    assert told.returncode == 0
    assert books[0]["committed"] == 50
    assert books[0]["balanced"] is True
