"""Small devices on a local broker: each message once, whoever is killed; what is not stored is not acknowledged."""

import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pyarrow as pa
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Source
from edge_agent.sources.mqtt_local.parked import ParkedMessages
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from edge_agent.spool.spool import Spool
from schemas.contract import Contract, builtin_contract
from tests.plant.broker import MakeBroker, RunningBroker

pytestmark = pytest.mark.broker
TELEMETRY = builtin_contract("vehicle_telemetry")


class Publisher:
    def __init__(self, port: int) -> None:
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "publisher", protocol=mqtt.MQTTv5)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def publish(self, body: object, topic: str = "sensors/a/telemetry", qos: int = 1, *, retain: bool = False) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.client.publish(topic, raw, qos, retain=retain).wait_for_publish(20)

    def wait_for_broker(self) -> None:
        """Until the broker has read what others sent before: it answers only after it has looked at every connection."""
        self.publish(b"", "elsewhere")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def publisher(broker: RunningBroker) -> Iterator[Publisher]:
    made = Publisher(broker.port)
    yield made
    made.close()


@pytest.fixture
def subscribe(broker: RunningBroker) -> Iterator[Callable[..., GuardedSource]]:
    made: list[GuardedSource] = []

    def build(position: bytes | None = None, contract: Contract = TELEMETRY, **options: object) -> GuardedSource:
        settings = {"port": broker.port, "topics": ["sensors/+/telemetry"], **options}
        made.append(build_source("mqtt-local", settings, contract, SystemClock(), position))
        return made[-1]

    yield build
    for one in made:
        one.close()


def batches(source: Source, count: int, within_s: float = 20.0) -> list[Any]:
    found: list[Any] = []
    until = time.monotonic() + within_s
    while sum(map(len, found)) < count and time.monotonic() < until:
        batch = source.read(1000)
        if batch is not None:
            found.append(batch)
    return found


def speeds(found: list[Any]) -> list[float]:
    return [value for batch in found for value in batch.columns["speed_mps"]]


def settled(source: Source) -> None:
    """Whoever listens, hears nothing more."""
    assert batches(source, 1, within_s=0.5) == []


def test_what_devices_publish_becomes_samples_with_their_times(
    publisher: Publisher, subscribe: Callable[..., GuardedSource]
) -> None:
    source = subscribe(topic_column="clock_quality", rename={"v": "speed_mps", "when": "event_time"})
    settled(source)
    publisher.publish({"v": 1.5, "when": "2024-05-01T00:00:00Z"})
    publisher.publish([{"v": 2.5}, {"v": 3.5}], "sensors/b/telemetry")
    publisher.publish({"v": 4.5}, "elsewhere")
    found = batches(source, 3)
    assert speeds(found) == [1.5, 2.5, 3.5]
    times = [time_us for batch in found for time_us in batch.event_time_us]
    assert times[0] == 1_714_521_600_000_000
    assert abs(times[1] / 1e6 - time.time()) < 60
    topics = [topic for batch in found for topic in batch.columns["clock_quality"]]
    assert topics == ["sensors/a/telemetry", "sensors/b/telemetry", "sensors/b/telemetry"]


def test_what_was_not_stored_comes_again_and_what_was_does_not(
    publisher: Publisher, subscribe: Callable[..., GuardedSource]
) -> None:
    first = subscribe()
    settled(first)
    for n in range(6):
        publisher.publish({"speed_mps": n})
    found = batches(first, 6)
    assert speeds(found) == [0, 1, 2, 3, 4, 5]
    first.close()  # nothing was told to be stored
    second = subscribe()
    again = batches(second, 6)
    assert speeds(again) == [0, 1, 2, 3, 4, 5]
    for batch in again:
        second.stored(batch)
    second.close()
    publisher.wait_for_broker()
    settled(subscribe())


def test_what_was_stored_but_not_acknowledged_is_not_stored_twice(
    publisher: Publisher, subscribe: Callable[..., GuardedSource]
) -> None:
    first = subscribe()
    settled(first)
    for n in range(4):
        publisher.publish({"speed_mps": n})
    position = batches(first, 4)[-1].position  # the spool has it; then the power fails
    first.close()
    publisher.publish({"speed_mps": 4})
    second = subscribe(position)
    assert speeds(batches(second, 1)) == [4]
    settled(second)


def test_messages_that_are_no_samples_are_counted_and_do_not_come_again(
    publisher: Publisher, subscribe: Callable[..., GuardedSource]
) -> None:
    source = subscribe()
    settled(source)
    for body in (b"not json", b"[1]", b"3", b'{"speed_mps": 1, "event_time": "yesterday"}', b'{"speed_mps": 7}'):
        publisher.publish(body)
    found = batches(source, 1)
    assert speeds(found) == [7]
    assert source.rejected["row: message is no JSON object, nor a list of them"] == 3
    source.stored(found[-1])
    source.close()
    publisher.wait_for_broker()
    settled(subscribe())


