"""Programs as sources, and what any source says of wrong options and missing files."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import SampleBatch
from edge_agent.sources.registry import GuardedSource
from tests.fakes.sources import build, close_all, column, drain


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


def run(program: str, stream: str = "vehicle_telemetry", **options: Any) -> GuardedSource:
    return build("exec", stream, command=[sys.executable, "-c", program], wait_ms=2000, **options)


def test_a_program_s_lines_become_samples() -> None:
    source = run('for i in range(300): print(\'{"event_time": %d, "speed_mps": %d}\' % (i, i))')
    got = drain(source)
    assert column(got, "speed_mps") == [float(number) for number in range(300)]
    assert [time for batch in got for time in batch.event_time_us] == [number * 1_000_000 for number in range(300)]


def test_a_program_s_payload_is_base64() -> None:
    source = run('print(\'{"media_type": "image/png", "payload_b64": "AAEC"}\')', "camera_frame")
    assert [batch.payloads for batch in drain(source)] == [[b"\x00\x01\x02"]]


def test_a_program_that_fails_ends_the_source_with_its_last_words() -> None:
    source = run("import sys; print('{\"speed_mps\": 1}'); sys.exit('sensor is on fire')")
    got: list[SampleBatch | None] = []
    with pytest.raises(SourceError, match=r"exit code 1.*sensor is on fire"):
        got.extend(source.read(10) for _ in range(100))
    assert [batch.columns["speed_mps"] for batch in got if batch is not None] == [[1.0]]


def test_an_endless_line_takes_no_memory_and_is_counted() -> None:
    source = run("print('x' * 5_000_000); print('{\"speed_mps\": 2}')", max_line_bytes=1000)
    assert column(drain(source), "speed_mps") == [2.0]
    assert source.rejected == {"row: line above 1000 bytes": 1}


# -- options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("laser", {}, "laser"),
        ("replay", {"path": "x", "rate": 1}, "rate"),
        ("replay", {}, "path"),
        ("replay", {"path": "x", "rename": {"a": "no_such"}}, "no_such"),
        ("replay", {"path": "x", "time_start": "yesterday"}, "time_start"),
        ("directory", {"path": "x"}, "no payload"),
        ("exec", {"command": []}, "command"),
        ("exec", {"command": "ls"}, "command"),
    ],
)
def test_a_wrong_option_is_named(kind: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(kind, "vehicle_telemetry", **options)


def test_a_missing_file_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent\.csv"):
        build("replay", "vehicle_telemetry", path=str(tmp_path / "absent.csv"))
