"""Many agents on one broker: how long until all are back after a restart, what they carry, and what that costs.

Each simulated agent is a real spool and a real uplink with a connection of its own; 50 of them share a process. Broker
(with deploy/broker/loopback.conf) and bridge are the real ones. CPU is measured per process, over the sustained part.

python bench/uplink_agents.py [--agents 1000] [--seconds 20] [--down 5] [--every 10] [--samples 1000] [--smoke]
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
from functools import partial
from pathlib import Path

import pyarrow as pa
import structlog

from catchment.runtime.clock import SystemClock
from edge_agent.config import BrokerConfig, UplinkConfig
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from edge_agent.uplink.forwarder import Forwarder, Reporter
from edge_agent.uplink.session import PahoSession
from schemas.ids import DeviceId, StreamName
from schemas.topics import Topics
from tests.plant.broker import loopback_broker

ROOT = Path(__file__).resolve().parent.parent
PER_PROCESS = 50
CORE_LIMIT_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def body_of(samples: int) -> bytes:
    batch = pa.record_batch(
        {
            "event_time": pa.array(range(samples), pa.timestamp("us", "UTC")),
            "speed_mps": pa.array([number * 0.1 for number in range(samples)], pa.float64()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def simulate(folder: Path, port: int, first: int, count: int, every_s: float, samples: int) -> None:
    """The role of a worker: its agents. It tells how many are connected; samples flow while the file `go` is there."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    threading.stack_size(512 * 1024)
    # 150 threads that wait for the interpreter would wake up 200 times a second each, only to wait on.
    sys.setswitchinterval(0.2)
    clock, stop, stream = SystemClock(), threading.Event(), StreamName("vehicle_telemetry")
    config = UplinkConfig(resend_after_s=3_600.0, report_interval_s=60.0)
    agents = []
    for number in range(first, first + count):
        device = DeviceId(f"sim-{number}")
        spool = Spool(folder / device, max_bytes=64 << 20, linger_ms=20, clock=clock)
        reporter = Reporter(spool, device, "0", lambda: (), config.report_interval_s, clock)
        connect = partial(PahoSession, BrokerConfig(port=port), str(device))
        forwarder = Forwarder(spool, connect, config, Topics(), device, reporter, None, clock)
        threading.Thread(target=forwarder.run, args=(stop,), daemon=True).start()
        agents.append((spool, forwarder))
    body, due_s = body_of(samples), [clock.monotonic_s() + every_s * index / count for index in range(count)]
    reported_s = 0.0
    while os.getppid() != 1 and not (folder / "end").exists():
        now_s = clock.monotonic_s()
        if (folder / "go").exists():
            for index, (spool, _) in enumerate(agents):
                if now_s >= due_s[index]:
                    due_s[index] = max(due_s[index] + every_s, now_s - every_s)
                    spool.append(Append(stream, (NewEnvelope(samples, body, "1.0.0"),)))
        if now_s - reported_s >= 0.5:
            reported_s = now_s
            connected = sum(forwarder.progress.is_connected for _, forwarder in agents)
            sent = sum(forwarder.progress.sent_count for _, forwarder in agents)
            print(json.dumps({"connected": connected, "sent": sent}), flush=True)
        time.sleep(0.05)
    os._exit(0)


class Workers:
    """The processes that simulate, and what they last said."""

    def __init__(self, folder: Path, port: int, given: argparse.Namespace) -> None:
        self.folder = folder
        self.reports: dict[int, dict[str, int]] = {}
        self.processes = []
        for first in range(0, given.agents, PER_PROCESS):
            count = min(PER_PROCESS, given.agents - first)
            command = [sys.executable, __file__, "--role", "simulate", "--folder", str(folder), "--port", str(port)]
            command += [
                "--first",
                str(first),
                "--agents",
                str(count),
                "--every",
                str(given.every),
                "--samples",
                str(given.samples),
            ]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
            self.processes.append(process)
            threading.Thread(target=self._listen, args=(first, process), daemon=True).start()

    def _listen(self, first: int, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.reports[first] = json.loads(line)

    def total(self, what: str) -> int:
        return sum(one[what] for one in list(self.reports.values()))

    def wait_connected(self, count: int, limit_s: float) -> float:
        began = time.monotonic()
        while self.total("connected") != count:
            if time.monotonic() - began > limit_s:
                raise SystemExit(f"only {self.total('connected')} of {count} are connected after {limit_s:.0f} s")
            time.sleep(0.05)
        return time.monotonic() - began

    def cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self.processes)

    def end(self) -> None:
        (self.folder / "end").touch()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_bridge(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    (folder / "core.toml").write_text(f'lake = "lake"\n[broker]\nport = {port}\n')
    with (folder / "bridge.log").open("wb") as log:
        command = [sys.executable, "-m", "pipelines", "bridge", "-c", str(folder / "core.toml")]
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})


