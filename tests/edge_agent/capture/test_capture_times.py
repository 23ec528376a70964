"""Sources read times in the zone, unit and form that they are told, and wait for what is missing instead of using data up."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.checking import check_file
from edge_agent.errors import ConfigError
from edge_agent.sources.options import ZONE_GUESSED
from edge_agent.sources.registry import check_source
from schemas.contract import builtin_contract
from tests.fakes.sources import HandClock, build, close_all, column, count, drain

MAY_US = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


def times(batches: list[Any]) -> list[int]:
    return [time_us for batch in batches for time_us in batch.event_time_us]


def faults(folder: Path, kind: str, stream: str, **options: Any) -> list[str]:
    path = folder / "agent.toml"
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    head = 'device = "d1"\nstate_dir = "state"\n'
    path.write_text(f'{head}[[source]]\nkind = "{kind}"\nstream = "{stream}"\n[source.options]\n{lines}')
    return [fault.message for fault in check_file(path).faults]


def test_a_table_without_zones_is_an_error_of_check_and_is_not_used_up_until_one_is_given(tmp_path: Path) -> None:
    path = tmp_path / "local.csv"
    path.write_text("timestamp,speed_mps\n2024-05-01 02:00:00,1.5\n2024-10-27 02:30:00,2.5\n")
    (fault,) = faults(tmp_path, "replay", "vehicle_telemetry", path=str(path))
    assert "its times tell no zone: set time_zone" in fault
    source = build("replay", "vehicle_telemetry", path=str(path))
    with pytest.raises(ConfigError, match="set time_zone"):
        source.read(10)
    assert faults(tmp_path, "replay", "vehicle_telemetry", path=str(path), time_zone="Europe/Berlin") == []
    healed = build("replay", "vehicle_telemetry", path=str(path), time_zone="Europe/Berlin")
    got = drain(healed)
    assert times(got) == [MAY_US, 1_729_989_000_000_000]
    assert list(healed.rejected.values()) == [1]  # the second occurs twice


def test_an_hour_that_comes_twice_is_read_in_order_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "night.csv"
    local = [f"2024-10-27 02:{minute:02d}:00" for minute in (0, 20, 40)]
    path.write_text("time,speed_mps\n" + "".join(f"{text},1\n" for text in [*local, *local, "2024-10-27 03:00:00"]))
    options: dict[str, Any] = {"path": str(path), "time_zone": "Europe/Berlin"}
    source = build("replay", "vehicle_telemetry", **options)
    first = source.read(4)
    assert first is not None
    rest = drain(build("replay", "vehicle_telemetry", first.position, **options))
    found = times([first, *rest])
    assert found == [found[0] + step * 20 * 60 * 1_000_000 for step in range(7)]


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("timestamp,speed_mps\n1714521600000,1.5\n", {}),
        ("t,speed_mps\n1714521600000,1.5\n", {"time_column": "t", "time_unit": "ms"}),
        ("Datum;speed_mps\n01.05.2024 02:00:00;1,5\n",
         {"time_column": "Datum", "time_format": "%d.%m.%Y %H:%M:%S", "time_zone": "Europe/Berlin", "decimal": ","}),
        ("Event Time,v\n2024-05-01T00:00:00Z,1.5\n", {"rename": {"v": "speed_mps"}}),
        ("when,v\n2024-05-01T00:00:00Z,1.5\n", {"rename": {"v": "speed_mps", "when": "event_time"}}),
    ],
)  # fmt: skip
def test_a_table_is_read_as_its_options_say(tmp_path: Path, body: str, options: dict[str, Any]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(body)
    got = drain(build("replay", "vehicle_telemetry", path=str(path), **options))
    assert (times(got), column(got, "speed_mps")) == ([MAY_US], [1.5])


@pytest.mark.slow
def test_milliseconds_in_zeeks_json_are_known_by_their_size(tmp_path: Path) -> None:
    path = tmp_path / "conn.log"
    row = {"ts": 1714521600123.0, "uid": "F0", "id.orig_h": "10.1.0.1", "id.resp_h": "10.1.0.2", "proto": "tcp"}
    path.write_text((json.dumps(row) + "\n") * 3)
    assert faults(tmp_path, "zeek", "network_flow", path=str(path)) == []
    source = build("zeek", "network_flow", path=str(path))
    batch = source.read(10)
    assert batch is not None
    assert list(batch.event_time_us) == [MAY_US + 123_000] * 3
    path.write_text(json.dumps({**row, "ts": "2024-05-01T00:00:00"}) + "\n")
    assert "set time_zone" in faults(tmp_path, "zeek", "network_flow", path=str(path))[0]


def test_a_picture_whose_time_tells_no_zone_waits_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    (tmp_path / "a.json").write_text('{"taken": "2024-05-01 02:00:00"}')
    options = {"path": str(tmp_path), "time": "taken", "settle_ms": 0, "end_when_idle": True, "done": "delete"}
    clock = HandClock()
    source = build("directory", "camera_frame", None, clock, **options)
    assert count(drain(source, clock)) == 0
    assert "set time_zone" in next(iter(source.rejected))
    assert (tmp_path / "a.jpg").exists()
    got = drain(build("directory", "camera_frame", None, clock, **options, time_zone="Europe/Berlin"), clock)
    assert times(got) == [MAY_US]


def test_what_a_program_prints_without_a_zone_is_taken_as_utc_and_counted(tmp_path: Path) -> None:
    lines = [{"speed_mps": 1, "event_time": "2024-05-01T00:00:00"}, {"speed_mps": 2, "event_time": "2024-05-01T00:00:00Z"}]
    script = f"for line in {lines!r}: print(str(line).replace(chr(39), chr(34)))"
    command = [sys.executable, "-c", script]
    source = build("exec", "vehicle_telemetry", command=command)
    assert times(drain(source)) == [MAY_US, MAY_US]
    assert source.rejected == {ZONE_GUESSED: 1}
    source = build("exec", "vehicle_telemetry", command=command, time_zone="Europe/Berlin")
    assert times(drain(source)) == [MAY_US - 7_200_000_000, MAY_US]
    assert source.rejected == {}


@pytest.mark.parametrize("kind", ["replay", "zeek", "exec", "mqtt-local", "directory"])
def test_every_source_with_a_time_column_refuses_forms_that_cannot_be(kind: str) -> None:
    needed = {"exec": {"command": ["x"]}, "mqtt-local": {"topics": ["a"]}}.get(kind, {"path": "x"})
    contract = builtin_contract("camera_frame")
    check_source(kind, {**needed, "time_zone": "Europe/Berlin", "decimal": ",", "thousands": "."}, contract)
    check_source(kind, {**needed, "time_format": "%Y-%m-%d %z"}, contract)
    for wrong in (
        {"time_zone": "Mars/Phobos"}, {"time_format": "%d.%m.%Y"}, {"time_format": "%H:%M", "time_zone": "UTC"}, {"decimal": ";"},
        {"decimal": ",", "thousands": ","}, {"time_unit": "h"}, {"time_format": "%Y", "time_unit": "s", "time_zone": "UTC"},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            check_source(kind, {**needed, **wrong}, contract)


def test_a_start_time_without_a_zone_is_an_error_of_check(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "replay", "vehicle_telemetry", path="none.csv", time_start="2024-05-01T00:00:00")
    assert "time_start = '2024-05-01T00:00:00' tells no zone" in fault
    assert faults(tmp_path, "replay", "vehicle_telemetry", path="none.csv", time_start="2024-05-01T00:00:00Z") == []


def test_check_tells_of_a_file_of_which_the_core_would_refuse_every_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for body, words in (
        ("time,v\n1714521600,1\n", "required column speed_mps of contract vehicle_telemetry"),
        ("time;speed_mps\n1714521600;1,5\n", "set decimal"),
        ("time,speed_mps\n0.1,1\n0.2,2\n", "event_time: before 1990"),
        ("time,speed_mps\nnever,1\n", "no row becomes a sample"),
    ):
        path.write_text(body)
        (fault,) = faults(tmp_path, "replay", "vehicle_telemetry", path=str(path))
        assert words in fault
    assert "required columns" in faults(tmp_path, "syslog", "network_flow", listen=["udp://127.0.0.1:5514"])[0]
    assert faults(tmp_path, "syslog", "log_line", listen=["udp://127.0.0.1:5514"]) == []
    assert not (tmp_path / "state").exists()
