"""The whole core under SIGKILL: broker, two bridges and the run loop die at random moments, alone and together.

Every time it must end the same: one row per sample, payloads byte for byte, balanced books, no file that no row needs.
`CATCHMENT_KILLS=300 pytest tests/faults/test_faults_core_kills.py`, or `make core-kills`; CI does 30.
"""

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from pipelines.ingest.loop import load_state
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep
from schemas.envelope import ARROW_STREAM, EnvelopeHead, Span
from schemas.ids import DeviceId, StreamName
from schemas.receipts import decode_receipt
from tests.fakes.lake_files import orphans
from tests.faults.warm_roles import Role, WarmStart
from tests.plant.broker import Broker, MakeBroker

KILLS = int(os.environ.get("CATCHMENT_KILLS", "30"))
SEED = int(os.environ.get("CATCHMENT_SEED", "1"))
DEADLINE_S = 300.0
START_US = 1_790_000_000_000_000
EPOCH = 7
SAMPLES = 10
PATIENCE_S = 20.0
TELEMETRY, FRAMES = StreamName("vehicle_telemetry"), StreamName("camera_frame")
DEVICES = {DeviceId(f"car-{n}"): TELEMETRY for n in range(4)} | {DeviceId(f"cam-{n}"): FRAMES for n in range(2)}


def body_of(device: DeviceId, first: int) -> bytes:
    times = pa.array(START_US + np.arange(first, first + SAMPLES) * 1_000).cast(pa.timestamp("us", "UTC"))
    if DEVICES[device] == TELEMETRY:
        batch = pa.record_batch({"event_time": times, "speed_mps": pa.array(np.arange(SAMPLES) % 40, pa.float64())})
    else:
        pictures = [picture(device, seq) for seq in range(first, first + SAMPLES)]
        digests = [hashlib.sha256(one).hexdigest() for one in pictures]
        batch = pa.record_batch(
            {
                "event_time": times,
                "media_type": pa.array(["image/jpeg"] * SAMPLES),
                "payload": pa.array(pictures, pa.binary()),
                "payload_sha256": pa.array(digests),
            }
        )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def picture(device: str, seq: int) -> bytes:
    return random.Random(f"{device}/{seq}").randbytes(2_000)


