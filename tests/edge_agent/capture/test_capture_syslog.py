"""Syslog: real senders over UDP, TCP and TLS; every message once, read as far as it can be, nothing lost without a count."""

import json
import logging
import logging.handlers
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from socket import SocketKind
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.network.frames import FrameBuffer
from edge_agent.sources.network.sockets import KERNEL_DROPPED
from edge_agent.sources.registry import check_source
from edge_agent.sources.syslog.source import SyslogSource, build, read_message
from schemas.contract import builtin_contract
from tests.fakes.drained import rows
from tests.plant.present import present

LOGS = builtin_contract("log_line")
NOW_US = int(datetime(2024, 6, 1, tzinfo=UTC).timestamp() * 1e6)
needs_logger = pytest.mark.skipif(shutil.which("logger") is None, reason="no logger program (bsdutils)")


@pytest.fixture
def listening() -> Iterator[Any]:
    made: list[SyslogSource] = []

    def listen(*addresses: str, **options: object) -> SyslogSource:
        made.append(build({"listen": list(addresses), "wait_ms": 50, **options}, LOGS, SystemClock(), None))
        return made[-1]

    yield listen
    for source in made:
        source.close()


def logger(port: int, *arguments: str) -> None:
    subprocess.run(["logger", "-n", "127.0.0.1", "-P", str(port), *arguments], check=True, timeout=30)


@needs_logger
@pytest.mark.parametrize(
    ("scheme", "arguments"),
    [("udp", ["-d"]), ("tcp", ["-T"]), ("tcp", ["-T", "--octet-count"])],
    ids=["udp", "tcp-lines", "tcp-counted"],
)
def test_the_logger_program_is_understood_in_rfc_5424(listening: Any, scheme: str, arguments: list[str]) -> None:
    source = listening(f"{scheme}://127.0.0.1:0")
    structured = ["--sd-id", "origin@1", "--sd-param", 'a="b"', "--msgid", "M1"]
    logger(source.ports[0], *arguments, "--rfc5424", "-p", "local3.warning", "-t", "app", "--id=77", *structured, "hällo wörld")
    (row,) = rows(source, 1)
    assert (row["message"], row["facility"], row["severity"]) == ("hällo wörld", 19, 4)
    assert (row["app"], row["proc_id"], row["msg_id"], row["peer"]) == ("app", "77", "M1", "127.0.0.1")
    assert row["host"]
    assert json.loads(row["structured"])["origin@1"] == {"a": "b"}
    assert abs(row["t"] / 1e6 - time.time()) < 60
    assert source.rejected == {}


@needs_logger
def test_the_logger_program_is_understood_in_rfc_3164(listening: Any) -> None:
    source = listening("udp://127.0.0.1:0")
    logger(source.ports[0], "-d", "--rfc3164", "-p", "user.notice", "-t", "app", "--id=77", "one: two [3]")
    (row,) = rows(source, 1)
    assert (row["message"], row["facility"], row["severity"]) == ("one: two [3]", 1, 5)
    assert (row["app"], row["proc_id"]) == ("app", "77")
    assert abs(row["t"] / 1e6 - time.time()) < 60