def test_raw_bodies_are_payloads(publisher: Publisher, subscribe: Callable[..., GuardedSource]) -> None:
    source = subscribe(contract=builtin_contract("camera_frame"), format="raw", topic_column="camera", topics=["cam/#"])
    settled(source)
    publisher.publish(b"\xff\xd8jpeg", "cam/door")
    (batch,) = batches(source, 1)
    assert batch.payloads == [b"\xff\xd8jpeg"]
    assert batch.columns["camera"] == ["cam/door"]


def test_a_retained_message_is_one_sample_not_one_for_each_start(
    publisher: Publisher, subscribe: Callable[..., GuardedSource]
) -> None:
    publisher.publish({"speed_mps": 9}, retain=True)
    source = subscribe()
    found = batches(source, 1)
    assert speeds(found) == [9]
    source.stored(found[0])
    source.close()
    settled(subscribe())


def test_no_more_is_sent_than_may_wait(publisher: Publisher, subscribe: Callable[..., GuardedSource]) -> None:
    source = subscribe(max_waiting=10)
    settled(source)
    for n in range(30):
        publisher.publish({"speed_mps": n})
    found = batches(source, 30, within_s=1.0)
    assert len(speeds(found)) == 10
    while len(speeds(found)) < 30:
        source.stored(found[-1])
        found += batches(source, 1)
    assert speeds(found) == list(range(30))


def test_a_broker_that_is_not_there_or_goes_away_fails_the_source(
    broker: RunningBroker, subscribe: Callable[..., GuardedSource]
) -> None:
    source = subscribe()
    settled(source)
    broker.stop()
    with pytest.raises(SourceError, match="over"):
        batches(source, 1)
    with pytest.raises(SourceError, match="does not answer"):
        subscribe()


