"""What comes by wire from strangers: scanners, odd devices and torn sentences cost themselves alone."""

import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.mqtt_local.session import BrokerAccess, Subscription
from edge_agent.sources.netflow.export import LOST, Exporter
from edge_agent.sources.netflow.source import NetflowSource, build, flow_times
from edge_agent.sources.network.frames import FrameBuffer
from edge_agent.sources.network.sockets import SocketInbox
from edge_agent.sources.nmea.sentence import SentenceError, _rmc
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from edge_agent.sources.syslog.source import read_message
from schemas.contract import builtin_contract
from tests.fakes.drained import rows
from tests.plant.broker import RunningBroker

NOW_US = int(datetime(2024, 5, 31, 12, tzinfo=UTC).timestamp() * 1e6)


@pytest.fixture
def flows() -> Iterator[NetflowSource]:
    options = {"listen": "udp://127.0.0.1:0", "wait_ms": 50, "max_exporters": 4}
    made = build(options, builtin_contract("network_flow"), SystemClock(), None)
    yield made
    made.close()


def v5(sequence: int) -> bytes:
    return struct.pack("!HHIIIIBBH", 5, 1, 1000, 1_700_000_000, 0, sequence, 0, 0, 0) + bytes(48)


def test_garbage_takes_no_exporter_s_place(flows: NetflowSource) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(30):
            out.sendto(b"\xff" + os.urandom(40), ("127.0.0.1", flows.port))
        out.sendto(v5(0), ("127.0.0.1", flows.port))
    assert len(rows(flows, 1)) == 1
    assert flows.rejected == {"row: datagram is malformed": 30}


@pytest.mark.parametrize(("order", "lost"), [((0, 1, 3, 2, 4, 5), 1), ((0, 1, 2, 3), 0), ((0, 2, 3), 1), ((7, 0, 1), 0)])
def test_a_datagram_that_was_overtaken_is_counted_once(order: tuple[int, ...], lost: int) -> None:
    rejects = Rejects("test")
    exporter = Exporter(rejects)
    for sequence in order:
        exporter.read(v5(sequence))
    assert rejects.counts.get(LOST, 0) == lost


def ntp(at_s: float) -> bytes:
    return struct.pack("!II", int(at_s) + 2_208_988_800, int(at_s % 1 * (1 << 32)))


@pytest.mark.parametrize(
    ("fields", "record"),
    [
        (((154, 8), (155, 8)), ntp(1.6e9 + 0.5) + ntp(1.6e9 + 2)),
        (((156, 8), (157, 8)), ntp(1.6e9 + 0.5) + ntp(1.6e9 + 2)),
        (((152, 8), (161, 4)), struct.pack("!QI", 1_600_000_000_500, 1_500)),
    ],
)
def test_flows_that_tell_their_times_finely_or_how_long_they_took(
    fields: tuple[tuple[int, int], tuple[int, int]], record: bytes
) -> None:
    template = struct.pack("!HH", 256, len(fields)) + b"".join(struct.pack("!HH", *field) for field in fields)
    sets = struct.pack("!HH", 2, 4 + len(template)) + template + struct.pack("!HH", 256, 4 + len(record)) + record
    (export,) = Exporter(Rejects("test")).read(struct.pack("!HHIII", 10, 16 + len(sets), 1_700_000_000, 0, 7) + sets)
    assert flow_times(export.records[0], export) == (1_600_000_000_500.0, 1_600_000_002_000.0)


def test_a_scanner_that_is_gone_at_once_closes_on_nobody_else() -> None:
    class Scanned(ssl.SSLContext):
        def wrap_socket(self, *_: object, **__: object) -> ssl.SSLSocket:
            raise ConnectionResetError(104, "Connection reset by peer")

    rejects = Rejects("test")
    inbox = SocketInbox(lambda: FrameBuffer(100, rejects), 10, rejects)
    clear, tls = (inbox.add_listener("127.0.0.1", 0, context) for context in (None, Scanned(ssl.PROTOCOL_TLS_SERVER)))
    with socket.create_connection(("127.0.0.1", clear)) as sender:
        sender.sendall(b"<13>one\n")
        socket.create_connection(("127.0.0.1", tls)).close()
        found: list[bytes] = []
        for _ in range(100):
            found += [message.body for message in inbox.take(10, 0.05)]
            if found and rejects.counts:
                break
        sender.sendall(b"<13>two\n")
        while len(found) < 2:
            found += [message.body for message in inbox.take(10, 0.05)]
    inbox.close()
    assert (found, rejects.counts) == ([b"<13>one", b"<13>two"], {"connection: broke: Connection reset by peer": 1})


