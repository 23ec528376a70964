"""Agent, broker and bridge killed again and again while samples flow; at the end every sample is there once, and is right.

The broker is Mosquitto with its defaults: no persistence, so a kill takes its sessions and queues along. Samples go from
a table through the agent's process, the broker and the bridge's process into landing files. What a run would do is done
here: read sealed segments in order, take each (device, stream, epoch, seq) once, publish receipts.

    python tests/faults/soak.py --samples 1000000 --kills 500
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
import pyarrow as pa
from paho.mqtt.enums import CallbackAPIVersion

from pipelines.bridge.segment import read_segment, segment_number
from schemas.ranges import Ranges
from schemas.receipts import Receipt, encode_receipt

STREAM = "vehicle_telemetry"
DEVICE = "soak-1"
START_US = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z, the table's first row
ROW_US = 1_000
_DRAIN_S = 180.0
_POLL_S = 0.1
_KILL_WITHIN_S = 0.5
_PROGRESS_S = 3.0


@dataclass
class Program:
    """A process that is started, killed and started again."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


@dataclass
class Core:
    """What a run does, without the tables: every key once, values compared with what the table says, receipts."""

    landing: Path
    port: int
    samples: int
    settled: dict[int, Ranges] = field(default_factory=dict)
    bodies: dict[tuple[int, int], bytes] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    reported: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = bytearray(self.samples)
        self._next_segment = 1
        self._stop = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="soak-core", protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: (client.subscribe(f"catchment/reported/{DEVICE}", 1), self._tell())
        self._client.on_message = self._heard
        self._client.connect_async("127.0.0.1", self.port, clean_start=True)
        self._client.loop_start()
        self._thread = threading.Thread(target=self._run, name="core")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()
        self._client.reinitialise()

    @property
    def is_complete(self) -> bool:
        return self.seen["rows"] >= self.samples

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            if self._take_segments():
                self._tell()

    def _take_segments(self) -> bool:
        before = self._next_segment
        while (path := self.landing / f"{self._next_segment:012d}.arrows").exists():
            assert segment_number(path) == self._next_segment
            for batch in read_segment(path):
                for row in batch.select(["kind", "stream", "epoch", "first_seq", "count", "payload"]).to_pylist():
                    if row["kind"] == "up" and row["stream"] == STREAM:
                        self._take(row["epoch"], row["first_seq"], row["count"], row["payload"])
            self._next_segment += 1
        return self._next_segment > before

    def _take(self, epoch: int, first: int, count: int, body: bytes) -> None:
        self.seen["envelopes"] += 1
        digest = hashlib.blake2b(body, digest_size=16).digest()
        known = self.settled.setdefault(epoch, Ranges())
        if known.covers(first, first + count):
            self.seen["sent again"] += 1
            self.seen["wrong"] += self.bodies[epoch, first] != digest
            return
        self.bodies[epoch, first] = digest
        self.settled[epoch] = known.union([(first, first + count)])
        table = pa.ipc.open_stream(body).read_all()
        self.seen["wrong"] += table.num_rows != count
        times = table.column("event_time").cast(pa.int64()).to_pylist()
        for value, at_us in zip(table.column("speed_mps").to_pylist(), times, strict=True):
            number = int(value)
            self.seen["wrong"] += number != value or at_us != START_US + number * ROW_US
            self.seen["double"] += self.rows[number]
            self.rows[number] = 1
            self.seen["rows"] += 1

    def _tell(self) -> None:
        settled = {STREAM: {str(epoch): list(ranges.spans) for epoch, ranges in dict(self.settled).items()}}
        body = encode_receipt(Receipt(self._next_segment, settled))
        self._client.publish(f"catchment/down/{DEVICE}/receipts", body, 1, retain=True)

    def _heard(self, _client: object, _userdata: object, message: mqtt.MQTTMessage) -> None:
        self.reported = json.loads(message.payload)