@needs_logger
def test_a_file_sent_by_logger_arrives_line_by_line(listening: Any, tmp_path: Path) -> None:
    source = listening("tcp://127.0.0.1:0")
    lines = [f"line {n}" for n in range(500)]
    (tmp_path / "log").write_text("\n".join(lines))
    with subprocess.Popen(["logger", "-n", "127.0.0.1", "-P", str(source.ports[0]), "-T", "-f", str(tmp_path / "log")]) as sender:
        found = rows(source, 500)
        assert sender.wait(30) == 0
    assert [row["message"] for row in found] == lines


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_pythons_own_handler_is_understood(listening: Any, kind: SocketKind) -> None:
    scheme = "udp" if kind is socket.SOCK_DGRAM else "tcp"
    source = listening(f"{scheme}://127.0.0.1:0")
    handler = logging.handlers.SysLogHandler(("127.0.0.1", source.ports[0]), facility="local0", socktype=kind)
    handler.append_nul = kind is socket.SOCK_DGRAM
    handler.setFormatter(logging.Formatter("py[%(process)d]: %(message)s" + ("" if handler.append_nul else "\n")))
    for level, text in ((logging.ERROR, "bad"), (logging.INFO, "good")):
        handler.emit(logging.LogRecord("x", level, "", 0, text, None, None))
    found = rows(source, 2)
    handler.close()
    assert [(row["message"], row["facility"], row["severity"], row["app"]) for row in found] == [
        ("bad", 16, 3, "py"),
        ("good", 16, 6, "py"),
    ]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_brings_large_messages_whole_and_a_sender_in_clear_harms_nobody(
    listening: Any, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    source = listening("tls://127.0.0.1:0", cert=str(cert), key=str(key), max_message_bytes=65_536)
    with socket.create_connection(("127.0.0.1", source.ports[0])) as clear:
        clear.sendall(b"<13>1 - - - - - - in clear\n")
        context = ssl.create_default_context(cafile=str(cert))
        plain = socket.create_connection(("127.0.0.1", source.ports[0]))
        plain.setblocking(False)
        with context.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False) as secure:
            _by_turns(secure.do_handshake, source)
            secure.setblocking(True)
            for n in range(20):
                text = f"<13>1 - h a - - - {n} " + "x" * 40_000
                secure.sendall(f"{len(text)} {text}".encode())
            found = rows(source, 20)
    assert [row["message"].split()[0] for row in found] == [str(n) for n in range(20)]
    assert {len(row["message"].split()[1]) for row in found} == {40_000}
    assert any(reason.startswith("connection: broke") for reason in source.rejected)


def _by_turns(step: Callable[[], object], source: SyslogSource) -> None:
    for _ in range(100):
        try:
            step()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            assert source.read(10) is None
        else:
            return
    pytest.fail("no handshake")


def test_a_client_without_the_required_certificate_is_kept_out(listening: Any, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    source = listening("tls://127.0.0.1:0", cert=str(cert), key=str(key), client_ca=str(cert))
    context = ssl.create_default_context(cafile=str(cert))
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where the refusal comes within the handshake
    plain = socket.create_connection(("127.0.0.1", source.ports[0]))
    plain.setblocking(False)
    secure = context.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False)
    with secure, pytest.raises(ssl.SSLError):
        _by_turns(secure.do_handshake, source)
    assert sum(source.rejected.values()) == 1


