"""Satellite receivers: a real track over TCP, over a serial line and through gpsd; damaged sentences are refused and counted."""

import contextlib
import csv
import os
import pty
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects, Source
from edge_agent.sources.nmea.sentence import OTHER, RTCM, UBX, FixBuilder, SentenceError, SentenceStream, read_fields, read_tpv
from edge_agent.sources.nmea.source import ROLLOVER_US, rollovers
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from schemas.contract import builtin_contract

TELEMETRY = builtin_contract("vehicle_telemetry")
GPSD = shutil.which("gpsd", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def sentence(body: str) -> str:
    total = 0
    for char in body.encode():
        total ^= char
    return f"${body}*{total:02X}\r\n"


def angle(value: float, digits: int, sides: str) -> str:
    whole, part = divmod(abs(value), 1)
    return f"{int(whole):0{digits}d}{part * 60:09.6f},{sides[value < 0]}"


def moment(row: dict[str, Any]) -> tuple[str, list[str]]:
    at = row["gps_utc"]  # yymmddhhmmss.sss
    place = f"{angle(float(row['lat_deg']), 2, 'NS')},{angle(float(row['lon_deg']), 3, 'EW')}"
    knots = float(row["speed2d_mps"]) * 3600 / 1852
    rmc = sentence(f"GNRMC,{at[6:]},A,{place},{knots:.4f},90.0,{at[4:6]}{at[2:4]}{at[:2]},,,A")
    return at, [rmc, sentence(f"GNGGA,{at[6:]},{place},1,08,1.1,{row['alt_m']},M,-30.0,M,,")]


@pytest.fixture(scope="module")
def track(shared_data: Path) -> list[dict[str, Any]]:
    """A real track, 18 fixes a second; the receiver told whole seconds alone, so the time within them is the video's."""
    start = datetime(2019, 11, 18, 23, 45, 14, tzinfo=UTC)
    with (shared_data / "vehicle/gopro_max-heromode/gps5.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["gps_utc"] = (start + timedelta(seconds=float(row["t_s"]))).strftime("%y%m%d%H%M%S.%f")[:-3]
    return rows


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """A TCP server that sends these lines to whoever comes, then waits."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(lines: list[str], pace_s: float = 0.0) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(20)
        listeners.append(listener)

        def run() -> None:
            opened, _ = listener.accept()
            with opened, contextlib.suppress(ConnectionError):
                for line in lines:
                    opened.sendall(line.encode())
                    stop.wait(pace_s)
                stop.wait(20)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    stop.set()
    for thread in threads:
        thread.join(5)
    for listener in listeners:
        listener.close()


@pytest.fixture
def receiver() -> Iterator[Callable[..., GuardedSource]]:
    made: list[GuardedSource] = []

    def build(source: str, **options: object) -> GuardedSource:
        made.append(build_source("nmea", {"source": source, "wait_ms": 20, **options}, TELEMETRY, SystemClock(), None))
        return made[-1]

    yield build
    for one in made:
        one.close()


def rows(source: Source, count: int, within_s: float = 20.0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    until = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < until:
        batch = source.read(100)
        if batch is not None:
            columns = {**batch.columns, "t": batch.event_time_us}
            found += [{name: cells[row] for name, cells in columns.items()} for row in range(len(batch))]
    return found


def matches(found: list[dict[str, Any]], track: list[dict[str, Any]]) -> None:
    for ours, truth in zip(found, track[: len(found)], strict=True):
        gps_time = datetime.strptime(truth["gps_utc"], "%y%m%d%H%M%S.%f").replace(tzinfo=UTC)
        assert abs(ours["t"] - gps_time.timestamp() * 1e6) < 2_000
        assert abs(ours["latitude_deg"] - float(truth["lat_deg"])) < 1e-6
        assert abs(ours["longitude_deg"] - float(truth["lon_deg"])) < 1e-6
        assert abs(ours["altitude_m"] - float(truth["alt_m"])) < 1e-3
        assert abs(ours["speed_mps"] - float(truth["speed2d_mps"])) < 1e-3
        assert ours["clock_quality"] == "gnss"


def test_a_real_track_comes_over_tcp_fix_by_fix(
    track: list[dict[str, Any]], serve: Callable[..., int], receiver: Callable[..., GuardedSource]
) -> None:
    lines = [line for row in track for line in moment(row)[1]]
    source = receiver(f"tcp://127.0.0.1:{serve(lines, 0.0)}")
    found = rows(source, len(track) - 1)
    assert len(found) == len(track) - 1  # the last waits for the sentence that ends its moment
    matches(found, track)
    assert source.rejected == {}


def test_a_serial_line_is_read_at_its_speed(track: list[dict[str, Any]], receiver: Callable[..., GuardedSource]) -> None:
    master, slave = pty.openpty()
    source = receiver(os.ttyname(slave), baud=4800)
    for row in track[:20]:
        os.write(master, "".join(moment(row)[1]).encode())
    found = rows(source, 19)
    assert len(found) == 19
    matches(found, track)
    os.close(slave)
    os.close(master)
    with pytest.raises(SourceError, match="went away"):
        rows(source, 99)


@pytest.mark.skipif(GPSD is None, reason="no gpsd (Debian: gpsd)")
def test_gpsd_itself_is_understood(
    track: list[dict[str, Any]], serve: Callable[..., int], receiver: Callable[..., GuardedSource]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixes = track[::18][:12]  # one a second
    lines = ["".join(moment(row)[1]) for row in fixes]
    # Given twice, because gpsd first finds out what it hears.
    feed = serve(lines + lines, 0.05)
    daemon = subprocess.Popen([str(GPSD), "-N", "-n", "-S", str(port), f"tcp://127.0.0.1:{feed}"], stderr=subprocess.DEVNULL)
    try:
        source = _until_open(receiver, f"gpsd://127.0.0.1:{port}")
        found = rows(source, 5)
    finally:
        daemon.kill()
        daemon.wait()
    truth = {round(datetime.strptime(r["gps_utc"], "%y%m%d%H%M%S.%f").replace(tzinfo=UTC).timestamp(), 2): r for r in fixes}
    assert len(found) >= 5
    for ours in found:
        row = truth[min(truth, key=lambda at: abs(at - ours["t"] / 1e6))]
        assert abs(ours["latitude_deg"] - float(row["lat_deg"])) < 1e-5
        assert abs(ours["longitude_deg"] - float(row["lon_deg"])) < 1e-5
        assert ours["clock_quality"] == "gnss"


def _until_open(receiver: Callable[..., GuardedSource], address: str) -> GuardedSource:
    until = time.monotonic() + 10
    while True:
        try:
            return receiver(address)
        except SourceError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_damaged_sentences_and_moments_without_a_fix_are_counted_and_the_next_is_read(
    track: list[dict[str, Any]], serve: Callable[..., int], receiver: Callable[..., GuardedSource]
) -> None:
    good = [line for row in track[:3] for line in moment(row)[1]]
    damaged = good[0].replace("A,", "B,", 1)
    lines = [damaged, "$GPRMC,no star\r\n", "noise\r\n", *good[:2], sentence("GPGSV,1,1,00"), *good[2:]]
    lines.append(sentence("GPRMC,120000.00,V,,,,,,,010124,,,N"))
    lines.append(sentence("GPRMC,120001.00,A,9900.0,N,01000.0,E,0,0,010124,,,A"))
    source = receiver(f"tcp://127.0.0.1:{serve(lines, 0.0)}")
    found = rows(source, 3)
    assert len(found) == 3
    matches(found, track)
    rows(source, 1, within_s=0.2)
    assert source.rejected == {
        "row: wrong checksum": 1,
        "row: no checksum": 1,
        "row: no NMEA sentence": 1,
        OTHER: 1,
        "row: no fix": 1,
        "row: a place that cannot be": 1,
    }


@pytest.mark.parametrize("time", ["120000", "120000.0", "120000.000"])
def test_sentences_of_one_moment_are_joined_however_long_its_fraction_is_written(time: str) -> None:
    builder = FixBuilder()
    assert builder.take(read_fields(sentence("GPRMC,120000.00,A,4807.038,N,01131.000,E,022.4,084.4,230394,,"))) == (None, "")
    builder.take(read_fields(sentence(f"GPGGA,{time},4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,")))
    fix = builder.flush()
    assert fix is not None
    assert fix.altitude_m == 545.4


def test_minutes_beyond_a_degree_are_no_place() -> None:
    body = "GPRMC,120000.00,A,4860.000,N,01131.000,E,022.4,084.4,230394,,"
    assert FixBuilder().take(read_fields(sentence(body))) == (None, "a place that cannot be")


def ubx(payload: bytes) -> bytes:
    body = b"\x01\x07" + len(payload).to_bytes(2, "little") + payload
    first = second = 0
    for byte in body:
        first = (first + byte) & 0xFF
        second = (second + first) & 0xFF
    return b"\xb5b" + body + bytes((first, second))


RTCM_1005 = bytes.fromhex("d300133ed7d30202980edeef34b4bd62ac0941986f33360b98")


def stream(*pieces: bytes, cuts: int = 1 << 30) -> tuple[list[str], dict[str, int]]:
    rejects = Rejects("nmea")
    made, found, body = SentenceStream(rejects), [], b"".join(pieces)
    for at in range(0, len(body), cuts):
        made.add(body[at : at + cuts])
        while more := made.take(1):
            found += more
    return found, rejects.counts


@pytest.mark.parametrize("cuts", [1, 3, 1 << 30])
def test_tag_blocks_and_binary_messages_between_sentences_cost_none(cuts: int) -> None:
    fix = sentence("GPRMC,120000.00,A,4807.038,N,01131.000,E,022.4,084.4,230394,,").encode()
    tag = b"\\s:rooftop,c:764424000*53\\"
    inner = ubx(b"noise\n$GPRMC,1" + fix + b"\xb5b" + b"\n" * 20)
    pieces = (fix, tag + fix, inner, fix, RTCM_1005, tag + tag + fix, ubx(b""), b"\0\0", fix)
    found, counts = stream(*pieces, cuts=cuts)
    assert [read_fields(line)[0] for line in found] == ["GPRMC"] * 5
    assert counts == {UBX: 2, RTCM: 1}


def test_a_sentence_behind_noise_or_a_broken_binary_message_is_read_and_the_noise_is_counted() -> None:
    fix = sentence("GPRMC,120000.00,A,4807.038,N,01131.000,E,022.4,084.4,230394,,").encode()
    found, counts = stream(
        b"\xb5b\x01\x07\x10\x00 torn" + fix, b"$GPGGA,12" + fix, b"\xb5 \xd3\x00" + fix, b"hello\r\n", fix * 30
    )
    good = [line for line in found if line.startswith("$GPRMC")]
    assert len(good) == 33
    assert counts["row: no NMEA sentence"] >= 4
    assert stream(b"$" + b"x" * 5_000 + b"\r\n" + fix)[0] == [fix.decode().strip()]


@given(st.lists(st.one_of(st.binary(max_size=30), st.just(b"$GPRMC,\r\n"), st.binary(max_size=9).map(ubx))), st.integers(1, 9))
def test_no_bytes_break_the_stream_and_the_cuts_between_them_do_not_matter(pieces: list[bytes], cuts: int) -> None:
    end = b"\r\n" * 5_000  # what waited for the rest of a message is judged
    assert stream(*pieces, end, cuts=cuts)[0] == stream(*pieces, end)[0]


def test_a_receiver_that_mixes_binary_and_sentences_loses_no_fix(
    track: list[dict[str, Any]], receiver: Callable[..., GuardedSource]
) -> None:
    master, slave = pty.openpty()
    source = receiver(os.ttyname(slave), baud=4800)
    for row in track[:20]:
        rmc, gga = (line.encode() for line in moment(row)[1])
        os.write(master, ubx(bytes(range(60))) + b"\\g:1-2-3,s:r1*00\\" + rmc + RTCM_1005 + gga)
    found = rows(source, 19)
    assert len(found) == 19
    matches(found, track)
    assert set(source.rejected) == {UBX, RTCM}
    os.close(slave)
    os.close(master)


def test_a_silent_receiver_is_opened_again(serve: Callable[..., int], receiver: Callable[..., GuardedSource]) -> None:
    source = receiver(f"tcp://127.0.0.1:{serve([])}", timeout_s=0.1)
    with pytest.raises(SourceError, match="says nothing"):
        rows(source, 1)


def test_a_missing_device_is_reported(receiver: Callable[..., GuardedSource], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for source in (str(tmp_path / "none"), str(tmp_path / "file"), "tcp://127.0.0.1:1"):
        with pytest.raises(SourceError):
            receiver(source)
    for options in ({"source": "ftp://x:1"}, {"source": "/dev/x", "baud": 5}, {"source": "/dev/x", "rename": {"a": "b"}}, {}):
        with pytest.raises(ConfigError, match="nmea"):
            check_source("nmea", options, TELEMETRY)


@given(st.text(max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    builder = FixBuilder()
    for line in (text, sentence(text.replace("*", "")), sentence("GPRMC," + text), sentence("GPGGA," + text + "," * 12)):
        try:
            builder.take(read_fields(line))
        except (SentenceError, UnicodeEncodeError):
            continue


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), st.lists, max_leaves=4)


@given(st.dictionaries(st.sampled_from(["mode", "time", "lat", "lon", "alt", "speed", "track"]), JSON))
def test_no_report_breaks_the_reader(report: dict[str, Any]) -> None:
    try:
        read_tpv({"class": "TPV", **report})
    except SentenceError:
        return


def test_a_receiver_whose_week_counter_wrapped_is_put_right_and_counted(
    serve: Callable[..., int], receiver: Callable[..., GuardedSource]
) -> None:
    """Old firmware tells 2007 on a day of 2026; the machine's clock is right."""
    now_us = SystemClock().now_ms() * 1000
    wrapped = datetime.fromtimestamp((now_us - ROLLOVER_US) / 1e6, UTC)
    lines = [
        sentence(f"GPRMC,{wrapped:%H%M}{second:02d}.00,A,4807.038,N,01131.000,E,022.4,084.4,{wrapped:%d%m%y},,")
        for second in (1, 2, 3)
    ]
    source = receiver(f"tcp://127.0.0.1:{serve(lines, 0.0)}")
    found = rows(source, 2)
    assert all(abs(row["t"] - now_us) < 86_400_000_000 for row in found)
    assert {row["clock_quality"] for row in found} == {"corrected"}
    assert source.rejected["report: GPS week rollover: 1024 weeks were added"] == len(found)


@pytest.mark.parametrize(
    ("reported", "now", "count"),
    [
        ("2007-04-16", "2026-11-30", 1),
        ("1987-08-31", "2026-11-30", 2),
        ("2026-11-29", "2026-11-30", 0),
        ("2015-06-01", "2026-11-30", 0),  # a recorded track, or another fault
        ("2007-04-16", "1970-01-01", 1),  # the machine's clock was never set: what is before this software cannot be now
        ("2026-11-30", "1970-01-01", 0),
        ("2027-01-01", "2026-11-30", 0),
    ],
)
def test_a_rollover_is_distinguished_from_a_recorded_track_and_from_other_faults(reported: str, now: str, count: int) -> None:
    reported_us, now_us = (round(datetime.fromisoformat(f"{day}T12:00:00Z").timestamp() * 1e6) for day in (reported, now))
    assert rollovers(reported_us, now_us) == count
