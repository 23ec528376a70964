"""Sources: every row of a file once, whatever the reads and restarts; real files with exact counts."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.capture.batch import SampleBatch, Source
from edge_agent.capture.registry import build_source
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from schemas.builtin import builtin_contract


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self.at_s * 1000)

    def monotonic_s(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds


_BUILT: list[Source] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _BUILT:
        _BUILT.pop().close()


def build(kind: str, stream: str, position: bytes | None = None, clock: HandClock | None = None, **options: object) -> Source:
    source = build_source(kind, options, builtin_contract(stream), clock or HandClock(), position)
    _BUILT.append(source)
    return source


def drain(source: Source, clock: HandClock | None = None, max_samples: int = 1000) -> list[SampleBatch]:
    batches: list[SampleBatch] = []
    for _ in range(10_000):
        try:
            batch = source.read(max_samples)
        except SourceEndedError:
            source.close()
            return batches
        if batch is None and clock is not None:
            clock.sleep(1)
        if batch is not None:
            batches.append(batch)
            source.stored(batch)
    raise AssertionError("the source does not end")


def column(batches: list[SampleBatch], name: str) -> list[object]:
    return [value for batch in batches for value in batch.columns.get(name, [None] * len(batch))]


def count(batches: list[SampleBatch]) -> int:
    return sum(map(len, batches))


# -- replay ---------------------------------------------------------------------------------------------------------------


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
    assert source.rejected == {}  # type: ignore[attr-defined]


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
    assert source.rejected == {  # type: ignore[attr-defined]
        "cell frame: integer out of range": 1,
        "cell frame: not an integer": 1,
        "cell speed_mps: not a number": 1,
    }


def test_a_row_that_can_be_no_sample_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("event_time,speed_mps\nnever,1\n1,2\n1,2,3\n2," + "9" * 200 + "\n3,4\n")
    source = build("replay", "vehicle_telemetry", path=str(path), max_line_bytes=100)
    assert column(drain(source), "speed_mps") == [2.0, 4.0]
    assert sorted(source.rejected) == [  # type: ignore[attr-defined]
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
    assert source.rejected == {"row: no JSON": 1, "row: JSON, but no object": 1}  # type: ignore[attr-defined]


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
    options = {"path": str(path), "rename": {"name": "service", "value": "orig_bytes"}}
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


# -- directory ------------------------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big") + b"\x08\x02\0\0\0"


def watch(folder: Path, position: bytes | None = None, clock: HandClock | None = None, **options: object) -> Source:
    options = {"path": str(folder), "settle_ms": 0, "poll_ms": 0, "end_when_idle": True, **options}
    return build("directory", "camera_frame", position, clock, **options)


def test_dashcam_frames_come_whole_with_the_table_beside_them(shared_data: Path) -> None:
    folder = shared_data / "vehicle/dashcam"
    got = drain(
        watch(
            folder / "frames",
            attributes=str(folder / "frames.csv"),
            time="t_s",
            time_start="2024-05-01T00:00:00Z",
            columns={"camera": "front"},
        )
    )
    assert count(got) == 221
    by_name = dict(zip(column(got, "file_name"), column(got, "frame"), strict=True))
    assert by_name == {f"frame_{number:04d}.jpg": number for number in range(221)}
    assert set(column(got, "width")) == {960}
    assert set(column(got, "height")) == {540}
    payloads = [payload for batch in got for payload in batch.payloads or ()]
    assert sum(len(payload) for payload in payloads if isinstance(payload, bytes)) == sum(
        path.stat().st_size for path in (folder / "frames").glob("*.jpg")
    )


def test_factory_pictures_carry_their_polygons(shared_data: Path) -> None:
    folder = shared_data / "factory/bsdata"
    got = drain(
        watch(
            folder / "images", attributes=str(folder / "index.csv"), sidecars=str(folder / "labels"), rename={"bsd_type": "label"}
        )
    )
    annotations = [json.loads(str(text)) for text in column(got, "annotation") if text is not None]
    assert count(got) == len(list((folder / "images").iterdir()))
    assert len(annotations) == len(list((folder / "labels").iterdir()))
    assert all(item["shapes"] is not None and "imageData" not in item for item in annotations)


def test_slides_tell_their_size_without_being_decoded(shared_data: Path) -> None:
    source = build("directory", "slide", path=str(shared_data / "slides"), settle_ms=0, end_when_idle=True)
    got = drain(source)
    sizes = dict(zip(column(got, "file_name"), zip(column(got, "width"), column(got, "height"), strict=True), strict=True))
    assert sizes["CMU-1-Small-Region.svs"] == (2220, 2967)
    assert sizes["cog_world.tif"] == (36000, 18000)
    large = [payload for batch in got for payload in batch.payloads or () if isinstance(payload, Path)]
    assert sorted(path.name for path in large) == ["CMU-1-Small-Region.svs", "cog_world.tif", "hela-cells.tif"]


def test_a_file_that_is_still_written_waits(tmp_path: Path) -> None:
    clock = HandClock()
    source = watch(tmp_path, None, clock, settle_ms=500, end_when_idle=False)
    (tmp_path / "a.png").write_bytes(PNG)
    assert source.read(10) is None
    clock.sleep(0.4)
    (tmp_path / "a.png").write_bytes(PNG + b"more")
    assert source.read(10) is None
    clock.sleep(0.4)
    assert source.read(10) is None
    clock.sleep(0.4)
    batch = source.read(10)
    assert batch is not None
    assert batch.payloads == [PNG + b"more"]


@pytest.mark.parametrize("done", ["keep", "delete", "move"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_any_arrivals_and_restarts_give_every_file_once(
    tmp_path_factory: pytest.TempPathFactory, done: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("watched")
    arrived: list[str] = []
    got: list[object] = []
    position: bytes | None = None
    source = watch(folder, position, done=done, end_when_idle=False)
    for step in data.draw(st.lists(st.sampled_from(["file", "read", "lost", "restart"]), max_size=25)):
        if step == "file":
            name = f"{data.draw(st.integers(0, 9))}-{len(arrived)}.png"
            (folder / f".{name}").write_bytes(PNG + name.encode())
            (folder / f".{name}").rename(folder / name)
            arrived.append(name)
        elif step == "restart":
            source = watch(folder, position, done=done, end_when_idle=False)
        else:
            batch = source.read(data.draw(st.integers(1, 3)))
            if batch is None:
                continue
            got += batch.columns["file_name"]
            position = batch.position
            if step == "read":
                source.stored(batch)
    end = watch(folder, position, done=done)
    got += [name for batch in drain(end) for name in batch.columns["file_name"]]
    assert sorted(map(str, got)) == sorted(arrived)
    assert len(list(folder.glob("*.png"))) == (len(arrived) if done == "keep" else 0)
    assert len(list(folder.glob("done/*.png"))) == (len(arrived) if done == "move" else 0)


def test_a_file_that_was_written_anew_after_it_was_read_is_not_deleted(tmp_path: Path) -> None:
    source = watch(tmp_path, done="delete")
    (tmp_path / "a.png").write_bytes(PNG)
    batch = source.read(1)
    assert batch is not None
    (tmp_path / "a.png").write_bytes(PNG + b"second picture of that name")
    source.stored(batch)
    second = source.read(1)
    assert second is not None
    assert second.payloads == [PNG + b"second picture of that name"]


def test_a_broken_sidecar_is_counted_and_the_picture_comes_without_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.json").write_text("{")
    source = watch(tmp_path)
    assert column(drain(source), "width") == [640]
    assert source.rejected == {"cell: sidecar is no JSON": 1}  # type: ignore[attr-defined]


# -- exec -----------------------------------------------------------------------------------------------------------------


def run(program: str, stream: str = "vehicle_telemetry", **options: object) -> Source:
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
    assert source.rejected == {"row: line above 1000 bytes": 1}  # type: ignore[attr-defined]


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
def test_a_wrong_option_is_named(kind: str, options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(kind, "vehicle_telemetry", **options)


def test_a_missing_file_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent\.csv"):
        build("replay", "vehicle_telemetry", path=str(tmp_path / "absent.csv"))