def test_a_message_above_the_limit_is_refused_and_the_next_one_is_not(listening: Any) -> None:
    source = listening("udp://127.0.0.1:0", "tcp://127.0.0.1:0", max_message_bytes=1000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(b"<13>" + b"x" * 2000, ("127.0.0.1", source.ports[0]))
        out.sendto(b"<13>udp", ("127.0.0.1", source.ports[0]))
    with socket.create_connection(("127.0.0.1", source.ports[1])) as out:
        out.sendall(b"<13>" + b"y" * 200_000 + b"\n<13>line\n5000 <13>" + b"z" * 4996 + b"11 <13>counted")
    assert sorted(row["message"] for row in rows(source, 3)) == ["counted", "line", "udp"]
    assert source.rejected["row: message above 1000 bytes"] == 3


def test_what_the_kernel_dropped_is_counted(listening: Any) -> None:
    source = listening("udp://127.0.0.1:0", receive_buffer_bytes=4096)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for n in range(500):
            out.sendto(f"<13>{n} {'x' * 400}".encode(), ("127.0.0.1", source.ports[0]))
        found = rows(source, 500, within_s=0.3)
        out.sendto(b"<13>last", ("127.0.0.1", source.ports[0]))
        found += rows(source, 1)
    assert len(found) < 501
    assert len(found) + source.rejected[KERNEL_DROPPED] == 501


def test_more_connections_than_allowed_are_closed_and_counted(listening: Any) -> None:
    source = listening("tcp://127.0.0.1:0", max_connections=2)
    opened = [socket.create_connection(("127.0.0.1", source.ports[0])) for _ in range(3)]
    for n, one in enumerate(opened):
        one.sendall(f"<13>{n}\n".encode())
    assert {row["message"] for row in rows(source, 3, within_s=1.0)} == {"0", "1"}
    assert source.rejected == {"connection: above 2": 1}
    for one in opened:
        one.close()


def test_a_port_that_is_taken_is_a_source_that_tries_again(listening: Any) -> None:
    source = listening("tcp://127.0.0.1:0")
    with pytest.raises(SourceError, match="another program"):
        listening(f"tcp://127.0.0.1:{source.ports[0]}")


@pytest.mark.parametrize(
    "options",
    [
        {"listen": []},
        {"listen": ["http://127.0.0.1:1"]},
        {"listen": ["udp://127.0.0.1"]},
        {"listen": ["udp://127.0.0.1:99999"]},
        {"listen": ["tls://127.0.0.1:6514"]},
        {"listen": ["udp://127.0.0.1:5514"], "time_zone": "Europe/Nowhere"},
        {"listen": ["udp://127.0.0.1:5514"], "max_message_bytes": 1 << 30},
    ],
)
def test_wrong_options_are_reported_before_anything_starts(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="syslog"):
        check_source("syslog", options, LOGS)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            b'<165>1 2003-10-11T22:14:15.003Z my.example.com ev - ID47 [ex@1 iut="3"] \xef\xbb\xbfAn application event',
            {"facility": 20, "severity": 5, "msg_id": "ID47", "message": "An application event", "time_us": 1065910455003000},
        ),
        (b'<34>1 - - - - - [a b="\\"\\]\\\\"] x', {"structured": {"a": {"b": '"]\\'}}, "message": "x"}),
        (b'<34>1 - - - - - [a b="open x', {"message": '[a b="open x', "problem": "its structured data is malformed"}),
        (b"<34>1 yesterday - - - - - x", {"time_us": None, "problem": "its time is no RFC 3339 time", "message": "x"}),
        (b"<34>1 - - - - - -", {"message": ""}),
        (b"<34>Oct 11 22:14:15 mine su: 'su root' failed", {"host": "mine", "app": "su", "message": "'su root' failed"}),
        (b"<13>May 31 12:00:00 10.0.0.9 %LINK-3: down", {"host": "10.0.0.9", "time_us": 1717156800000000}),
        (b"<13>2024-05-31T14:00:00+02:00 h cron[9]: x", {"app": "cron", "proc_id": "9", "time_us": 1717156800000000}),
        (b"<14>no header at all", {"message": "no header at all", "host": None, "time_us": None}),
        (b"no priority", {"message": "no priority", "problem": "no priority", "facility": None}),
        (b"<999>x", {"message": "<999>x", "problem": "no priority"}),
        (b"<13>\xff\xfe", {"message": "\ufffd\ufffd", "problem": "not UTF-8, replaced by U+FFFD"}),
        (b"", {"message": ""}),
    ],
)  # fmt: skip
def test_a_message_is_read_as_far_as_it_can_be(raw: bytes, expected: dict[str, Any]) -> None:
    found = read_message(raw, NOW_US, UTC)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("raw", "host", "message"),
    [
        (b"<189>123: May 31 2024 12:00:00.123: %SYS-5-CONFIG_I: c", None, "c"),
        (b"<189>123: R1: .May 31 12:00:00.123: %SYS-5-CONFIG_I: c", "R1", "c"),
        (b"<189>R1: May 31 12:00:00.123 UTC: %SYS-5-CONFIG_I: c", "R1", "c"),
    ],
)
def test_what_cisco_writes_before_the_time_hides_no_time(raw: bytes, host: str | None, message: str) -> None:
    found = read_message(raw, NOW_US, UTC)
    assert (found.time_us, found.host, found.app, found.message) == (1_717_156_800_123_000, host, "%SYS-5-CONFIG_I", message)


