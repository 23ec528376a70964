"""CAN logs in MF4, as car makers' recorders write them: the same samples as from a candump log of the same frames."""

import random
from pathlib import Path

import can
import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SourceEndedError
from edge_agent.sources.api import Source
from edge_agent.sources.registry import build_source
from schemas.contract import builtin_contract
from tests.plant.present import present

pytest.importorskip("asammdf", reason="pip install 'catchment[mf4]'")
SIGNALS = builtin_contract("can_signal")
DBC = """
VERSION ""
BU_: XXX
BO_ 180 SPEED: 8 XXX
 SG_ SPEED : 47|16@0+ (0.01,0) [0|250] "km/h" XXX
BO_ 2566834709 DOOR: 2 XXX
 SG_ STATE : 0|2@1+ (1,0) [0|3] "" XXX
BO_ 300 LONG: 64 XXX
 SG_ LAST : 504|8@1+ (1,0) [0|255] "" XXX
"""
DOOR = 2566834709 & 0x1FFF_FFFF


@pytest.fixture(scope="module")
def dbc(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dbc") / "car.dbc"
    path.write_text(DBC)
    return str(path)


def frames() -> list[can.Message]:
    chance, made = random.Random(4), []
    for n in range(300):
        kind = chance.randrange(4)
        at_s = 1_700_000_000.0 + n / 8  # exact in binary
        if kind == 0:
            made.append(can.Message(timestamp=at_s, arbitration_id=DOOR, is_extended_id=True, data=bytes((n % 4, 0))))
        elif kind == 1:
            made.append(can.Message(timestamp=at_s, arbitration_id=300, is_extended_id=False, is_fd=True, data=bytes(63) + b"\7"))
        else:
            speed = bytes(5) + n.to_bytes(2, "big") + b"\0"
            made.append(can.Message(timestamp=at_s, arbitration_id=180, is_extended_id=False, data=speed))
    return made


def write(path: Path) -> str:
    with can.Logger(str(path)) as log:
        for one in frames():
            log.on_message_received(one)
    return str(path)


def source(dbc: str, log: str, position: bytes | None = None) -> Source:
    return build_source("can", {"dbc": [dbc], "log": log}, SIGNALS, SystemClock(), position)


def rows(made: Source, most: int = 1_000, max_samples: int = 50) -> tuple[list[tuple[object, ...]], bytes | None]:
    found: list[tuple[object, ...]] = []
    position = None
    while len(found) < most:
        try:
            batch = present(made.read(max_samples))
        except SourceEndedError:
            break
        found += list(
            zip(batch.event_time_us, *(batch.columns[name] for name in sorted(batch.columns) if name != "channel"), strict=True)
        )
        position = batch.position
    made.close()
    return found, position


def test_an_mf4_log_gives_the_same_samples_as_a_candump_log_of_the_same_frames(dbc: str, tmp_path: Path) -> None:
    expected, _ = rows(source(dbc, write(tmp_path / "x.log")))
    assert len(expected) == 300
    assert {row[0] for row in expected} > {1_700_000_000_125_000}
    assert rows(source(dbc, write(tmp_path / "x.mf4")))[0] == expected


def test_a_restart_in_the_middle_of_an_mf4_log_neither_skips_nor_repeats(dbc: str, tmp_path: Path) -> None:
    log = write(tmp_path / "x.mf4")
    whole, _ = rows(source(dbc, log))
    first, position = rows(source(dbc, log), most=100, max_samples=7)
    rest, _ = rows(source(dbc, log, position))
    assert first + rest == whole