def soak(folder: Path, samples: int, kills: int, seed: int) -> dict[str, object]:
    """Run it; the figures."""
    chance = random.Random(seed)
    port = _free_port()
    programs = _programs(folder, port, samples, rate_hz=samples / (0.6 * kills))
    core = Core(folder / "lake" / "landing" / "bridge-0", port, samples)
    killed: Counter[str] = Counter()
    began = time.monotonic()
    try:
        for program in programs.values():
            program.start()
        for _ in range(kills):
            # Half of them as soon as something got through since the last one, the others wherever it may be.
            before = core.seen["rows"] if chance.random() < 0.5 else -1
            _wait(lambda: core.seen["rows"] > before, _PROGRESS_S)  # noqa: B023 # called before the next turn
            time.sleep(chance.random() * _KILL_WITHIN_S)
            program = programs[chance.choice(("agent", "agent", "broker", "broker", "bridge"))]
            program.end()
            killed[program.name] += 1
            program.start()
        flowing_s = time.monotonic() - began
        _wait(lambda: core.is_complete, _DRAIN_S)
        ledger = _settled_ledger(folder, core)
    finally:
        core.close()
        for program in programs.values():
            program.end()
    books = ledger["books"][0]
    return {
        "samples": samples, "kills": dict(killed), "lost": samples - sum(core.rows), "double": core.seen["double"],
        "wrong": core.seen["wrong"], "is_balanced": ledger["is_balanced"], "captured": books["captured"],
        "settled": books["settled"], "spooled": books["spooled"], "dropped": books["dropped"], "epochs": len(core.settled),
        "envelopes": core.seen["envelopes"], "sent_again": core.seen["sent again"],
        "killing_s": round(flowing_s), "in_all_s": round(time.monotonic() - began),
    }  # fmt: skip


def _programs(folder: Path, port: int, samples: int, rate_hz: float) -> dict[str, Program]:
    table = folder / "telemetry.csv"
    with table.open("w") as file:
        file.write("t_s,speed_mps\n")
        file.writelines(f"{n * ROW_US / 1e6:.3f},{n}\n" for n in range(samples))
    (folder / "agent.toml").write_text(
        f'device = "{DEVICE}"\nstate_dir = "state"\n[broker]\nport = {port}\n'
        "[uplink]\nresend_after_s = 3.0\nreport_interval_s = 1.0\n"
        f'[[source]]\nkind = "replay"\nstream = "{STREAM}"\nmax_samples = 200\n[source.options]\npath = "{table}"\n'
        f'rate_hz = {rate_hz:.0f}\ntime_column = "t_s"\ntime_unit = "s"\ntime_start = "2024-05-01T00:00:00Z"\n'
    )
    (folder / "core.toml").write_text(f'lake = "lake"\n[broker]\nport = {port}\n[bridge]\nid = "bridge-0"\n')
    (folder / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")  # the rest as it comes
    commands = {
        "broker": [_mosquitto(), "-c", str(folder / "mosquitto.conf")],
        "bridge": [sys.executable, "-m", "pipelines.bridge.cli", "-c", str(folder / "core.toml")],
        "agent": [sys.executable, "-m", "edge_agent", "-c", str(folder / "agent.toml")],
    }
    return {name: Program(name, command, folder / f"{name}.log") for name, command in commands.items()}


def _settled_ledger(folder: Path, core: Core) -> dict[str, object]:
    """The device's books, once its agent has heard of everything."""
    command = [
        sys.executable,
        "-c",
        "from edge_agent.cli import main; main()",
        "ledger",
        "--json",
        "-c",
        str(folder / "agent.toml"),
    ]

    def look() -> dict[str, object]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return json.loads(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)

    deadline = time.monotonic() + 60
    while (ledger := look())["books"][0]["spooled"] and time.monotonic() < deadline:
        core._tell()
        time.sleep(0.5)
    return ledger


def _wait(is_true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.1)


def _mosquitto() -> str:
    found = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise RuntimeError("no mosquitto; install it: apt-get install -y --no-install-recommends mosquitto")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="a folder for all that is written, kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = given.keep or Path(name)
        folder.mkdir(exist_ok=True)
        figures = soak(folder, given.samples, given.kills, given.seed)
    print(json.dumps(figures))  # noqa: T201 # the figures
    sys.exit(0 if (figures["lost"], figures["double"], figures["wrong"], figures["is_balanced"]) == (0, 0, 0, True) else 1)


if __name__ == "__main__":
    main()