@dataclass
class Fleet:
    """Devices as our agent is: what has no receipt is sent again."""

    port: int
    captured: dict[DeviceId, int] = field(default_factory=lambda: dict.fromkeys(DEVICES, 0))
    settled: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="fleet", protocol=mqtt.MQTTv5)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe("catchment/down/+/receipts", qos=1)
        self.client.on_message = self._hear
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()

    def _hear(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        device = message.topic.split("/")[2]
        streams = decode_receipt(bytes(message.payload)).settled
        self.settled[device] = [(span[0], span[1]) for epochs in streams.values() for span in epochs.get(str(EPOCH), [])]

    def capture(self) -> None:
        for device in DEVICES:
            self.captured[device] += SAMPLES

    def unsettled(self) -> list[tuple[DeviceId, int]]:
        return [
            (device, first)
            for device, count in self.captured.items()
            for first in range(0, count, SAMPLES)
            if not any(low <= first and first + SAMPLES <= high for low, high in self.settled.get(device, []))
        ]

    def send(self) -> None:
        if not self.client.is_connected():
            return
        for device, first in self.unsettled():
            head = EnvelopeHead(device, DEVICES[device], ARROW_STREAM, Span(EPOCH, first, SAMPLES))
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = list(head.to_properties())
            properties.ContentType = ARROW_STREAM
            self.client.publish(f"catchment/up/{device}/{DEVICES[device]}", body_of(device, first), qos=1, properties=properties)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client.reinitialise()


Roles = dict[str, Role | Broker]


@pytest.fixture(params=["with", "without"])
def roles(request: pytest.FixtureRequest, make_broker: MakeBroker, tmp_path: Path) -> Iterator[Roles]:
    """The core's processes, and a broker with or without persistence: without, its sessions and queues die with it."""
    broker = make_broker(extra="" if request.param == "with" else "persistence false")
    chance = random.Random(SEED)
    lake = f'lake = "lake"\n[broker]\nport = {broker.port}\n'
    bridge = '[bridge]\nid = "bridge-{0}"\npartition = {0}\npartitions = 2\nseal_ms = 100\n'
    warm = WarmStart()
    made: Roles = {"broker": broker}
    for number in range(2):
        config = tmp_path / f"bridge-{number}.toml"
        config.write_text(lake + bridge.format(number))
        made[config.stem] = Role(warm, partial(_words, "bridge", config), config.with_suffix(".log"))
    # Half of the loops settle their items themselves, half by a child, which they start with their configuration.
    for worker_pool in range(2):
        (tmp_path / f"run-{worker_pool}.toml").write_text(lake + f"[run]\ninterval_ms = 50\nworker_processes = {worker_pool}\n")
    made["run"] = Role(warm, lambda: ("run", "-c", str(tmp_path / f"run-{chance.randrange(2)}.toml")), tmp_path / "run.log")
    for each in made.values():
        if isinstance(each, Role):
            each.start()
    yield made
    warm.close()


def _words(command: str, config: Path) -> tuple[str, ...]:
    return command, "-c", str(config)


def role(roles: Roles, name: str) -> Role:
    found = roles[name]
    assert isinstance(found, Role)
    return found


def kill(roles: Roles, names: list[str]) -> None:
    for name in names:
        victim = roles[name]
        victim.end() if isinstance(victim, Role) else victim.kill()
    for name in names:
        roles[name].start()


def send_on(roles: Roles, fleet: Fleet, chance: random.Random) -> None:
    """Half of the deaths come soon after a commit, in the middle of the next run; the others whenever they come."""
    until = time.monotonic() + (PATIENCE_S if chance.random() < 0.5 else chance.random())
    before = commits(roles)
    while commits(roles) == before and time.monotonic() < until:
        fleet.capture()
        fleet.send()
        time.sleep(0.25)
    time.sleep(chance.random() * 0.5)


def commits(roles: Roles) -> int:
    log = role(roles, "run").log
    return log.read_text().count("run_committed") if log.exists() else 0  # it may be just starting


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_core_is_killed_again_and_again_and_every_sample_is_one_row(
    roles: Roles, kills: Callable[[int], None], tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    broker = roles["broker"]
    assert isinstance(broker, Broker)
    fleet = Fleet(broker.port)
    began, killed = time.monotonic(), 0
    while killed < KILLS // 2:
        send_on(roles, fleet, chance)
        names = sorted(chance.sample(sorted(roles), chance.choice([1, 2, 3, 4])))
        kill(roles, names)
        killed += len(names)
    kills(killed)
    sys.stdout.write(f"{killed} kills in {time.monotonic() - began:.0f} s\n")
    deadline = time.monotonic() + DEADLINE_S
    while fleet.unsettled():
        assert time.monotonic() < deadline, fleet.unsettled()[:5]
        for name in ("bridge-0", "bridge-1", "run"):
            role(roles, name).check_alive()
        fleet.send()
        time.sleep(1)
    fleet.close()
    for name in ("bridge-0", "bridge-1", "run"):
        role(roles, name).end(signal.SIGTERM)
    sys.stdout.write(f"{sum(fleet.captured.values())} samples, {commits(roles)} runs committed\n")
    check(tmp_path / "lake", fleet.captured)
    maintain(lake_at(tmp_path / "lake"), Keep(0, 0, 0, 0, 0))
    assert orphans(tmp_path / "lake") == set()
    check(tmp_path / "lake", fleet.captured)


def check(lake: Path, captured: dict[DeviceId, int]) -> None:
    for stream in (TELEMETRY, FRAMES):
        table = DeltaTable(lake / "streams" / stream)
        rows = table.to_pyarrow_table().to_pylist()
        found = sorted((row["device"], row["epoch"], row["seq"]) for row in rows)
        assert found == [(d, EPOCH, s) for d in sorted(captured) if DEVICES[d] == stream for s in range(captured[d])]
        named = {Path(uri).name for uri in table.file_uris()}
        assert {path.name for path in (lake / "streams" / stream).glob("*.parquet")} - named == set()
        if stream == FRAMES:
            shards = {row["payload_shard"] for row in rows}
            assert {str(path.relative_to(lake)) for path in (lake / "payload").rglob("*.parquet")} == shards
            for row in rows:
                place = row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"]
                assert read_payload(lake_at(lake), *place) == picture(row["device"], row["seq"])
    ledger = load_state(lake_at(lake)).ledger
    assert not ledger.unbalanced()
    assert {key[0]: books.committed for key, books in ledger.books.items()} == captured
    assert not (lake / "quarantine").exists()
