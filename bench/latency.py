"""From publish to receipt (so a little more than to the commit): Mosquitto, a bridge and a run loop as processes of their own.

Run: python bench/latency.py [--smoke] [--rate 20] [--seconds 30]
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pyarrow as pa
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from schemas.envelope import ARROW_STREAM, EnvelopeHead, Span
from schemas.ids import DeviceId, StreamName
from schemas.receipts import decode_receipt
from tests.plant.broker import loopback_broker

DEVICE, STREAM, EPOCH = DeviceId("car-1"), StreamName("vehicle_telemetry"), 7
SAMPLES = 100
START_US = 1_790_000_000_000_000
WARM = 5
DEADLINE_S = 60.0


def body(first: int) -> bytes:
    times = pa.array(START_US + np.arange(first, first + SAMPLES) * 1_000).cast(pa.timestamp("us", "UTC"))
    batch = pa.record_batch({"event_time": times, "speed_mps": pa.array(np.arange(SAMPLES) % 40, pa.float64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


@contextmanager
def core(folder: Path) -> Iterator[int]:
    """Start all three; the broker's port."""
    broker = loopback_broker(folder / "broker")
    (folder / "core.toml").write_text(
        f'lake = "lake"\n[broker]\nport = {broker.port}\n[bridge]\nseal_ms = 50\nlinger_ms = 5\n[run]\ninterval_ms = 20\n'
    )
    role = [sys.executable, "-m", "pipelines"]
    config = ["-c", str(folder / "core.toml")]
    processes: list[subprocess.Popen[bytes]] = []
    with broker, (folder / "log").open("wb") as log:
        try:
            processes += [subprocess.Popen([*role, name, *config], stdout=log, stderr=log) for name in ("bridge", "run")]
            yield broker.port
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def measure(port: int, rate_hz: float, count: int) -> list[float]:
    """Milliseconds from each publish to the receipt that covers it."""
    sent_s: dict[int, float] = {}
    heard_s: dict[int, float] = {}

    def hear(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        now_s = time.perf_counter()
        settled = decode_receipt(bytes(message.payload)).ranges(STREAM, EPOCH)
        for number in [one for one in sent_s if one not in heard_s]:
            if settled.covers(number * SAMPLES, (number + 1) * SAMPLES):
                heard_s[number] = now_s

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=DEVICE, protocol=mqtt.MQTTv5)
    client.on_message = hear
    client.connect("127.0.0.1", port)
    client.subscribe(f"catchment/down/{DEVICE}/receipts", qos=1)
    client.loop_start()
    number = 0
    while number < WARM + count:
        head = EnvelopeHead(DEVICE, STREAM, ARROW_STREAM, Span(EPOCH, number * SAMPLES, SAMPLES))
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = list(head.to_properties())
        properties.ContentType = ARROW_STREAM
        sent_s[number] = time.perf_counter()
        client.publish(f"catchment/up/{DEVICE}/{STREAM}", body(number * SAMPLES), qos=1, properties=properties)
        number += 1
        until = time.monotonic() + DEADLINE_S
        while len(heard_s) < min(number, WARM):  # the first ones wait for the processes to be there
            if time.monotonic() > until:
                sys.exit("no receipt came")
            if time.perf_counter() - sent_s[number - 1] > 2:
                client.publish(f"catchment/up/{DEVICE}/{STREAM}", body((number - 1) * SAMPLES), qos=1, properties=properties)
                time.sleep(1)
            time.sleep(0.01)
        time.sleep(1 / rate_hz)
    until = time.monotonic() + DEADLINE_S
    while len(heard_s) < len(sent_s) and time.monotonic() < until:
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()
    assert len(heard_s) == len(sent_s), f"{len(sent_s) - len(heard_s)} without a receipt"
    return [(heard_s[one] - sent_s[one]) * 1_000 for one in sorted(sent_s)[WARM:]]


def main() -> None:
    """Print the percentiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, only to see that it runs")
    parser.add_argument("--rate", type=float, default=20.0, help="envelopes a second, 100 samples each")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="latency-"))
    try:
        with core(folder) as port:
            took_ms = measure(port, options.rate, 10 if options.smoke else int(options.rate * options.seconds))
    finally:
        shutil.rmtree(folder)
    cuts = statistics.quantiles(took_ms, n=100, method="inclusive")
    print(f"publish -> receipt, {len(took_ms)} envelopes at {options.rate:g}/s: "
          f"p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, p99 {cuts[98]:.0f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