def test_a_refused_user_and_a_refused_topic_are_reported(make_broker: MakeBroker, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic read allowed/#\n")
    broker = make_broker(extra=f"acl_file {tmp_path / 'acl'}")
    source = build_source("mqtt-local", {"port": broker.port, "topics": ["allowed/#"]}, TELEMETRY, SystemClock(), None)
    settled(source)
    source.close()
    (tmp_path / "empty").touch()
    closed = make_broker(extra=f"password_file {tmp_path / 'empty'}\nallow_anonymous false")
    source = build_source("mqtt-local", {"port": closed.port, "topics": ["a"]}, TELEMETRY, SystemClock(), None)
    with pytest.raises(SourceError, match="refuses"):
        batches(source, 1)
    source.close()


def test_wrong_options_are_reported_before_anything_starts() -> None:
    wrong: tuple[dict[str, object], ...] = (
        {},
        {"topics": []},
        {"topics": ["a"], "format": "raw"},
        {"topics": ["a"], "topic_column": "x"},
        {"topics": "a"},
    )
    for options in wrong:
        with pytest.raises(ConfigError, match="mqtt-local"):
            check_source("mqtt-local", options, TELEMETRY)


LOCAL = {"speed_mps": 1.5, "event_time": "2024-07-01 12:00:00"}


def test_a_time_without_a_zone_is_parked_and_read_when_the_zone_is_set(
    publisher: Publisher, broker: RunningBroker, tmp_path: Path
) -> None:
    def build(position: bytes | None = None, **options: object) -> GuardedSource:
        wanted = {"port": broker.port, "topics": ["sensors/+/telemetry"], **options}
        return build_source("mqtt-local", wanted, TELEMETRY, SystemClock(), position, tmp_path / "parked")

    source = build()
    settled(source)
    publisher.publish(LOCAL)
    publisher.publish([LOCAL, {"speed_mps": 2.5}])
    publisher.publish({"speed_mps": 7})
    found = batches(source, 1)
    assert speeds(found) == [7]  # what can be read is not held up
    source.stored(found[-1])
    assert source.complaint.startswith("2 messages wait on this device: source 'mqtt-local': its times tell no zone")
    source.close()
    publisher.wait_for_broker()
    again = build()  # nothing was set: it waits on, and nothing comes again from the broker
    settled(again)
    assert "2 messages wait" in again.complaint
    again.close()
    healed = build(time_zone="Europe/Berlin")
    found = batches(healed, 3)
    assert speeds(found) == [1.5, 1.5, 2.5]
    assert found[0].event_time_us[0] == 1_719_828_000_000_000  # 10:00 UTC
    position = found[-1].position
    healed.close()  # the power fails: stored, and not removed from the park
    after = build(position, time_zone="Europe/Berlin")
    settled(after)
    assert (after.complaint, list((tmp_path / "parked").rglob("*.json"))) == ("", [])
    after.close()


def test_without_a_place_to_park_the_message_stays_with_the_broker(
    publisher: Publisher, subscribe: Callable[..., GuardedSource]
) -> None:
    source = subscribe()
    settled(source)
    publisher.publish(LOCAL)
    settled(source)
    assert "1 messages wait at the broker" in source.complaint
    source.close()
    publisher.wait_for_broker()
    assert speeds(batches(subscribe(time_zone="UTC"), 1)) == [1.5]


@pytest.mark.parametrize(
    ("event_time", "before", "after"),
    [
        ("01.07.2024 12:00:00", {}, {"time_format": "%d.%m.%Y %H:%M:%S", "time_zone": "UTC"}),
        (1_719_828_000_000, {"time_unit": "s"}, {"time_unit": "ms"}),
        ("1719828000,5", {}, {"decimal": ","}),
    ],
)
def test_other_times_that_a_setting_would_make_readable_wait_too(
    publisher: Publisher,
    subscribe: Callable[..., GuardedSource],
    event_time: int | str,
    before: dict[str, str],
    after: dict[str, str],
) -> None:
    source = subscribe(**before)
    settled(source)
    publisher.publish({"speed_mps": 1.5, "event_time": event_time})
    settled(source)
    assert "1 messages wait" in source.complaint
    source.close()
    publisher.wait_for_broker()
    assert speeds(batches(subscribe(**after), 1)) == [1.5]


def test_a_full_park_leaves_messages_with_the_broker(tmp_path: Path) -> None:
    park = ParkedMessages(tmp_path / "parked", max_bytes=300)
    assert park.add([("a", b"x" * 100)], 5)
    assert not park.add([("a", b"x" * 200)], 6)
    assert park.add([("b", b"y")], 5)
    found = ParkedMessages(tmp_path / "parked").messages
    assert [(message.number, message.topic) for message in found] == [(5, "a"), (6, "b")]
    park.remove({5})
    (tmp_path / "parked" / "00.json").write_text("torn")
    assert [message.number for message in ParkedMessages(tmp_path / "parked").messages] == [6]


CHILD = """
import json, sys, threading
from pathlib import Path
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.transforms import build_transforms
from edge_agent.sources.registry import build_source
from catchment.runtime.clock import SystemClock
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.spool.spool import Spool
from schemas.contract import builtin_contract
contract, clock = builtin_contract("vehicle_telemetry"), SystemClock()
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 28, linger_ms=5, clock=clock)
options = json.loads(sys.argv[2])
config = SourceConfig(kind="mqtt-local", stream="vehicle_telemetry", options=options)
transforms = build_transforms(contract, None, b"", ClockWatch(clock), None)
build = lambda position: build_source("mqtt-local", options, contract, clock, position)
encoder = Encoder(contract, BatchLimits(1 << 16, 1 << 20), spool.put_object)
Path(sys.argv[1] + ".ready").touch()
SourcePump(config, build, encoder, spool, transforms, clock).run(threading.Event())
"""


@pytest.mark.slow
def test_every_message_is_stored_once_over_kills_of_the_agent_and_restarts_of_the_broker(
    broker: RunningBroker, subscribe: Callable[..., GuardedSource], tmp_path: Path
) -> None:
    spool_dir = tmp_path / "spool"
    options = json.dumps({"port": broker.port, "topics": ["sensors/+/telemetry"], "wait_ms": 10})
    first = subscribe()
    settled(first)  # the session begins before the first message
    first.close()
    publisher = Publisher(broker.port)
    dice = random.Random(11)
    child = _child(spool_dir, options)
    n = 0
    for turn in range(5):
        for _ in range(dice.randrange(50, 150)):
            publisher.client.publish("sensors/a/telemetry", json.dumps({"speed_mps": n}), 1)
            n += 1
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if turn == 2:
            publisher.publish({"speed_mps": n})  # all before it are at the broker
            n += 1
            broker.restart()
        child = _child(spool_dir, options)
    publisher.publish({"speed_mps": n})
    n += 1
    publisher.close()
    _until_stored(spool_dir, n)
    child.kill()
    child.wait()
    assert sorted(_stored(spool_dir)) == list(range(n))


def _child(spool_dir: Path, options: str) -> subprocess.Popen[bytes]:
    ready = spool_dir.with_name(spool_dir.name + ".ready")
    ready.unlink(missing_ok=True)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(spool_dir), options], stdout=subprocess.DEVNULL)
    while not ready.exists():
        assert child.poll() is None
        time.sleep(0.01)
    return child


def _until_stored(spool_dir: Path, count: int) -> None:
    until = time.monotonic() + 60
    db = sqlite3.connect(f"file:{spool_dir}/spool.db?mode=ro", uri=True)
    stored = 0
    while stored < count and time.monotonic() < until:
        (stored,) = db.execute("SELECT coalesce(sum(count), 0) FROM envelope").fetchone()
        time.sleep(0.1)
    time.sleep(0.5)  # a sample too many would come now
    db.close()


def _stored(spool_dir: Path) -> list[float]:
    spool = Spool(spool_dir, max_bytes=1 << 28, linger_ms=5, clock=SystemClock())
    found: list[float] = []
    while envelopes := spool.next_unsent(1 << 30):
        for envelope in envelopes:
            found += pa.ipc.open_stream(io.BytesIO(envelope.body)).read_all()["speed_mps"].to_pylist()
    spool.close()
    return found
