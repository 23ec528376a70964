"""What a device pays to get telemetry to a broker durably: CPU, memory and bytes on the link, for the same samples.

The agent (a program prints JSON lines; captured, stored with fsync, sent as Arrow envelopes, settled by receipts), next to
what practitioners use: the same program publishes each line by paho, QoS 1, to a local mosquitto with persistence, which
bridges to the far broker. "Saved on changes" asks that mosquitto for what the agent promises: nothing lost in a power cut.

python bench/uplink_cpu.py [--rate 1000] [--seconds 20] [--smoke]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fakes.bad_link import BadLink  # noqa: E402 # what the tests break links with, here only to count
from tests.fakes.fake_core import FakeCore  # noqa: E402
from tests.plant.broker import Broker, free_port  # noqa: E402

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LIMIT_S = 120.0


@dataclass(frozen=True)
class Cost:
    """What one way cost."""

    name: str
    samples: int
    cpu_s: dict[str, float]
    rss_mb: dict[str, float]
    link_bytes: int

    def show(self) -> None:
        parts = ", ".join(f"{name} {1e6 * used / self.samples:.0f}" for name, used in self.cpu_s.items())
        memory = ", ".join(f"{name} {size:.0f}" for name, size in self.rss_mb.items())
        total = 1e6 * sum(self.cpu_s.values()) / self.samples
        print(f"{self.name:<34}{total:>9.0f} ms{self.link_bytes / self.samples:>9.0f} B   ({parts} ms; RSS {memory} MB)")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def line_of(number: int) -> str:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    values = {"event_time": stamp, "frame": number, "speed_mps": 20 + number % 100 / 10, "steering_deg": number % 360 / 7}
    values |= {"t_s": number / 1000, "qw": 0.5, "qx": 0.25 + number % 10 / 100, "qy": 0.125, "qz": 0.0625}
    return json.dumps(values)


def generate(rate: float, seconds: float, give: Callable[[str], None]) -> None:
    """The device's program: lines at an even rate."""
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        ahead_s = number / rate - (time.monotonic() - began)
        if ahead_s > 0:
            time.sleep(ahead_s)
        give(line_of(number))


