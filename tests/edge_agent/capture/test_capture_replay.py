"""Replayed files: every row once, whatever the reads and restarts; real files with exact counts."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from tests.fakes.sources import HandClock, build, close_all, column, count, drain


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


def test_vehicle_telemetry_is_replayed_whole_and_in_step(shared_data: Path) -> None:
    path = shared_data / "vehicle/comma2k19/telemetry.csv"
    rename = {"can_speed_mps": "speed_mps", "can_steering_deg": "steering_deg"}
    got = drain(
        build("replay", "vehicle_telemetry", path=str(path), rename=rename, time_column="t_s", time_start="2024-05-01T00:00:00Z")
    )
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert column(got, "speed_mps") == [float(row["can_speed_mps"]) for row in rows]
    assert column(got, "frame") == [int(row["frame"]) for row in rows]
    times = [time for batch in got for time in batch.event_time_us]
    assert times[0] == 1_714_521_600_000_000
    assert times[-1] - times[0] == round((float(rows[-1]["t_s"]) - float(rows[0]["t_s"])) * 1e6)


@pytest.mark.parametrize(("capture", "rows"), [("008-zeek-mixed", 5663), ("010-zeek-mixed", 5347)])
def test_zeek_connections_are_replayed_whole(shared_data: Path, capture: str, rows: int) -> None:
    source = build("replay", "network_flow", path=str(shared_data / f"network/ctu_zeek/{capture}/conn.log.labeled.gz"))
    got = drain(source)
    assert count(got) == rows
    assert None not in column(got, "src_ip")
    assert set(column(got, "label")) <= {"Benign", "Malicious", "Background", None}
    assert source.rejected == {}


ZEEK = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
    "#fields\tts\tid.orig_h\tid.resp_h\tproto\tservice\tduration\tlocal_orig\n"
    "#types\ttime\taddr\taddr\tenum\tstring\tinterval\tbool\n"
)


def test_zeek_marks_become_null_empty_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "conn.log"
    path.write_text(
        ZEEK + "1655071198.444458\t10.0.0.1\t10.0.0.2\ttcp\t(empty)\t-\tT\n1.5\ta\tb\tudp\td\\xc3\\xa9\t0.5\tF\n#close\tx\n"
    )
    got = drain(build("replay", "network_flow", path=str(path)))
    assert got[0].event_time_us == [1_655_071_198_444_458, 1_500_000]
    assert column(got, "service") == ["", "dé"]
    assert column(got, "duration_s") == [None, 0.5]
    assert column(got, "local_orig") == [True, False]


def test_zeek_logs_that_were_joined_keep_each_header(tmp_path: Path) -> None:
    path = tmp_path / "conn.log"
    other = ZEEK.replace("\tservice\tduration", "\tduration\tservice").replace("string\tinterval", "interval\tstring")
    path.write_text(
        ZEEK + "1\ta\tb\ttcp\tssl\t0.5\tT\n#close\tx\n" + other + "2\ta\tb\ttcp\t0.25\tdns\tT\n3\ta\tb\ttcp\t1\thttp\tT\n"
    )
    whole = drain(build("replay", "network_flow", path=str(path)))
    assert column(whole, "service") == ["ssl", "dns", "http"]
    first, second = (build("replay", "network_flow", path=str(path)), None)
    position = [first.read(1), first.read(1)][-1].position  # type: ignore[union-attr]
    second = drain(build("replay", "network_flow", position, path=str(path)))
    assert column(second, "service") == ["http"]


def test_a_bad_cell_becomes_null_and_is_counted_and_its_row_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("event_time,frame,speed_mps\n1,7,fast\n2,99999999999999999999,2.5\n3,1.5,\n")
    source = build("replay", "vehicle_telemetry", path=str(path))
    got = drain(source)
    assert column(got, "speed_mps") == [None, 2.5, None]
    assert column(got, "frame") == [7, None, None]
    assert source.rejected == {
        "cell frame: integer out of range": 1,
        "cell frame: not an integer": 1,
        "cell speed_mps: not a number": 1,
    }


@pytest.mark.parametrize("cells", [["1_2", "3.5"], ["1_2", "x"]], ids=["numbers", "text"])
def test_an_underscore_makes_no_number(tmp_path: Path, cells: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ts,duration_s,src_port\n" + "".join(f"{n},{cell},12_34\n" for n, cell in enumerate(cells, 1)))
    batches = drain(build("replay", "network_flow", path=str(path)))
    assert column(batches, "duration_s") == [None, 3.5 if cells[1] == "3.5" else None]
    assert column(batches, "src_port") == [None, None]


@pytest.mark.parametrize("text", ['[{"ts":1,"proto":"tcp"},{"ts":2,"proto":"udp"}]', '[\n  {"ts":1},\n  {"ts":2}\n]', "[]"])
def test_a_json_array_is_no_empty_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "flows.json"
    path.write_text(text)
    with pytest.raises(SourceError, match="one object a line"):
        build("replay", "network_flow", path=str(path)).read(1)


@pytest.mark.parametrize(
    "body",
    [
        b"PK\3\4" + bytes(100),
        gzip.compress(gzip.compress(b"ts,proto\n1,tcp\n")),
        lzma.compress(b"ts,proto\n1,tcp\n", lzma.FORMAT_ALONE),
    ],
    ids=["zip", "packed twice", "lzma"],
)
def test_a_file_that_is_no_text_is_no_empty_table(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(body)
    with pytest.raises(SourceError, match="no text"):
        build("replay", "network_flow", path=str(path)).read(1)


@pytest.mark.parametrize("kind", ["replay", "tail"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["ts,proto\n1,tcp\n2,udp\n", '{"ts":1,"proto":"tcp"}\n'], ids=["csv", "json"])
def test_text_in_another_encoding_waits_instead_of_being_noise(tmp_path: Path, kind: str, encoding: str, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding)
    with pytest.raises(SourceError, match="write it in UTF-8"):
        build(kind, "network_flow", path=str(path)).read(1)


def test_the_example_of_a_time_without_a_zone_is_such_a_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"ts":null,"proto":"tcp"}\n{"ts":"2024-05-01 00:00:00","proto":"tcp"}\n')
    with pytest.raises(ConfigError, match="2024-05-01 00:00:00"):
        build("replay", "network_flow", path=str(path)).read(9)


def test_a_row_that_can_be_no_sample_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("event_time,speed_mps\nnever,1\n1,2\n1,2,3\n2," + "9" * 200 + "\n3,4\n")
    source = build("replay", "vehicle_telemetry", path=str(path), max_line_bytes=100)
    assert column(drain(source), "speed_mps") == [2.0, 4.0]
    assert sorted(source.rejected) == [
        "row: 3 cells under 2 names",
        "row: event time is not a number",
        "row: line above 100 bytes",
    ]


def test_json_lines_keep_what_the_contract_does_not_name_as_attributes(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    lines = [
        '{"ts": "2024-05-01T00:00:00.5Z", "file_name": "a", "colour": "red"}',
        "no json",
        "[1]",
        '{"ts": 2, "media_type": "x"}',
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    source = build("replay", "camera_frame", path=str(path))
    got = drain(source)
    assert [time for batch in got for time in batch.event_time_us] == [1_714_521_600_500_000, 2_000_000]
    assert [None if text is None else json.loads(str(text)) for text in column(got, "attributes")] == [{"colour": "red"}, None]
    assert source.rejected == {"row: no JSON": 1, "row: JSON, but no object": 1}


def test_a_rate_gives_no_more_rows_than_are_due(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("speed_mps\n" + "1\n" * 100)
    clock = HandClock()
    source = build("replay", "vehicle_telemetry", None, clock, path=str(path), rate_hz=10.0)
    assert len(source.read(1000) or ()) == 1
    assert source.read(1000) is None
    clock.sleep(1)
    assert len(source.read(1000) or ()) == 10


def test_a_file_replaced_under_its_name_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"speed_mps": 1}\n{"speed_mps": 2}\n')
    first = build("replay", "vehicle_telemetry", path=str(path))
    position = first.read(1).position  # type: ignore[union-attr]
    path.write_text('{"speed_mps": 3}\n{"speed_mps": 4}\n')
    assert column(drain(build("replay", "vehicle_telemetry", position, path=str(path))), "speed_mps") == [3.0, 4.0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(["csv", "jsonl", "zeek", "csv.gz"]),
    rows=st.integers(0, 40),
    steps=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=60),
    seed=st.integers(0, 1 << 30),
)
def test_any_reads_and_restarts_give_every_row_once(
    tmp_path: Path, form: str, rows: int, steps: list[tuple[int, bool]], seed: int
) -> None:
    values = [(seed * 31 + row) % 1000 for row in range(rows)]
    names = [f'{value}\n"quoted", é' if value % 3 == 0 else f"n{value}" for value in values]
    path = tmp_path / "table"
    _write_table(path, form, values, names)
    wanted = [f"{name}" for name in names] if form != "zeek" else [name.replace("\n", " ") for name in names]
    got: list[object] = []
    position: bytes | None = None
    options: dict[str, Any] = {"path": str(path), "rename": {"name": "service", "value": "orig_bytes"}}
    source = build("replay", "network_flow", position, **options)
    numbers: list[object] = []
    for size, restarts in [*steps, *[(50, False)] * 2]:
        try:
            batch = source.read(size)
        except SourceEndedError:
            break
        assert batch is not None
        got += batch.columns["service"]
        numbers += batch.columns["orig_bytes"]
        position = batch.position
        if restarts:
            source.close()
            source = build("replay", "network_flow", position, **options)
    source.close()
    assert got == wanted
    assert numbers == values


def _write_table(path: Path, form: str, values: list[int], names: list[str]) -> None:
    out = io.StringIO()
    if form == "jsonl":
        out.writelines(json.dumps({"event_time": 1, "value": v, "name": n}) + "\n" for v, n in zip(values, names, strict=True))
    elif form == "zeek":
        out.write("#separator \\x09\n#fields\tts\tvalue\tname\n#types\ttime\tcount\tstring\n")
        out.writelines(f"1.0\t{v}\t{n}\n".replace('\n"', ' "') for v, n in zip(values, names, strict=True))
    else:
        writer = csv.writer(out)
        writer.writerow(["event_time", "value", "name"])
        writer.writerows([1, v, n] for v, n in zip(values, names, strict=True))
    body = out.getvalue().encode()
    path.write_bytes(gzip.compress(body) if form == "csv.gz" else body)