def test_a_line_that_begins_with_a_number_is_a_line() -> None:
    frames = FrameBuffer(100, Rejects("test"))
    found = [message for byte in b"12 files are gone\n<13>x\n5 <13>y7 <13>a b99 z\n" for message in frames.add(bytes((byte,)))]
    assert found == [b"12 files are gone", b"<13>x", b"<13>y", b"<13>a b", b"99 z"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"<189>29: *Mar  1 00:00:12: %SYS-5: up", {"app": None, "message": "29: *Mar  1 00:00:12: %SYS-5: up"}),
        (b"<189>May 31 2024 12:00:00: %ASA-6-302013: Built", {"app": "%ASA-6-302013", "time_us": NOW_US, "host": None}),
        (b"<189>May 31 2024 12:00:00 fw1 : %ASA-6: x", {"host": "fw1", "time_us": NOW_US}),
        (b"<13>Jun 1 2:00:00 h a: x", {"host": "h", "app": "a", "time_us": NOW_US + 14 * 3_600_000_000}),
        (b"<13>Feb 31 2024 12:00:00 h a: x", {"time_us": None, "message": "Feb 31 2024 12:00:00 h a: x"}),
        (b"\xef\xbb\xbf<13>x", {"facility": 1, "message": "x", "problem": ""}),
    ],
)
def test_messages_as_network_devices_write_them(raw: bytes, expected: dict[str, Any]) -> None:
    found = read_message(raw, NOW_US, UTC)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.fixture
def receiver() -> Iterator[Callable[..., GuardedSource]]:
    """A satellite receiver that says what it is told."""
    opened: list[socket.socket] = []
    built: list[GuardedSource] = []

    def start(*bodies: str) -> GuardedSource:
        server = socket.create_server(("127.0.0.1", 0))
        built.append(
            build_source(
                "nmea",
                {"source": f"tcp://127.0.0.1:{server.getsockname()[1]}"},
                builtin_contract("vehicle_telemetry"),
                SystemClock(),
                None,
            )
        )
        opened.extend((server, server.accept()[0]))
        opened[-1].sendall(b"".join(map(_sentence, bodies)))
        return built[-1]

    yield start
    for source in built:
        source.close()
    for one in opened:
        one.close()


def _sentence(body: str) -> bytes:
    total = 0
    for byte in body.encode():
        total ^= byte
    return f"${body}*{total:02X}\r\n".encode()


def test_fixes_that_lack_a_date_are_counted(receiver: Callable[..., GuardedSource]) -> None:
    source = receiver(*(f"GPGGA,12351{n},4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,," for n in range(5)))
    for _ in range(50):
        assert source.read(10) is None
        if source.rejected:
            break
    assert source.rejected == {"row: fix without a date: no RMC sentence told it": 4}


@pytest.mark.parametrize("time", ["240000", "126000", "123461", "995959"])
def test_a_time_of_day_that_cannot_be_is_refused(time: str) -> None:
    with pytest.raises(SentenceError, match="time that cannot be"):
        _rmc(f"GPRMC,{time},A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W".split(","))


def test_what_is_no_serial_line_is_let_go_of(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("/dev/null", str(tmp_path / "file")):
        Path(path).touch()
        with pytest.raises(SourceError, match="serial line"):
            build_source("nmea", {"source": path}, builtin_contract("vehicle_telemetry"), SystemClock(), None)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("topic", ["a/#/b", "a/b#", "a/+b", "#/a", "", "a\0", "x" * 70_000])
def test_a_wrong_topic_filter_is_reported_before_anything_starts(topic: str) -> None:
    with pytest.raises(ConfigError, match="topic"):
        check_source("mqtt-local", {"topics": ["fine/+/#", topic]}, builtin_contract("vehicle_telemetry"))


@pytest.mark.broker
def test_a_subscription_that_cannot_be_made_fails_instead_of_waiting_for_ever(broker: RunningBroker) -> None:
    threads = threading.active_count()
    access = BrokerAccess(broker.host, broker.port, "odd", "", "", "", 30, 0, 10)
    made = Subscription(access, ("a/#/b",), 1_000)

    def listen() -> None:
        while True:
            made.take(1, 0.05)

    with pytest.raises(SourceError, match="cannot subscribe"):
        listen()
    made.close()
    assert threading.active_count() <= threads