def publish(port: int, rate: float, seconds: float) -> None:
    """The device's program, as it is written without an agent."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="program", protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(1_000)
    client.connect("127.0.0.1", port)
    client.loop_start()

    def send(line: str) -> None:
        client.publish("catchment/up/dev-a/vehicle_telemetry", line, qos=1)

    generate(rate, seconds, send)
    time.sleep(LIMIT_S)


def broker(folder: Path, port: int, extra: str = "") -> Broker:
    return Broker(folder, config=f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n{extra}", port=port)


def until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > LIMIT_S:
            raise SystemExit("it did not arrive")
        time.sleep(0.02)


def me(*arguments: object) -> list[str]:
    return [sys.executable, __file__, *(str(argument) for argument in arguments)]


def measure_agent(folder: Path, far_port: int, given: argparse.Namespace, *, compress: bool) -> Cost:
    count = int(given.rate * given.seconds)
    command = json.dumps(me("--role", "generate", "--rate", given.rate, "--seconds", given.seconds))
    with FakeCore("127.0.0.1", far_port) as core, BadLink(far_port) as link:
        (folder / "agent.toml").write_text(
            f'device = "dev-a"\nstate_dir = "state"\n[broker]\nport = {link.port}\n[[source]]\nkind = "exec"\n'
            f'stream = "vehicle_telemetry"\ncompress = {str(compress).lower()}\n'
            f'options = {{ command = {command}, rename = {{ time = "event_time" }} }}\n'
        )
        with (folder / "agent.log").open("wb") as log:
            agent = subprocess.Popen([sys.executable, "-m", "edge_agent", "-c", str(folder / "agent.toml")], stderr=log)
        try:
            until(lambda: bool(core.landed))
            before_cpu_s, before_bytes = cpu_s(agent.pid), link.bytes_up
            first = sum(head.span.count for head, _ in core.landed if head.span)
            until(lambda: sum(head.span.count for head, _ in list(core.landed) if head.span) >= count)
            used_s, size_mb, carried = cpu_s(agent.pid) - before_cpu_s, rss_mb(agent.pid), link.bytes_up - before_bytes
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(30)
    name = "the agent, zstd" if compress else "the agent"
    return Cost(name, count - first, {"agent": used_s}, {"agent": size_mb}, carried)


def measure_bridge(folder: Path, far_port: int, given: argparse.Namespace, name: str, saving: str) -> Cost:
    count = int(given.rate * given.seconds)
    landed = 0
    is_subscribed = threading.Event()

    def on_message(_client: mqtt.Client, _data: object, _message: mqtt.MQTTMessage) -> None:
        nonlocal landed
        landed += 1

    counting = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="counting", protocol=mqtt.MQTTv5)
    counting.on_message, counting.on_subscribe = on_message, lambda *_: is_subscribed.set()
    counting.connect("127.0.0.1", far_port)
    counting.subscribe("catchment/up/#", qos=1)
    counting.loop_start()
    is_subscribed.wait(10)
    near_port = free_port()
    data = folder / "near" / "data"
    with BadLink(far_port) as link:
        local = broker(
            folder / "near",
            near_port,
            f"persistence true\npersistence_location {data}/\n{saving}connection up\naddress 127.0.0.1:{link.port}\n"
            "topic catchment/up/# out 1\nbridge_protocol_version mqttv50\ncleansession false\n",
        )
        local.start()
        program = subprocess.Popen(me("--role", "publish", "--port", near_port, "--rate", given.rate, "--seconds", given.seconds))
        watched = {"mosquitto": local.pid, "program": program.pid}
        try:
            until(lambda: landed > 0)
            before, before_bytes, first = {what: cpu_s(pid) for what, pid in watched.items()}, link.bytes_up, landed
            until(lambda: landed >= count)
            used = {what: cpu_s(pid) - before[what] for what, pid in watched.items()}
            sizes, carried = {what: rss_mb(pid) for what, pid in watched.items()}, link.bytes_up - before_bytes
        finally:
            local.kill()
            program.kill()
            program.wait()
            counting.disconnect()
            counting.loop_stop()
    return Cost(name, count - first, used, sizes, carried)


def measure_program(given: argparse.Namespace) -> float:
    """The same program printing its lines: what of the agent's side is the program's, and of the peer's is not paho's."""
    program = subprocess.Popen(
        me("--role", "generate", "--rate", given.rate, "--seconds", given.seconds), stdout=subprocess.DEVNULL
    )
    time.sleep(given.seconds / 3)
    before_s = cpu_s(program.pid)
    time.sleep(given.seconds / 3)
    used_s = cpu_s(program.pid) - before_s
    program.kill()
    program.wait()
    return float(1e6 * used_s / (given.rate * given.seconds / 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--role", choices=["generate", "publish"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role == "generate":
        generate(given.rate, given.seconds, lambda line: print(line, flush=True))
        time.sleep(LIMIT_S)
        return
    if given.role == "publish":
        publish(given.port, given.rate, given.seconds)
        return
    if given.smoke:
        given.seconds = 3.0
    print(f"{given.rate:,.0f} samples/s for {given.seconds:.0f} s, a JSON line of {len(line_of(1_000))} B each")
    print(f"{'':<34}{'CPU per 1,000':>12}{'link each':>11}")
    ways: list[Callable[[Path, int], Cost]] = [
        lambda folder, port: measure_agent(folder, port, given, compress=False),
        lambda folder, port: measure_agent(folder, port, given, compress=True),
        lambda folder, port: measure_bridge(
            folder, port, given, "local mosquitto, saved half-hourly", "autosave_interval 1800\n"
        ),
        lambda folder, port: measure_bridge(
            folder, port, given, "local mosquitto, saved on changes", "autosave_interval 1\nautosave_on_changes true\n"
        ),
    ]
    for way in ways:
        with tempfile.TemporaryDirectory(prefix="uplink-cpu-", dir=os.environ.get("CATCHMENT_BENCH_DIR")) as name:
            folder, far_port = Path(name), free_port()
            with broker(folder / "far", far_port):
                way(folder, far_port).show()
    print(
        f"{'the program alone, printing':<34}{measure_program(given):>9.0f} ms   (not in the agent's figure; the peer's holds it)"
    )


if __name__ == "__main__":
    main()