def test_a_word_before_what_is_no_time_stays_in_the_message() -> None:
    found = read_message(b"<189>5: su: May be", NOW_US, UTC)
    assert (found.time_us, found.host, found.message) == (None, None, "5: su: May be")


@pytest.mark.parametrize(
    ("written", "year"),
    [("May  1", 2026), ("Dec 25", 2026), ("Dec 31", 2026), ("Jan  5", 2026), ("Feb 29", None)],
)
def test_a_time_of_months_ago_is_not_one_of_months_ahead(written: str, year: int | None) -> None:
    now_us = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1e6)
    time_us = read_message(f"<13>{written} 00:00:00 h a: x".encode(), now_us, UTC).time_us
    assert (None if time_us is None else datetime.fromtimestamp(time_us / 1e6, UTC).year) == year


def test_the_year_of_an_old_time_brings_it_no_further_than_a_month_ahead() -> None:
    for now, year in ((datetime(2024, 1, 1, 0, 5, tzinfo=UTC), 2023), (datetime(2023, 12, 31, 23, 59, 59, tzinfo=UTC), 2023)):
        time_us = present(read_message(b"<13>Dec 31 23:59:58 h a: x", int(now.timestamp() * 1e6), UTC).time_us)
        assert datetime.fromtimestamp(time_us / 1e6, UTC) == datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    berlin = read_message(b"<13>Jun  1 02:00:00 h a: x", NOW_US, ZoneInfo("Europe/Berlin")).time_us
    assert berlin == NOW_US


@pytest.mark.parametrize(
    "text", ["<13>Oct 27 02:30:00 h a: x", "<13>2024-10-27T02:30:00 h a: x", "<13>1 2024-10-27T02:30:00 h a - - - x"]
)
@pytest.mark.parametrize("arrived_us", [1_729_989_000_000_000, 1_729_992_600_000_000], ids=["summer", "winter"])
def test_an_hour_that_comes_twice_is_the_one_nearer_to_its_arrival(text: str, arrived_us: int) -> None:
    assert read_message(text.encode(), arrived_us + 5_000_000, ZoneInfo("Europe/Berlin")).time_us == arrived_us


@given(st.binary(max_size=200), st.integers(0, 4_000_000_000_000_000))
def test_no_bytes_break_the_reader(raw: bytes, now_us: int) -> None:
    found = read_message(raw, now_us, UTC)
    assert isinstance(found.message, str)
    read_message(b"<13>1 " + raw, now_us, UTC)
    read_message(b"<13>Jan  1 00:00:00 " + raw, now_us, None)


TEXTS = st.binary(min_size=1, max_size=40).filter(lambda b: b"\n" not in b and b[:1] not in b"123456789")
MESSAGES = st.lists(st.one_of(TEXTS, TEXTS.map(lambda text: b"<13>" + text)), max_size=12)


@given(MESSAGES, st.data())
def test_a_stream_cut_anywhere_gives_the_same_messages(messages: list[bytes], data: DataObject) -> None:
    stream = b""
    for message in messages:
        # A message that is counted begins with its priority (RFC 6587, 3.4.1).
        is_counted = message.startswith(b"<") and data.draw(st.booleans())
        stream += f"{len(message)} ".encode() + message if is_counted else message + b"\n"
    frames = FrameBuffer(64, Rejects("test"))
    found: list[bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += frames.add(stream[:cut])
        stream = stream[cut:]
    assert found + frames.end() == messages


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_no_stream_is_held_beyond_the_limit(pieces: list[bytes]) -> None:
    frames = FrameBuffer(20, Rejects("test"))
    for piece in pieces:
        assert all(0 < len(message) <= 20 for message in frames.add(piece))
        assert frames.held_bytes <= 20 + 8
    frames.end()
