"""Hand-made bad input next to a good device: each piece is kept with a clear reason, and nobody else loses anything."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime

import paho.mqtt.client as mqtt
import polars as pl
import pyarrow as pa
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.plant.programs import Plant

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(300)]

ARROW = "application/vnd.apache.arrow.stream"
NOON = datetime(2026, 5, 28, 12, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")


def ipc(**columns: pa.Array) -> bytes:
    batch = pa.record_batch(columns)
    out = io.BytesIO()
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
    return out.getvalue()


def telemetry(*speeds: float) -> bytes:
    return ipc(event_time=pa.array([NOON] * len(speeds), TIME), speed_mps=pa.array(speeds, pa.float64()))


def numbered(first: int, count: int, epoch: int = 5) -> list[tuple[str, str]]:
    return [("epoch", str(epoch)), ("firstseq", str(first)), ("samplecount", str(count))]


class Publisher:
    """Publishes as a device of somebody else's would."""

    def __init__(self, host: str, port: int) -> None:
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="stranger", protocol=mqtt.MQTTv5)
        self.client.connect(host, port)
        self.client.loop_start()

    def publish(self, topic: str, body: bytes, content_type: str = ARROW, user: list[tuple[str, str]] | None = None) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = content_type
        properties.UserProperty = user or []
        self.client.publish(topic, body, qos=1, properties=properties).wait_for_publish(20)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def rows_of(plant: Plant, device: str, count: int) -> pl.DataFrame:
    """The device's rows, once there are so many."""

    def found() -> pl.DataFrame:
        return plant.rows("streams/vehicle_telemetry").filter(pl.col("device") == device)

    plant.eventually(lambda: len(found()) >= count, f"{count} rows of {device}", 30)
    return found()


@pytest.fixture
def stranger(plant: Plant) -> Iterator[Publisher]:
    plant.start_core()
    # A bridge that has never connected holds no session, and the broker would drop what comes before it subscribes.
    made = Publisher(plant.broker.host, plant.broker.port)

    def arrived() -> bool:
        made.publish("catchment/up/probe/vehicle_telemetry", b'{"speed_mps": 1}', "application/json")
        return plant.count("streams/vehicle_telemetry") > 0

    plant.eventually(arrived, "the core takes input")
    yield made
    made.close()


# name, topic below catchment/, body, content type, properties, what the reason must say
BAD = [
    ("truncated", "up/bad-1/vehicle_telemetry", telemetry(1.0, 2.0)[:-40], ARROW, numbered(0, 2), "(?i)arrow|ipc|truncat|body"),
    ("no arrow at all", "up/bad-2/vehicle_telemetry", b"\x00" * 400, ARROW, numbered(0, 1), "(?i)arrow|ipc|body"),
    ("wrong type", "up/bad-3/vehicle_telemetry", ipc(event_time=pa.array([NOON], TIME), speed_mps=pa.array(["fast"])), ARROW,
     numbered(0, 1), "speed_mps"),
    ("unknown column", "up/bad-4/vehicle_telemetry", ipc(event_time=pa.array([NOON], TIME), speed_mps=pa.array([1.0]),
     warp=pa.array([9.0])), ARROW, numbered(0, 1), "warp"),
    ("no event time", "up/bad-5/vehicle_telemetry", ipc(speed_mps=pa.array([1.0])), ARROW, numbered(0, 1), "event_time"),
    ("not a number", "up/bad-6/vehicle_telemetry", telemetry(float("nan")), ARROW, numbered(0, 1), "speed_mps"),
    ("beyond the maximum", "up/bad-7/vehicle_telemetry", telemetry(900.0), ARROW, numbered(0, 1), "speed_mps"),
    ("count mismatch", "up/bad-8/vehicle_telemetry", telemetry(1.0, 2.0, 3.0), ARROW, numbered(0, 7), "7"),
    ("half a span", "up/bad-9/vehicle_telemetry", telemetry(1.0), ARROW, [("epoch", "5")], "samplecount"),
    ("another device's source", "up/bad-10/vehicle_telemetry", telemetry(1.0), ARROW,
     [*numbered(0, 1), ("source", "/devices/other")], "contradicts"),
    ("property twice", "up/bad-11/vehicle_telemetry", telemetry(1.0), ARROW, [*numbered(0, 1), ("epoch", "6")], "twice"),
    ("unknown stream", "up/bad-12/weather", b'{"wind": 3}', "application/json", [], "weather"),
    ("bad device id", "up/BAD_Device!/vehicle_telemetry", telemetry(1.0), ARROW, numbered(0, 1), "device id"),
    ("duplicate keys", "up/bad-13/vehicle_telemetry", b'{"speed_mps": 1, "speed_mps": 2}', "application/json", [],
     "(?i)twice|duplicate"),
    ("cut JSON", "up/bad-14/vehicle_telemetry", b'{"speed_mps": 1', "application/json", [], "(?i)json"),
    ("unknown content type", "up/bad-15/vehicle_telemetry", b"<speed>1</speed>", "text/xml", numbered(0, 1), "content type"),
    ("false hash", "up/bad-16/camera_frame", ipc(event_time=pa.array([NOON], TIME), media_type=pa.array(["image/jpeg"]),
     payload=pa.array([b"picture"], pa.binary()), payload_sha256=pa.array(["0" * 64])), ARROW, numbered(0, 1), "payload_sha256"),
    ("no payload", "up/bad-17/camera_frame", ipc(event_time=pa.array([NOON], TIME), media_type=pa.array(["image/jpeg"])), ARROW,
     numbered(0, 1), "payload"),
    ("object never sent", "up/bad-18/slide", ipc(event_time=pa.array([NOON], TIME), media_type=pa.array(["image/tiff"]),
     payload=pa.nulls(1, pa.binary()), payload_sha256=pa.array(["ab" * 32])), ARROW, numbered(0, 1), "(?i)object|payload"),
]  # fmt: skip