def landed_samples(folder: Path) -> tuple[int, int]:
    """Samples in the landing, and how many of them are there twice."""
    spans = set()
    total = 0
    for path in sorted((folder / "lake" / "landing").glob("*/*.arrows*")):
        with path.open("rb") as file, pa.ipc.open_stream(file) as reader:
            try:
                for batch in reader:
                    for row in batch.select(["kind", "device", "epoch", "first_seq", "count"]).to_pylist():
                        if row["kind"] == "up":
                            total += row["count"]
                            spans.add((row["device"], row["epoch"], row["first_seq"], row["count"]))
            except pa.ArrowInvalid:
                continue
    return total, total - sum(span[3] for span in spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--down", type=float, default=5.0, help="how long the broker stays away")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two envelopes of an agent")
    parser.add_argument("--samples", type=int, default=1_000, help="in an envelope")
    parser.add_argument("--smoke", action="store_true")
    for name in ("--role", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--port", "--first"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role == "simulate":
        simulate(Path(given.folder), given.port, given.first, given.agents, given.every, given.samples)
        return
    if given.smoke:
        given.agents, given.seconds, given.down, given.every = 20, 3.0, 1.0, 1.0
    with tempfile.TemporaryDirectory(prefix="uplink-agents-", dir=os.environ.get("CATCHMENT_BENCH_DIR")) as name:
        measure(Path(name), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    broker = loopback_broker(folder / "broker")
    port = broker.port
    broker.start()
    bridge = start_bridge(folder, port)
    workers = Workers(folder, port, given)
    try:
        print(f"{given.agents} agents, connected for the first time: {workers.wait_connected(given.agents, 300):.1f} s")
        broker.stop()
        time.sleep(given.down)
        workers_down = workers.total("connected")
        broker.start()
        back_s = workers.wait_connected(given.agents, 300)
        print(f"broker away for {given.down:.0f} s (connected then: {workers_down}); all back after {back_s:.1f} s")
        time.sleep(2)
        watched = {"broker": broker.pid, "bridge": bridge.pid}
        before, agents_before = {what: cpu_s(pid) for what, pid in watched.items()}, workers.cpu_s()
        sent_before, began = workers.total("sent"), time.monotonic()
        (folder / "go").touch()
        time.sleep(given.seconds)
        took_s = time.monotonic() - began
        samples = (workers.total("sent") - sent_before) * given.samples
        spent = {what: cpu_s(pid) - before[what] for what, pid in watched.items()}
        spent["all agents"] = workers.cpu_s() - agents_before
        (folder / "go").unlink()
        wanted = given.agents / given.every * given.samples
        print(f"sustained: {samples / took_s:,.0f} samples/s sent ({wanted:,.0f} captured), {given.samples} an envelope")
        for what, seconds in spent.items():
            each_us = 1e9 * seconds / max(1, samples)
            print(f"  CPU {what:<11} {seconds / took_s:7.1%} of a core, {each_us:8.1f} us per 1,000 samples")
        time.sleep(3)
    finally:
        workers.end()
        bridge.send_signal(signal.SIGTERM)
        bridge.wait(CORE_LIMIT_S)
        broker.stop()
    total, twice = landed_samples(folder)
    print(f"landed: {total:,} samples, {twice:,} of them twice")


if __name__ == "__main__":
    main()
