"""CAN: a real car's bus, decoded by a DBC, must say what the car's own decoding said; every frame once."""

import gzip
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import can
import numpy as np
import pytest
import zstandard

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from edge_agent.sources.api import Source
from edge_agent.sources.can.decoder import UNKNOWN
from edge_agent.sources.files.unpacking import open_unpacked
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from schemas.contract import builtin_contract
from tests.plant.present import present

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
_BUILT: list[GuardedSource] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _BUILT:
        _BUILT.pop().close()


@pytest.fixture(scope="module")
def dbc(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dbc") / "car.dbc"
    path.write_text(DBC)
    return str(path)


def source(dbc: str, position: bytes | None = None, **options: Any) -> GuardedSource:
    _BUILT.append(build_source("can", {"dbc": [dbc], **options}, SIGNALS, SystemClock(), position))
    return _BUILT[-1]


def drain(made: Source, most: int = 1 << 30, max_samples: int = 500) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < most:
        try:
            batch = made.read(max_samples)
        except SourceEndedError:
            return found
        if batch is not None:
            columns = {**batch.columns, "t": batch.event_time_us}
            found += [{name: cells[row] for name, cells in columns.items()} for row in range(len(batch))]
    return found


def frame(id_: int, data: bytes, at_s: float = 1_700_000_000.0, **more: Any) -> can.Message:
    return can.Message(timestamp=at_s, arbitration_id=id_, data=data, is_extended_id=id_ == DOOR, **more)


def write(path: Path, frames: list[can.Message]) -> str:
    with can.Logger(str(path)) as log:
        for one in frames:
            log.on_message_received(one)
    return str(path)


@pytest.fixture(scope="module")
def drive(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
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


def test_a_real_drive_decodes_to_what_the_car_decoded_itself(dbc: str, drive: tuple[str, Path]) -> None:
    log, folder = drive
    found = drain(source(dbc, log=log))
    wheels = [row["value"] / 3.6 for row in found if row["message"] == "WHEEL_SPEEDS"]
    times = [row["t"] / 1e6 for row in found if row["signal"] == "FR"]
    assert len(times) > 500
    assert _error(folder / "speed", times, np.array(wheels).reshape(-1, 4).mean(axis=1)) < 0.05
    angle = [row for row in found if row["signal"] == "STEER_ANGLE"]
    assert _error(folder / "steering_angle", [row["t"] / 1e6 for row in angle], [row["value"] for row in angle]) < 1.0
    assert {row["unit"] for row in found} == {"km/h", "deg"}


def _error(folder: Path, times: Any, values: Any) -> float:
    """The most by which ours is off, at the times at which the car's own decoding has a value."""
    at, truth = np.load(folder / "t"), np.load(folder / "value").reshape(-1)
    within = (at >= times[0]) & (at <= times[-1])
    return float(np.abs(np.interp(at[within], times, values) - truth[within]).max())


@pytest.mark.parametrize("max_samples", [1, 97, 5000])
def test_a_restart_anywhere_neither_skips_nor_repeats(dbc: str, tmp_path: Path, max_samples: int) -> None:
    frames = [frame(180, bytes(5) + n.to_bytes(2, "big") + b"\0", 1_700_000_000 + n) for n in range(300)]
    log = write(tmp_path / "x.log", frames)
    seen: list[object] = []
    position, dice = None, random.Random(3)
    while True:
        made = source(dbc, position, log=log)
        try:
            for _ in range(dice.randrange(1, 60)):
                batch = present(made.read(max_samples))
                seen += batch.columns["value"]
                position = batch.position
        except SourceEndedError:
            break
    assert seen == [pytest.approx(n * 0.01) for n in range(300)]


@pytest.mark.parametrize("suffix", [".log", ".blf", ".asc", ".trc", ".csv", ".log.gz", ".asc.gz", ".csv.gz"])
def test_every_kind_of_log_says_the_same(dbc: str, tmp_path: Path, suffix: str) -> None:
    frames = [frame(180, bytes(5) + bytes((0, n)) + b"\0", 1_700_000_000 + n) for n in range(50)]
    found = drain(source(dbc, log=write(tmp_path / f"x{suffix}", frames)))
    assert [row["value"] for row in found] == [pytest.approx(n * 0.01) for n in range(50)]
    assert {round((later["t"] - first["t"]) / 1e6, 2) for first, later in pairwise(found)} == {1.0}


def test_choices_multiplexed_and_extended_messages_are_decoded(dbc: str, tmp_path: Path) -> None:
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
    assert {(row["can_id"], row["message"], row["channel"]) for row in found} == {(DOOR, "DOOR", "vcan0")}


def test_only_configured_signals_are_given_and_other_frames_are_counted(dbc: str, tmp_path: Path) -> None:
    frames = [frame(180, bytes(8)), frame(37, bytes(8)), frame(99, b"x"), frame(180, b"", is_remote_frame=True)]
    made = source(dbc, log=write(tmp_path / "x.asc", frames), signals=["*.STEER_FRACTION"])
    assert [row["signal"] for row in drain(made)] == ["STEER_FRACTION"]
    assert made.rejected == {UNKNOWN: 2, "row: remote frame": 1}


def test_a_log_whose_times_count_from_zero_is_dated(dbc: str, tmp_path: Path) -> None:
    log = write(tmp_path / "x.log", [frame(180, bytes(8), 5.0 + n) for n in range(3)])
    made = source(dbc, log=log, time_start="2024-05-01T00:00:00Z")
    batch = present(made.read(1))
    assert batch.event_time_us == [1_714_521_600_000_000]
    again = source(dbc, batch.position, log=log, time_start="2024-05-01T00:00:00Z")
    assert [row["t"] for row in drain(again)] == [1_714_521_601_000_000, 1_714_521_602_000_000]


def test_a_broken_log_gives_what_is_before_the_break_and_then_ends(dbc: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write(path, [frame(180, bytes(8)) for _ in range(3)])
    with path.open("a") as file:
        file.write("what,is,this\n")
    made = source(dbc, log=str(path))
    assert len(drain(made)) == 3
    assert sum(count for reason, count in made.rejected.items() if reason.startswith("file: broken")) == 1


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("form", ["log", "asc", "csv"])
def test_a_packed_log_that_is_cut_short_gives_every_whole_frame_then_its_reason(
    dbc: str, tmp_path: Path, form: str, packing: str
) -> None:
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
        made, found = source(dbc, log=str(path)), list[object]()
        while len(found) < rows:
            batch = present(made.read(max_samples))
            found += batch.columns["value"]
        with pytest.raises(SourceError, match="cut short"):
            made.read(max_samples)
        assert found == [pytest.approx(n * 0.01) for n in range(rows)]
    path.write_bytes(body)
    assert len(drain(source(dbc, batch.position, log=str(path)))) == 5_000 - rows


def _write(path: Path, body: bytes) -> str:
    path.write_bytes(body)
    return str(path)


def test_a_torn_line_of_candump_costs_itself_alone_also_over_a_restart(dbc: str, tmp_path: Path) -> None:
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
        batches = [present(first.read(1)) for _ in range(at)]
        rest = drain(source(dbc, log=str(path), position=batches[-1].position))
        assert [row["t"] for row in rest] == [n * 1_000_000 for n in range(at, 6)]


def test_a_bus_is_listened_to(dbc: str) -> None:
    made = source(dbc, channel="test-bus", interface="virtual", wait_ms=20)
    with can.Bus("test-bus", "virtual") as sender:
        for n in range(100):
            sender.send(frame(180, bytes(5) + bytes((0, n)) + b"\0"))
            sender.send(frame(77, b"x"))
        found = drain(made, most=100)
    assert [row["value"] for row in found] == [pytest.approx(n * 0.01) for n in range(100)]
    assert all(abs(row["t"] / 1e6 - time.time()) < 60 for row in found)
    assert made.read(10) is None


def test_mistakes_are_reported_before_anything_starts(dbc: str, tmp_path: Path) -> None:
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


TRUCK = """
VERSION ""
BU_: ECU
BO_ 2566844926 CCVS1: 8 ECU
 SG_ SPEED : 8|16@1+ (0.00390625,0) [0|250.996] "km/h" ECU
BO_ 2566834702 OWN: 8 ECU
 SG_ COUNT : 0|8@1+ (1,0) [0|255] "" ECU
BO_ 257 MUX: 8 ECU
 SG_ ALWAYS : 56|8@1+ (1,0) [0|255] "" ECU
 SG_ SEL M : 0|8@1+ (1,0) [0|0] "" ECU
 SG_ A m0 : 8|16@1+ (1,0) [0|0] "V" ECU
 SG_ B m1 : 8|16@1- (1,0) [0|0] "A" ECU
"""
SPEED = bytes((0xFF, 0x00, 0x50, 0, 0, 0, 0, 0))  # 80 km/h


def extended(id_: int, data: bytes, **more: Any) -> can.Message:
    return can.Message(timestamp=1_700_000_000.0, arbitration_id=id_, data=data, is_extended_id=True, **more)


@pytest.fixture
def truck(tmp_path: Path) -> str:
    path = tmp_path / "truck.dbc"
    path.write_text(TRUCK)
    return str(path)


def test_a_j1939_message_is_found_whatever_its_priority_and_sender_and_says_who_sent_it(truck: str, tmp_path: Path) -> None:
    frames = [extended(id_, SPEED) for id_ in (0x18FEF1FE, 0x18FEF100, 0x0CFEF127, 0x18FEF2FE)]
    made = source(truck, log=write(tmp_path / "x.log", frames))
    found = drain(made)
    assert [(row["can_id"], row["source_address"], row["value"]) for row in found] == [
        (0x18FEF1FE, 0xFE, 80.0),
        (0x18FEF100, 0x00, 80.0),
        (0x0CFEF127, 0x27, 80.0),
    ]
    assert made.rejected == {UNKNOWN: 1}, "another group number is another message"


def test_a_message_for_one_receiver_is_found_whoever_that_is(tmp_path: Path) -> None:
    (tmp_path / "tsc.dbc").write_text(
        'VERSION ""\nBU_: ECU\nBO_ 2348810494 TSC1: 8 ECU\n SG_ TORQUE : 0|8@1+ (1,-125) [-125|125] "%" ECU\n'
    )
    frames = [extended(0x0C000000 | receiver << 8 | sender, bytes((130,))) for receiver, sender in ((0x00, 0x0B), (0x21, 0x03))]
    found = drain(source(str(tmp_path / "tsc.dbc"), log=write(tmp_path / "x.log", frames)))
    assert [(row["value"], row["source_address"]) for row in found] == [(5.0, 0x0B), (5.0, 0x03)]


def test_extended_ids_of_a_maker_are_matched_whole_by_default(truck: str, tmp_path: Path) -> None:
    frames = [extended(2566834702 & 0x1FFF_FFFF, b"\1"), extended((2566834702 & 0x1FFF_FFFF) ^ 0xFF, b"\2")]
    log = write(tmp_path / "x.log", frames)
    assert [row["value"] for row in drain(source(truck, log=log))] == [1.0]
    assert [row["value"] for row in drain(source(truck, log=log, j1939="yes"))] == [1.0, 2.0]
    speed = write(tmp_path / "y.log", [extended(0x18FEF100, SPEED)])
    assert drain(source(truck, log=speed, j1939="no")) == []


def test_an_unknown_multiplexer_value_costs_only_its_own_signals(truck: str, tmp_path: Path) -> None:
    frames = [frame(257, bytes((sel, 5, 0, 0, 0, 0, 0, 9))) for sel in (0, 7, 1)]
    made = source(truck, log=write(tmp_path / "x.log", frames))
    found = [(row["signal"], row["value"]) for row in drain(made)]
    assert found == [
        *(("SEL", 0.0), ("ALWAYS", 9.0), ("A", 5.0)),
        *(("SEL", 7.0), ("ALWAYS", 9.0)),
        *(("SEL", 1.0), ("ALWAYS", 9.0), ("B", 5.0)),
    ]
    assert made.rejected == {"report: MUX: multiplexer SEL has a value without signals": 1}


def test_signals_behind_the_end_of_a_short_frame_are_counted_and_others_kept(truck: str, dbc: str, tmp_path: Path) -> None:
    made = source(truck, log=write(tmp_path / "x.log", [extended(0x18FEF100, SPEED[:2]), frame(257, bytes((0, 5, 0)))]))
    assert [(row["signal"], row["value"]) for row in drain(made)] == [("SEL", 0.0), ("A", 5.0)]
    assert made.rejected == {
        "cell: CCVS1: signals behind the end of a short frame": 1, "cell: MUX: signals behind the end of a short frame": 1,
    }  # fmt: skip
    few = source(dbc, log=write(tmp_path / "y.log", [frame(170, bytes(2))]), signals=["*.FR"])
    assert (len(drain(few)), few.rejected) == (1, {})


def test_multiplexers_within_multiplexers_are_followed(tmp_path: Path) -> None:
    (tmp_path / "m.dbc").write_text(
        'VERSION ""\nBU_: E\nBO_ 300 M: 8 E\n SG_ S0 M : 0|8@1+ (1,0) [0|0] "" E\n SG_ S1 m1M : 8|8@1+ (1,0) [0|0] "" E\n'
        ' SG_ X m2 : 16|8@1+ (1,0) [0|0] "" E\n SG_ Y m1 : 24|8@1+ (1,0) [0|0] "" E\n'
        "SG_MUL_VAL_ 300 S1 S0 1-1;\nSG_MUL_VAL_ 300 X S1 2-2;\nSG_MUL_VAL_ 300 Y S0 1-1;\n"
    )
    frames = [frame(300, bytes((1, inner, 42, 43, 0, 0, 0, 0))) for inner in (2, 3)]
    found = [
        (row["signal"], row["value"]) for row in drain(source(str(tmp_path / "m.dbc"), log=write(tmp_path / "x.log", frames)))
    ]
    assert found == [("S0", 1.0), ("S1", 2.0), ("Y", 43.0), ("X", 42.0), ("S0", 1.0), ("S1", 3.0), ("Y", 43.0)]


def test_each_channel_of_a_log_has_its_own_database_and_is_named(dbc: str, truck: str, tmp_path: Path) -> None:
    body = bytes(5) + bytes((0, 100)) + b"\0"
    frames = [frame(180, body, channel="can0"), frame(180, body, channel="can1"), extended(0x18FEF100, SPEED, channel="can1")]
    log = write(tmp_path / "x.log", frames)
    made = source(dbc, log=log, dbc_by_channel={"can1": [truck]})
    assert [(row["channel"], row["message"]) for row in drain(made)] == [("can0", "SPEED"), ("can1", "CCVS1")]
    assert made.rejected == {UNKNOWN: 1}


def test_frames_without_a_database_are_samples_of_can_frame(tmp_path: Path) -> None:
    frames = [
        frame(0x123, b"\1\2", channel="can0"),
        extended(0x18FEF127, SPEED, channel="can1"),
        can.Message(
            timestamp=1_700_000_000.0, arbitration_id=5, is_extended_id=False, is_remote_frame=True, dlc=0, channel="can0"
        ),
        can.Message(
            timestamp=1_700_000_000.0, arbitration_id=6, is_extended_id=False, is_fd=True, data=bytes(64), channel="can0"
        ),
    ]
    options = {"log": write(tmp_path / "x.log", frames)}
    check_source("can", options, builtin_contract("can_frame"))
    _BUILT.append(build_source("can", options, builtin_contract("can_frame"), SystemClock(), None))
    found = drain(_BUILT[-1])
    assert [(row["channel"], row["can_id"], row["is_extended"], len(row["data"])) for row in found] == [
        ("can0", 0x123, False, 2),
        ("can1", 0x18FEF127, True, 8),
        ("can0", 5, False, 0),
        ("can0", 6, False, 64),
    ]
    assert [(row["group_number"], row["source_address"]) for row in found][1] == (0xFEF1, 0x27)
    assert [row["is_remote"] for row in found] == [False, False, True, False]
    assert [row["is_fd"] for row in found] == [False, False, False, True]
    with pytest.raises(ConfigError, match="leave dbc out"):
        check_source("can", {**options, "dbc": ["x.dbc"]}, builtin_contract("can_frame"))


def test_a_log_of_which_no_frame_matched_is_a_warning(dbc: str, tmp_path: Path) -> None:
    made = source(dbc, log=write(tmp_path / "x.log", [frame(77, b"x") for _ in range(3)]))
    assert drain(made) == []
    assert made.rejected == {UNKNOWN: 3, "file: no frame matched: correct dbc, signals or j1939": 1}


VIEW = """\
 (1700000000.010000)  can0  0B4   [8]  00 00 00 00 00 00 64 00
 (1700000000.020000)  can1  18FEF100   [8]  FF 00 50 00 00 00 00 00   '..P.....'
 (1700000000.030000)  can0  RX - -  0B4   [8]  00 00 00 00 00 00 65 00
 (1700000000.040000)  can0  0B4   [8]  remote request
 (1700000000.050000)  can0  0B4  [64]  {long}
 (2023-11-14 22:13:20.060000)  can0  0B4   [8]  00 00 00 00 00 00 66 00
 (1700000000.070000)  can0  0B4   [8]  00 00
  can0  0B4   [8]  00 00 00 00 00 00 67 00
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["view.log", "view.txt"])
def test_what_candump_prints_for_people_is_read(dbc: str, truck: str, tmp_path: Path, newline: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(VIEW.format(long="00 " * 6 + "68 " + "00 " * 57).replace("\n", newline).encode())
    made = source(dbc, log=str(path), dbc_by_channel={"can1": [truck]}, time_zone="UTC")
    found = [(row["t"] % 1_000_000, row["channel"], round(row["value"], 6)) for row in drain(made)]
    assert found == [
        (10_000, "can0", 1.0),
        (20_000, "can1", 80.0),
        (30_000, "can0", 1.01),
        (50_000, "can0", 1.04),
        (60_000, "can0", 1.02),
    ]
    assert made.rejected == {
        "row: remote frame": 1,
        "row: no line of candump": 1,
        "row: no time: record with candump -t a, or with -L": 1,
    }


def test_a_view_log_goes_on_where_it_was_left(dbc: str, tmp_path: Path) -> None:
    path = tmp_path / "v.log"
    path.write_text("".join(f" (17000000{n:02d}.000000)  can0  0B4   [8]  00 00 00 00 00 00 {n:02X} 00\n" for n in range(9)))
    for at in range(1, 9):
        first = source(dbc, log=str(path))
        batches = [present(first.read(1)) for _ in range(at)]
        assert len(drain(source(dbc, batches[-1].position, log=str(path)))) == 9 - at


def test_the_kernel_filter_takes_all_senders_of_a_group(truck: str) -> None:
    with can.Bus("truck-bus", "virtual") as sender:
        made = source(truck, channel="truck-bus", interface="virtual", wait_ms=20)
        for id_ in (0x18FEF100, 0x0CFEF127, 0x18FEF2FE):
            sender.send(extended(id_, SPEED))
        found = drain(made, most=2)
    assert [row["source_address"] for row in found] == [0, 0x27]
    assert UNKNOWN not in made.rejected