def test_each_bad_envelope_is_kept_with_its_reason_and_a_good_device_loses_nothing(plant: Plant, stranger: Publisher) -> None:
    lines = "".join(json.dumps({"speed_mps": index / 10, "frame": index}) + "\n" for index in range(1_000))
    (plant.folder / "drive.jsonl").write_text(lines)
    plant.write_agent("good-1", [{"kind": "replay", "stream": "vehicle_telemetry", "options": {
        "path": plant.folder / "drive.jsonl", "rate_hz": 500.0}}])  # fmt: skip
    plant.start_agent("good-1")
    for _, topic, body, content_type, user, _ in BAD:
        stranger.publish(f"catchment/{topic}", body, content_type, user)
    plant.ended_well("good-1")
    plant.eventually(lambda: plant.count("quarantine") >= len(BAD), "all of it in quarantine", 30)

    kept = plant.rows("quarantine").sort("topic")
    for name, topic, body, _, _, reason in BAD:
        found = kept.filter(pl.col("topic") == f"catchment/{topic}")
        assert len(found) == 1, f"{name}: {found['reason'].to_list()}"
        (row,) = found.to_dicts()
        assert found["reason"].str.contains(reason).all(), f"{name}: {row['stage']}: {row['reason']}"
        assert row["count"] >= 1, name
        if row["body_format"] == "envelope":
            assert row["body"] == body, name
    assert len(kept) == len(BAD)

    rows = plant.rows("streams/vehicle_telemetry").filter(pl.col("device") == "good-1")
    assert sorted(rows["frame"].to_list()) == list(range(1_000))
    assert not any(device.startswith("bad") for device in plant.rows("streams/vehicle_telemetry")["device"])
    for book in plant.core_books():
        assert book["received"] == book["committed"] + book["quarantined"] + book["duplicate"], book
    listed = json.loads(plant.core("quarantine", "ls", "--json"))
    assert sum(line["samples"] for line in listed) == kept["count"].sum()


def test_one_bad_row_does_not_take_the_others_of_its_envelope_along(plant: Plant, stranger: Publisher) -> None:
    stranger.publish("catchment/up/mixed/vehicle_telemetry", telemetry(1.0, 900.0, 3.0), ARROW, numbered(0, 3))
    plant.eventually(lambda: plant.count("quarantine"), "the bad row", 30)
    rows = plant.rows("streams/vehicle_telemetry").filter(pl.col("device") == "mixed").sort("seq")
    assert rows["seq"].to_list() == [0, 2]
    (kept,) = plant.rows("quarantine").to_dicts()
    assert (kept["device"], kept["epoch"], kept["seq"], kept["count"]) == ("mixed", 5, 1, 1)


def test_the_same_envelope_sent_again_gives_no_second_row(plant: Plant, stranger: Publisher) -> None:
    for _ in range(3):
        stranger.publish("catchment/up/again/vehicle_telemetry", telemetry(1.0, 2.0), ARROW, numbered(10, 2))
    stranger.publish("catchment/up/again/vehicle_telemetry", telemetry(2.0, 3.0), ARROW, numbered(11, 2))
    rows = rows_of(plant, "again", 3)
    assert sorted(rows["seq"].to_list()) == [10, 11, 12]


def test_plain_json_by_mosquitto_pub_becomes_rows(plant: Plant, stranger: Publisher) -> None:
    if shutil.which("mosquitto_pub") is None:
        pytest.skip("no mosquitto_pub on PATH; install mosquitto-clients")
    base = ["mosquitto_pub", "-V", "5", "-q", "1", "-h", plant.broker.host, "-p", str(plant.broker.port)]
    topic = ["-t", "catchment/up/car-17/vehicle_telemetry"]
    user = [word for name, value in numbered(0, 1, epoch=1) for word in ("-D", "PUBLISH", "user-property", name, value)]
    content = ["-D", "PUBLISH", "content-type", "application/json"]
    subprocess.run(
        [*base, *topic, *content, *user, "-m", '{"event_time": "2026-05-28T20:26:40Z", "speed_mps": 11.5}'],
        check=True,
        timeout=20,
    )
    subprocess.run([*base, *topic, "-m", '{"speed_mps": 12}'], check=True, timeout=20)
    rows = rows_of(plant, "car-17", 2)
    assert sorted(rows["speed_mps"].to_list()) == [11.5, 12.0]
    assert rows.filter(pl.col("speed_mps") == 11.5)["event_time"].to_list() == [datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC)]
