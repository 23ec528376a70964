"""Publisher -> mosquitto -> bridge -> fsynced landing, next to a bare paho publisher and subscriber on the same broker.

Run: python bench/uplink_to_landing.py [--smoke] [--repeat 3]
Each run starts its own mosquitto on a loopback port; publisher and receiver are processes of their own.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
import pyarrow as pa
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from schemas.envelope import ARROW_STREAM, EnvelopeHead, Span
from schemas.ids import DeviceId, StreamName
from tests.plant.broker import loopback_broker

BROKER_CONF = Path(__file__).resolve().parent.parent / "deploy" / "broker" / "loopback.conf"
DEADLINE_S = 300.0


@dataclass(frozen=True)
class Load:
    name: str
    messages: int
    samples_per_message: int

    def body(self) -> bytes:
        if self.samples_per_message == 1:
            return os.urandom(200_000)
        count = self.samples_per_message
        batch = pa.record_batch(
            {
                "event_time": pa.array(range(count), pa.timestamp("us", "UTC")),
                "speed": pa.array([number * 0.1 for number in range(count)], pa.float64()),
                "state": pa.array(["ok"] * count),
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return bytes(sink.getvalue().to_pybytes())


def loads(*, is_smoke: bool) -> list[Load]:
    frames, envelopes = (40, 100) if is_smoke else (3_000, 10_000)
    return [Load("200 kB frames", frames, 1), Load("1,000-sample telemetry", envelopes, 1_000)]


def client(name: str) -> mqtt.Client:
    return mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)


def publish(port: int, load: Load) -> None:
    """Publish with a window of 100, as agents do; the broker paces."""
    body = load.body()
    one = client("bench-publisher")
    one.max_inflight_messages_set(100)
    one.connect("127.0.0.1", port)
    one.loop_start()
    waiting = []
    for number in range(load.messages):
        packed = Properties(PacketTypes.PUBLISH)
        packed.ContentType = ARROW_STREAM
        span = Span(1, number * load.samples_per_message, load.samples_per_message)
        packed.UserProperty = EnvelopeHead(DeviceId("bench"), StreamName("s"), ARROW_STREAM, span).to_properties()
        waiting.append(one.publish("catchment/up/bench/s", body, qos=1, properties=packed))
        if len(waiting) > 200:
            waiting.pop(0).wait_for_publish(DEADLINE_S)
    for info in waiting:
        info.wait_for_publish(DEADLINE_S)
    one.disconnect()
    one.loop_stop()


def subscribe_bare(port: int, load: Load) -> None:
    """The peer: paho's own loop, its own acks, and nothing done with the message."""
    one = client("bench-bare")
    seen = 0

    def on_message(_client: mqtt.Client, _data: object, _message: mqtt.MQTTMessage) -> None:
        nonlocal seen
        seen += 1
        if seen == load.messages:
            one.disconnect()

    properties = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = 1_000
    one.on_message = on_message

    def on_connect(*_: object) -> None:
        one.subscribe("catchment/up/+/+", options=SubscribeOptions(qos=1))

    one.on_connect = on_connect
    one.on_subscribe = lambda *_: print("ready", flush=True)
    one.connect("127.0.0.1", port, properties=properties)
    one.loop_forever()


def me(*arguments: object) -> list[str]:
    return [sys.executable, __file__, *(str(argument) for argument in arguments)]


def measure_bare(port: int, load: Load, index: int) -> float:
    subscriber = subprocess.Popen(
        me("--role", "bare", "--port", port, "--load", index, "--count", load.messages), stdout=subprocess.PIPE
    )
    assert subscriber.stdout is not None
    assert subscriber.stdout.readline()
    publisher = subprocess.Popen(me("--role", "publish", "--port", port, "--load", index, "--count", load.messages))
    began = first_cpu(publisher)
    subscriber.wait(DEADLINE_S)
    took = time.perf_counter() - began
    publisher.wait(DEADLINE_S)
    return took


def first_cpu(_publisher: subprocess.Popen[bytes]) -> float:
    """Both sides start a publisher process the same way, so its start-up weighs the same on both."""
    return time.perf_counter()


def measure_bridge(port: int, load: Load, index: int, folder: Path) -> float:
    config = folder / "core.toml"
    config.write_text(f'lake = "lake"\n[broker]\nport = {port}\n')
    log = (folder / "bridge.log").open("ab")
    bridge = subprocess.Popen([sys.executable, "-m", "pipelines", "bridge", "-c", str(config)], stdout=log, stderr=log)
    landing = folder / "lake" / "landing" / "bridge-0"
    while b"connected " not in (folder / "bridge.log").read_bytes():
        time.sleep(0.02)
    time.sleep(0.2)
    needed = len(load.body()) * load.messages
    publisher = subprocess.Popen(me("--role", "publish", "--port", port, "--load", index, "--count", load.messages))
    began = time.perf_counter()
    while sum(path.stat().st_size for path in landing.glob("*.arrows*")) < needed:
        time.sleep(0.005)
        if time.perf_counter() - began > DEADLINE_S:
            raise SystemExit("the bridge did not land everything")
    os.sync()  # What was counted is in the file; that it is on the disk must be in the time as well.
    took = time.perf_counter() - began
    publisher.wait(DEADLINE_S)
    bridge.send_signal(signal.SIGTERM)
    bridge.wait(DEADLINE_S)
    shutil.rmtree(folder / "lake")
    return took


def run_pair(load: Load, index: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("CATCHMENT_BENCH_DIR")) as name:
        folder = Path(name)
        with loopback_broker(folder / "broker") as broker:
            return measure_bare(broker.port, load, index), measure_bridge(broker.port, load, index, folder)


def report(repeat: int, *, is_smoke: bool) -> None:
    print(f"{'load':<24}{'bare MB/s':>11}{'bridge MB/s':>13}{'ratio':>8}{'bridge msg/s':>14}{'samples/s':>13}")
    for index, load in enumerate(loads(is_smoke=is_smoke)):
        pairs = [run_pair(load, index) for _ in range(repeat)]
        megabytes = len(load.body()) * load.messages / 1e6
        bare, bridge = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        rate = load.messages / bridge
        print(
            f"{load.name:<24}{megabytes / bare:>11.1f}{megabytes / bridge:>13.1f}{ratio:>8.2f}"
            f"{rate:>14,.0f}{rate * load.samples_per_message:>13,.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few messages, once: does it run?")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--role", choices=["publish", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role is None:
        report(1 if arguments.smoke else arguments.repeat, is_smoke=arguments.smoke)
        return
    known = loads(is_smoke=False)[arguments.load]
    load = Load(known.name, arguments.count, known.samples_per_message)
    (publish if arguments.role == "publish" else subscribe_bare)(arguments.port, load)


if __name__ == "__main__":
    main()
