"""What others write: odd numbers, separators, encodings, file names and programs cost one cell or row, never the source."""

import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from edge_agent.pictures.child import as_errors
from edge_agent.sources.api import SampleBatch, Source
from edge_agent.sources.directory import source as directory_source
from edge_agent.sources.directory.picture_formats import ImageHeader, read_image_header
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from edge_agent.sources.rows.mapping import NO_COLUMN
from schemas.contract import builtin_contract

_BUILT: list[GuardedSource] = []
HUGE = "9" * 5_000


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _BUILT:
        _BUILT.pop().close()


def build(kind: str, stream: str, position: bytes | None = None, **options: object) -> GuardedSource:
    _BUILT.append(build_source(kind, options, builtin_contract(stream), SystemClock(), position))
    return _BUILT[-1]


def replay(path: Path, content: str | bytes, stream: str = "vehicle_telemetry") -> tuple[list[dict[str, object]], dict[str, int]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = build("replay", stream, path=str(path))
    return drain(source), source.rejected


def drain(source: Source) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    try:
        while True:
            batch = source.read(1_000)
            found += [] if batch is None else rows_of(batch)
    except SourceEndedError:
        return found


def rows_of(batch: SampleBatch) -> list[dict[str, object]]:
    names = batch.columns
    return [{name: names[name][row] for name in names if names[name][row] is not None} for row in range(len(batch))]


@pytest.mark.parametrize(
    ("table", "rows", "reason"),
    [
        (f"ts,orig_pkts\n1,{HUGE}\n2,3\n", [{}, {"orig_pkts": 3}], "cell orig_pkts: integer out of range"),
        (f"ts,orig_pkts\n1,x{HUGE}\n2,3\n", [{}, {"orig_pkts": 3}], "cell orig_pkts: not an integer"),
        (f"ts,orig_pkts\n{HUGE},1\n2,3\n", [{"orig_pkts": 3}], "row: event time is not a time"),
        ('{"ts":1,"uid":' + "[" * 600 + "]" * 600 + '}\n{"ts":2,"uid":"y"}\n', [{}, {"uid": "y"}], "cell uid: not text"),
    ],
)
def test_numbers_of_thousands_of_digits_and_deep_nests_cost_a_cell_and_not_the_source(
    tmp_path: Path, table: str, rows: list[dict[str, int]], reason: str
) -> None:
    assert replay(tmp_path / "x.table", table, "network_flow") == (rows, {reason: 1})


def test_not_a_number_passes_as_json_as_it_does_as_csv(tmp_path: Path) -> None:
    found, refused = replay(tmp_path / "x.jsonl", '{"ts":1,"speed_mps":NaN}\n{"ts":2,"speed_mps":-Infinity}\n{"ts":NaN"}\n')
    assert [str(row["speed_mps"]) for row in found] == ["nan", "-inf"]
    assert refused == {"row: no JSON": 1}
    lone = '{"ts":1,"speed_mps":NaN,"note":"\\ud800"}\n'
    assert replay(tmp_path / "y.jsonl", lone, "log_line") == ([], {"row: no JSON": 1})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_header_tells_the_separator(tmp_path: Path, separator: str) -> None:
    lines = [["ts", '"speed, m/s; of the car"', "speed_mps"], ["1", "x", "2.5"], ["2", '"a;b,c|d\te"', "3"]]
    found, refused = replay(tmp_path / "x.csv", "".join(separator.join(line) + "\r\n" for line in lines))
    assert (found, refused) == ([{"speed_mps": 2.5}, {"speed_mps": 3.0}], {})


@pytest.mark.parametrize("content", ["a,b\n1,2\n3,4\n", "speed\n1\n2\n", '{"speed":1}\n{"speed":2}\n'])
def test_a_table_with_none_of_the_contract_s_columns_becomes_no_samples(tmp_path: Path, content: str) -> None:
    assert replay(tmp_path / "x", content) == ([], {NO_COLUMN: 2})


def test_a_long_cell_is_a_cell_and_an_open_quote_costs_its_own_line(tmp_path: Path) -> None:
    found, refused = replay(tmp_path / "x.csv", "ts,message\n1," + "x" * 200_000 + "\n2,y\n", "log_line")
    assert ([len(str(row["message"])) for row in found], refused) == ([200_000, 1], {})
    rows = "".join(f"{n},{'z' * 1_000}\n" for n in range(6_000))
    found, refused = replay(tmp_path / "y.csv", 'ts,message\n1,"open\n' + rows, "log_line")
    assert (len(found), refused) == (6_000, {"row: no CSV (a quote is not closed)": 1})


def test_a_file_whose_name_is_no_utf8_is_a_sample_and_its_place_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = os.fsencode(folder) + b"/caf\xe9.jpg"
    Path(os.fsdecode(path)).write_bytes(b"\xff\xd8\xff\xd9")
    for done, position in (("keep", None), ("delete", None)):
        source = build("directory", "camera_frame", position, path=str(folder), done=done, settle_ms=0, poll_ms=0)
        batch = source.read(10)
        assert batch is not None
        assert rows_of(batch)[0]["file_name"] == "caf\\xe9.jpg"
        if done == "keep":
            again = build("directory", "camera_frame", batch.position, path=str(folder), done=done, settle_ms=0, poll_ms=0)
            assert again.read(10) is None
        source.stored(batch)
    assert not list(folder.iterdir())


def test_a_folder_that_takes_long_to_look_through_is_looked_at_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        at_s = 0.0

        def now_ms(self) -> int:
            return 0

        def monotonic_s(self) -> float:
            return self.at_s

        def sleep(self, seconds: float) -> None:
            self.at_s += seconds

    clock, looks = Slow(), []

    def slow_look(*_: object) -> list[object]:
        looks.append(clock.at_s)
        clock.sleep(2.0)
        return []

    options = {"path": str(tmp_path), "poll_ms": 200}
    source = build_source("directory", options, builtin_contract("camera_frame"), clock, None)
    monkeypatch.setattr(directory_source, "look", slow_look)
    while clock.at_s < 60:
        source.read(1)
        clock.sleep(0.1)
    assert [round(at_s) for at_s in looks] == [0, 20, 40]


@pytest.mark.parametrize(
    ("kind", "stream", "options", "fragment"),
    [
        ("directory", "camera_frame", {"path": "x", "settle_ms": -5}, "settle_ms = -5"),
        ("replay", "vehicle_telemetry", {"path": "x", "max_line_bytes": 0}, "max_line_bytes = 0"),
        ("replay", "vehicle_telemetry", {"path": "x", "rate_hz": float("nan")}, "rate_hz = nan"),
        ("exec", "vehicle_telemetry", {"command": ["x"], "wait_ms": -1}, "wait_ms = -1"),
        ("nmea", "vehicle_telemetry", {"source": "/dev/x", "timeout_s": float("inf")}, "timeout_s = inf"),
    ],
)
def test_a_negative_time_rate_or_size_is_reported_before_anything_starts(
    kind: str, stream: str, options: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(ConfigError, match=fragment):
        check_source(kind, options, builtin_contract(stream))


def test_a_program_that_closes_its_output_and_goes_on_fails_the_source_and_is_ended() -> None:
    script = "echo '{\"speed_mps\": 1}'; exec 1>&-; sleep 600"
    source = build("exec", "vehicle_telemetry", command=["sh", "-c", script], stop_ms=200)
    found: list[dict[str, object]] = []

    def read_on() -> None:
        while True:
            batch = source.read(10)
            found.extend([] if batch is None else rows_of(batch))

    with pytest.raises(SourceError, match="closed its output"):
        read_on()
    assert found == [{"speed_mps": 1.0}]


def test_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    mark = f"{tmp_path.name}-{os.getpid()}"
    script = f"import time, sys; print('{{}}', flush=True); time.sleep(600)  # {mark}"
    source = build("exec", "vehicle_telemetry", command=["sh", "-c", f'{sys.executable} -c "{script}" | cat'], stop_ms=5_000)
    for _ in range(200):
        if len(_running(mark)) > 1:
            break
        source.read(1)
        time.sleep(0.02)
    assert _running(mark)
    source.close()
    assert not _running(mark)


def _running(mark: str) -> list[str]:
    """The processes whose command line has the mark; by /proc, because a minimal Debian has no pgrep."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = command.read_bytes().decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if mark in line and command.parent.name != str(os.getpid()):
            found.append(command.parent.name)
    return found


@pytest.mark.parametrize(
    ("form", "media_type", "options"),
    [
        ("GIF", "image/gif", {}),
        ("BMP", "image/bmp", {}),
        ("WEBP", "image/webp", {}),
        ("WEBP", "image/webp", {"lossless": True}),
        ("WEBP", "image/webp", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
        ("PNG", "image/png", {}),
        ("TIFF", "image/tiff", {}),
    ],
)
def test_the_size_of_a_picture_is_read_whatever_its_format(form: str, media_type: str, options: dict[str, Any]) -> None:
    body = io.BytesIO()
    Image.new("RGB", (67, 45), (9, 99, 199)).save(body, form, **options)
    assert read_image_header(io.BytesIO(body.getvalue())) == ImageHeader(media_type, 67, 45)
    for end in range(40):
        read_image_header(io.BytesIO(body.getvalue()[:end]))  # a torn one may tell less, and never raises


def test_two_threads_that_look_at_pictures_leave_the_process_s_warnings_as_they_were() -> None:
    before, second_in, let_go = list(warnings.filters), threading.Event(), threading.Event()

    def first() -> None:
        with as_errors():
            begun.set()
            let_go.wait(5)

    def second() -> None:
        with as_errors():
            second_in.set()
            first_gone.wait(5)

    begun, first_gone = threading.Event(), threading.Event()
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    begun.wait(5)
    threads[1].start()
    second_in.wait(0.2)
    let_go.set()
    threads[0].join()
    first_gone.set()
    threads[1].join()
    assert list(warnings.filters) == before
