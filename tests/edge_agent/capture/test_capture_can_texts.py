"""Candump's texts in all their forms: error frames, torn bytes, dates without a zone, times that count from zero."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.checking import check_file
from edge_agent.errors import ConfigError, SourceEndedError
from edge_agent.sources.api import SampleBatch
from edge_agent.sources.can.decoder import FAST_PACKET
from edge_agent.sources.registry import GuardedSource
from tests.fakes.sources import build, close_all, column

MAY_US = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z
LINE = " ({time})  can0  123   [2]  0{n} 02\n"


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


def frames(path: Path, text: str, stream: str = "can_frame", **options: Any) -> tuple[GuardedSource, list[SampleBatch]]:
    path.write_text(text)
    source = build("can", stream, log=str(path), **options)
    batches: list[SampleBatch] = []
    try:
        while (batch := source.read(100)) is not None:
            batches.append(batch)
    except SourceEndedError:
        pass
    return source, batches


def times(batches: list[SampleBatch]) -> list[int]:
    return [time for batch in batches for time in batch.event_time_us]


@pytest.mark.parametrize("id_", ["20000004", "20000080", "200000FF"])
def test_an_error_frame_in_a_log_is_counted_and_is_no_data(tmp_path: Path, id_: str) -> None:
    text = f"(1700000000.1) can0 {id_}#0000000000000000\n(1700000000.2) can0 123#01\n"
    source, batches = frames(tmp_path / "c.log", text)
    assert column(batches, "can_id") == [0x123]
    assert source.rejected == {"row: error frame": 1}


def test_half_a_byte_at_the_end_of_a_torn_line_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    source, batches = frames(tmp_path / "c.log", "(1700000000.1) can0 123#0102030\n(1700000000.2) can0 123#01\n")
    assert column(batches, "data") == [b"\x01"]
    assert source.rejected == {"row: no line of candump": 1}


def test_a_byte_order_mark_points_between_bytes_and_directions_cost_no_frame(tmp_path: Path) -> None:
    text = "\ufeff(1700000000.1) can0 123#01.02\n(1700000000.2) can0 123#R8 T\n(1700000000.3) can0 123##30102 R\n"
    source, batches = frames(tmp_path / "c.log", text + "(1700000000.4) can0 123#1122334455667788_9\r\n")
    assert column(batches, "data") == [b"\1\2", b"", b"\1\2", bytes.fromhex("1122334455667788")]
    assert column(batches, "is_remote") == [False, True, False, False]
    assert column(batches, "is_fd") == [False, False, True, False]
    assert source.rejected == {}


def test_dates_without_a_zone_wait_for_one_and_are_read_in_it(tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    local = ("2024-05-01 02:00:00.000000", "2024-10-27 02:30:00.000000", "2024-10-27 02:10:00.000000")
    text = "".join(LINE.format(time=time, n=n) for n, time in enumerate(local))
    with pytest.raises(ConfigError, match="set time_zone"):
        frames(path, text)
    _, batches = frames(path, text, time_zone="Europe/Berlin")
    assert times(batches) == [MAY_US, 1_729_989_000_000_000, 1_729_991_400_000_000]  # the third is after the clocks were set back
    with pytest.raises(ConfigError, match="unknown here"):
        frames(path, text, time_zone="Berlin")


@pytest.mark.parametrize("text", [LINE.format(time="000.000000", n=1), "(0000000000.010000) can0 123#01\n"], ids=["view", "log"])
def test_check_tells_times_that_count_from_zero_and_time_start_heals_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.toml"
    head = 'device = "d1"\nstate_dir = "state"\n[[source]]\nkind = "can"\nstream = "can_frame"\n[source.options]\nlog = "c.log"\n'
    (tmp_path / "c.log").write_text(text)
    path.write_text(head)
    assert ["before 1990" in fault.message for fault in check_file(path).faults] == [True]
    path.write_text(head + 'time_start = "2024-05-01T00:00:00Z"\n')
    assert check_file(path).faults == ()
    assert times(frames(tmp_path / "c.log", text, time_start="2024-05-01T00:00:00Z")[1]) == [MAY_US]


def test_distances_from_frame_to_frame_add_up_also_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "c.log"
    text = "".join(LINE.format(time=f"00{n % 2}.250000", n=n) for n in range(4))
    _, batches = frames(path, text, time_start="2024-05-01T00:00:00Z")
    assert times(batches) == [MAY_US + after for after in (0, 1_250_000, 1_500_000, 2_750_000)]
    first = build("can", "can_frame", log=str(path), time_start="2024-05-01T00:00:00Z").read(3)
    assert first is not None
    again = build("can", "can_frame", first.position, log=str(path), time_start="2024-05-01T00:00:00Z").read(9)
    assert again is not None
    assert times([first, again]) == times(batches)


def test_pieces_of_an_nmea_2000_message_make_no_signals_up(tmp_path: Path) -> None:
    dbc = tmp_path / "n2k.dbc"
    dbc.write_text(
        'VERSION ""\nBU_: X\nBO_ 2583168510 GNSS: 43 X\n'
        ' SG_ SID : 0|8@1+ (1,0) [0|0] "" X\n SG_ DATE : 8|16@1+ (1,0) [0|0] "d" X\n'
    )
    text = "(1700000000.1) can0 0DF80503#402B010203040506\n(1700000000.2) can0 0DF80503#4107080910111213\n"
    source, batches = frames(tmp_path / "c.log", text, "can_signal", dbc=[str(dbc)])
    assert batches == []
    assert source.rejected[FAST_PACKET] == 2
