"""CAN: a real car's bus, decoded by a DBC, must say what the car's own decoding said; every frame once."""

import gzip
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import can
import numpy as np
import pytest
import zstandard

from edge_agent.capture.batch import Source
from edge_agent.capture.can_decoder import UNKNOWN
from edge_agent.capture.registry import build_source, check_source
from edge_agent.capture.unpacking import open_unpacked
from edge_agent.clock import SystemClock
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from schemas.builtin import builtin_contract

SIGNALS = builtin_contract("can_signal")
# Three messages of the car of comma2k19, as its maker's network has them, one of our own with choices and a multiplexer.
DBC = """
VERSION ""
BU_: XXX
BO_ 180 SPEED: 8 XXX
 SG_ SPEED : 47|16@0+ (0.01,0) [0|250] "km/h" XXX
BO_ 170 WHEEL_SPEEDS: 8 XXX
 SG_ FR : 7|16@0+ (0.01,-67.67) [0|250] "km/h" XXX
 SG_ FL : 23|16@0+ (0.01,-67.67) [0|250] "km/h" XXX
 SG_ RR : 39|16@0+ (0.01,-67.67) [0|250] "km/h" XXX
 SG_ RL : 55|16@0+ (0.01,-67.67) [0|250] "km/h" XXX
BO_ 37 STEER_ANGLE_SENSOR: 8 XXX
 SG_ STEER_ANGLE : 3|12@0- (1.5,0) [-500|500] "deg" XXX
 SG_ STEER_FRACTION : 39|4@0- (0.1,0) [-0.7|0.7] "deg" XXX
BO_ 2566834709 DOOR: 2 XXX
 SG_ STATE : 0|2@1+ (1,0) [0|3] "" XXX
 SG_ KIND M : 8|2@1+ (1,0) [0|3] "" XXX
 SG_ LEFT m0 : 10|4@1+ (1,0) [0|15] "mm" XXX
 SG_ RIGHT m1 : 10|4@1+ (1,0) [0|15] "mm" XXX
VAL_ 2566834709 STATE 0 "closed" 1 "open" ;
"""
DOOR = 2566834709 & 0x1FFF_FFFF
_BUILT: list[Source] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _BUILT:
        _BUILT.pop().close()


@pytest.fixture(scope="module")
def dbc(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("dbc") / "car.dbc"
    path.write_text(DBC)
    return str(path)


def source(dbc: str, position: bytes | None = None, **options: object) -> Source:
    _BUILT.append(build_source("can", {"dbc": [dbc], **options}, SIGNALS, SystemClock(), position))
    return _BUILT[-1]


def drain(made: Source, most: int = 1 << 30, max_samples: int = 500) -> list[dict]:
    found: list[dict] = []
    while len(found) < most:
        try:
            batch = made.read(max_samples)
        except SourceEndedError:
            return found
        if batch is not None:
            columns = {**batch.columns, "t": batch.event_time_us}
            found += [{name: cells[row] for name, cells in columns.items()} for row in range(len(batch))]
    return found


def frame(id_: int, data: bytes, at_s: float = 1_700_000_000.0, **more: object) -> can.Message:
    return can.Message(timestamp=at_s, arbitration_id=id_, data=data, is_extended_id=id_ == DOOR, **more)


def write(path: Path, frames: list[can.Message]) -> str:
    with can.Logger(str(path)) as log:
        for one in frames:
            log.on_message_received(one)
    return str(path)


@pytest.fixture(scope="module")
def drive(shared_data, tmp_path_factory) -> tuple[str, Path]:
    """The first 20 s of the car's main bus as a candump log."""
    folder = shared_data / "vehicle/comma2k19/processed_log/CAN"
    t, address, src = (np.load(folder / "raw_can" / name) for name in ("t", "address", "src"))
    data = np.load(folder / "raw_can/data")
    keep = (src == 0) & (t < t[0] + 20)
    frames = [
        # numpy strips zeros at the end of a text: these messages have 8 bytes.
        frame(int(id_), bytes(body).ljust(8, b"\0"), float(at))
        for at, id_, body in zip(t[keep], address[keep], data[keep], strict=True)
    ]
    return write(tmp_path_factory.mktemp("drive") / "drive.log", frames), folder


def test_a_real_drive_decodes_to_what_the_car_decoded_itself(dbc, drive):
    log, folder = drive
    found = drain(source(dbc, log=log))
    wheels = [row["value"] / 3.6 for row in found if row["message"] == "WHEEL_SPEEDS"]
    times = [row["t"] / 1e6 for row in found if row["signal"] == "FR"]
    assert len(times) > 500
    assert _error(folder / "speed", times, np.array(wheels).reshape(-1, 4).mean(axis=1)) < 0.05
    angle = [row for row in found if row["signal"] == "STEER_ANGLE"]
    assert _error(folder / "steering_angle", [row["t"] / 1e6 for row in angle], [row["value"] for row in angle]) < 1.0
    assert {row["unit"] for row in found} == {"km/h", "deg"}


def _error(folder: Path, times: object, values: object) -> float:
    """The most by which ours is off, at the times at which the car's own decoding has a value."""
    at, truth = np.load(folder / "t"), np.load(folder / "value").reshape(-1)
    within = (at >= times[0]) & (at <= times[-1])
    return float(np.abs(np.interp(at[within], times, values) - truth[within]).max())


@pytest.mark.parametrize("max_samples", [1, 97, 5000])
def test_a_restart_anywhere_neither_skips_nor_repeats(dbc, tmp_path, max_samples):
    frames = [frame(180, bytes(5) + n.to_bytes(2, "big") + b"\0", 1_700_000_000 + n) for n in range(300)]
    log = write(tmp_path / "x.log", frames)
    seen: list[float] = []
    position, dice = None, random.Random(3)
    while True:
        made = source(dbc, position, log=log)
        try:
            for _ in range(dice.randrange(1, 60)):
                batch = made.read(max_samples)
                seen += batch.columns["value"]
                position = batch.position
        except SourceEndedError:
            break
    assert seen == [pytest.approx(n * 0.01) for n in range(300)]


@pytest.mark.parametrize("suffix", [".log", ".blf", ".asc", ".trc", ".csv", ".log.gz", ".asc.gz", ".csv.gz"])
def test_every_kind_of_log_says_the_same(dbc, tmp_path, suffix):
    frames = [frame(180, bytes(5) + bytes((0, n)) + b"\0", 1_700_000_000 + n) for n in range(50)]
    found = drain(source(dbc, log=write(tmp_path / f"x{suffix}", frames)))
    assert [row["value"] for row in found] == [pytest.approx(n * 0.01) for n in range(50)]
    assert {round((later["t"] - first["t"]) / 1e6, 2) for first, later in pairwise(found)} == {1.0}


def test_choices_multiplexed_and_extended_messages_are_told(dbc, tmp_path):
    frames = [frame(DOOR, bytes((1, 0 | 5 << 2))), frame(DOOR, bytes((3, 1 | 7 << 2)))]
    found = drain(source(dbc, log=write(tmp_path / "x.log", frames)))
    assert [(row["signal"], row["value"], row["choice"]) for row in found] == [
        ("STATE", 1.0, "open"),
        ("KIND", 0.0, None),
        ("LEFT", 5.0, None),
        ("STATE", 3.0, None),
        ("KIND", 1.0, None),
        ("RIGHT", 7.0, None),
    ]
    assert {(row["can_id"], row["message"], row["channel"]) for row in found} == {(DOOR, "DOOR", "x.log")}


def test_only_the_signals_asked_for_are_given_and_other_frames_are_counted(dbc, tmp_path):
    frames = [frame(180, bytes(8)), frame(37, bytes(8)), frame(99, b"x"), frame(180, b"", is_remote_frame=True)]
    made = source(dbc, log=write(tmp_path / "x.asc", frames), signals=["*.STEER_FRACTION"])
    assert [row["signal"] for row in drain(made)] == ["STEER_FRACTION"]
    assert made.rejected == {UNKNOWN: 2, "row: remote frame": 1}


def test_a_log_whose_times_count_from_zero_is_dated(dbc, tmp_path):
    log = write(tmp_path / "x.log", [frame(180, bytes(8), 5.0 + n) for n in range(3)])
    made = source(dbc, log=log, time_start="2024-05-01T00:00:00Z")
    batch = made.read(1)
    assert batch.event_time_us == [1_714_521_600_000_000]
    again = source(dbc, batch.position, log=log, time_start="2024-05-01T00:00:00Z")
    assert [row["t"] for row in drain(again)] == [1_714_521_601_000_000, 1_714_521_602_000_000]


def test_a_broken_log_gives_what_is_before_the_break_and_then_ends(dbc, tmp_path):
    path = tmp_path / "x.csv"
    write(path, [frame(180, bytes(8)) for _ in range(3)])
    with path.open("a") as file:
        file.write("what,is,this\n")
    made = source(dbc, log=str(path))
    assert len(drain(made)) == 3
    assert sum(count for reason, count in made.rejected.items() if reason.startswith("file: broken")) == 1


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("form", ["log", "asc", "csv"])
def test_a_packed_log_that_is_cut_short_gives_every_whole_frame_then_its_reason(dbc, tmp_path, form, packing):
    dice = random.Random(11)
    frames = [frame(180, dice.randbytes(5) + n.to_bytes(2, "big") + b"\0", 1_700_000_000 + n) for n in range(5_000)]
    plain = Path(write(tmp_path / f"x.{form}", frames)).read_bytes()
    pack = gzip.compress if packing == "gz" else zstandard.ZstdCompressor().compress
    body = pack(plain[: len(plain) // 2]) + pack(plain[len(plain) // 2 :])
    path = tmp_path / f"x.{form}.{packing}"
    path.write_bytes(body[: len(body) * 4 // 5])
    with open_unpacked(path) as unpacked:
        whole = unpacked.read().rpartition(b"\n")[0]
    rows = len(drain(source(dbc, log=_write(tmp_path / f"whole.{form}", whole + b"\n"))))
    assert 2_000 < rows < 5_000
    for max_samples in (1, 5_000):
        made, found = source(dbc, log=str(path)), []
        while len(found) < rows:
            batch = made.read(max_samples)
            found += batch.columns["value"]
        with pytest.raises(SourceError, match="cut short"):
            made.read(max_samples)
        assert found == [pytest.approx(n * 0.01) for n in range(rows)]
    path.write_bytes(body)
    assert len(drain(source(dbc, batch.position, log=str(path)))) == 5_000 - rows


def _write(path: Path, body: bytes) -> str:
    path.write_bytes(body)
    return str(path)


def test_a_torn_line_of_candump_costs_itself_alone_also_over_a_restart(dbc, tmp_path):
    path = tmp_path / "x.log"
    lines = [f"({n}.000000) can0 0B4#{'00' * 8}" for n in range(6)]
    lines[3:3] = ["(1600000000.12", "garbage"]
    path.write_text("\n".join(lines) + "\n")
    made = source(dbc, log=str(path))
    found = drain(made)
    assert [row["t"] for row in found] == [n * 1_000_000 for n in range(6)]
    assert made.rejected == {"row: no line of candump": 2}
    for at in range(1, 6):
        first = source(dbc, log=str(path))
        batches = [first.read(1) for _ in range(at)]
        rest = drain(source(dbc, log=str(path), position=batches[-1].position))
        assert [row["t"] for row in rest] == [n * 1_000_000 for n in range(at, 6)]


def test_a_bus_is_listened_to(dbc):
    made = source(dbc, channel="test-bus", interface="virtual", wait_ms=20)
    with can.Bus("test-bus", "virtual") as sender:
        for n in range(100):
            sender.send(frame(180, bytes(5) + bytes((0, n)) + b"\0"))
            sender.send(frame(77, b"x"))
        found = drain(made, most=100)
    assert [row["value"] for row in found] == [pytest.approx(n * 0.01) for n in range(100)]
    assert all(abs(row["t"] / 1e6 - time.time()) < 60 for row in found)
    assert made.read(10) is None


def test_what_is_wrong_is_told_before_anything_starts(dbc, tmp_path):
    (tmp_path / "bad.dbc").write_text("BO_ nonsense")
    good = {"dbc": [dbc], "log": "x.log"}
    for options, word in (
        ({**good, "dbc": []}, "empty"),
        ({**good, "dbc": [str(tmp_path / "none.dbc")]}, "cannot be read"),
        ({**good, "dbc": [str(tmp_path / "bad.dbc")]}, "not understood"),
        ({**good, "signals": ["NOSUCH.*"]}, "matches"),
        ({**good, "channel": "can0"}, "either"),
        ({"dbc": [dbc]}, "either"),
        ({**good, "time_start": "then"}, "time_start"),
    ):
        with pytest.raises(ConfigError, match=word):
            check_source("can", options, SIGNALS)
    with pytest.raises(ConfigError, match="can_signal"):
        check_source("can", good, builtin_contract("vehicle_telemetry"))
    with pytest.raises(SourceError, match="cannot be read"):
        source(dbc, log=str(tmp_path / "none.log"))
    with pytest.raises(SourceError, match="cannot be opened"):
        source(dbc, channel="nosuchcan9")
