"""Syslog by NUL trailers beside line feeds and counts, and Meraki's header: every message once, whatever the stream mixes."""

import re
import socket
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from catchment.runtime.clock import SystemClock
from edge_agent.sources.api import Rejects
from edge_agent.sources.network.frames import FrameBuffer
from edge_agent.sources.syslog.source import build, read_message
from schemas.contract import builtin_contract
from tests.fakes.drained import rows

LOGS = builtin_contract("log_line")
NOW_US = int(datetime(2024, 6, 1, tzinfo=UTC).timestamp() * 1e6)


def fed(frames: FrameBuffer, stream: bytes, step: int = 1) -> list[bytes]:
    """What comes of a stream in pieces, and of its end."""
    found = [message for at in range(0, len(stream), step) for message in frames.add(stream[at : at + step])]
    return found + frames.end()


@pytest.mark.parametrize("step", [1, 3, 1_000])
@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"<13>a\0<13>b\0", [b"<13>a", b"<13>b"]),
        (b"<13>a\0", [b"<13>a"]),
        (b"<13>a\0no priority\0<13>b\0", [b"<13>a\0no priority", b"<13>b"]),
        (b"<13>a\0<13>b\0no priority\0", [b"<13>a", b"<13>b", b"no priority"]),
        (b"<13>one\n\tat two\0<13>b\0<13>c\n\tat d\0", [b"<13>one", b"\tat two", b"<13>b", b"<13>c\n\tat d"]),
        (b"<13>lf\n<13>nul\0<13>lf\n<13>nul\0", [b"<13>lf", b"<13>nul", b"<13>lf", b"<13>nul"]),
        (b"<13>nul\x000 <13>\n<13>b\n", [b"<13>nul\x000 <13>", b"<13>b"]),
        (b"<13>nul\x005 <13>b<13>c\0", [b"<13>nul", b"<13>b", b"<13>c"]),
        (b"<13>within\0a line\n<13>b\n", [b"<13>within\0a line", b"<13>b"]),
        (b"<13>at its end\0\n<13>b\n", [b"<13>at its end\0", b"<13>b"]),
        (b"\0\0<13>a\0\0<13>b\0", [b"\0", b"<13>a", b"<13>b"]),
        (b"9 files gone\0<13>b\0", [b"9 files gone", b"<13>b"]),
        (b"20 <13>half\0", []),
    ],
)
def test_a_nul_ends_a_message_where_another_follows(stream: bytes, expected: list[bytes], step: int) -> None:
    assert fed(FrameBuffer(64, Rejects("test")), stream, step) == expected


PRI = st.integers(0, 191).map(lambda number: f"<{number}>".encode())
PLAIN = st.binary(max_size=30).filter(lambda body: not set(body) & {0, 10})
MESSAGES = st.lists(st.tuples(PRI, PLAIN).map(b"".join), min_size=1, max_size=12)


@given(MESSAGES, st.data())
def test_a_stream_of_all_framings_cut_anywhere_gives_the_same_messages(messages: list[bytes], data: DataObject) -> None:
    stream = b""
    for message in messages:
        framing = data.draw(st.sampled_from(["lf", "nul", "counted"]))
        stream += (
            f"{len(message)} ".encode() + message if framing == "counted" else message + (b"\n" if framing == "lf" else b"\0")
        )
    frames = FrameBuffer(64, Rejects("test"))
    found: list[bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += frames.add(stream[:cut])
        stream = stream[cut:]
    assert found + frames.end() == messages


@given(st.lists(st.tuples(PRI, st.binary(max_size=30).filter(lambda body: 0 not in body)).map(b"".join), min_size=2, max_size=8))
def test_once_a_connection_ends_its_messages_by_nul_line_feeds_are_part_of_them(messages: list[bytes]) -> None:
    frames = FrameBuffer(64, Rejects("test"))
    assert frames.add(b"<1>x\0<1>y\0") == [b"<1>x", b"<1>y"]
    # But where a line begins as a message does, with its priority or its count.
    assume(not any(re.search(rb"\n[<1-9]", message) for message in messages))
    stream = b"".join(message + b"\0" for message in messages)
    assert [found for byte in stream for found in frames.add(bytes((byte,)))] + frames.end() == messages


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_no_stream_is_held_beyond_the_limit_and_what_is_idle_is_let_go(pieces: list[bytes]) -> None:
    frames = FrameBuffer(20, Rejects("test"))
    for piece in pieces:
        assert all(0 < len(message) <= 20 for message in (*frames.add(piece), *frames.idle()))
        assert frames.held_bytes <= 20 + 13
    frames.end()


def test_an_overlong_message_that_ends_by_nul_costs_itself_alone() -> None:
    rejects = Rejects("test")
    frames = FrameBuffer(20, rejects)
    stream = b"<13>a\0<13>" + b"y" * 200 + b"\0<13>b\0<13>" + b"z" * 17 + b"\0<13>c\0"
    assert fed(frames, stream, 7) == [b"<13>a", b"<13>b", b"<13>c"]
    assert rejects.counts == {"row: message above 20 bytes": 2}


def test_a_sender_of_nothing_but_nuls_costs_a_look_at_each_byte_once() -> None:
    frames = FrameBuffer(60_000, Rejects("test"))
    looked: list[int] = []
    frames._begins_message = looked.append  # type: ignore[assignment]
    for _ in range(500):
        frames.add(b"\0")
    assert len(looked) == 500


def test_a_message_that_ends_by_nul_arrives_although_none_follows() -> None:
    source = build({"listen": ["tcp://127.0.0.1:0"], "wait_ms": 50}, LOGS, SystemClock(), None)
    with socket.create_connection(("127.0.0.1", source.ports[0])) as sender:
        sender.sendall(b"<13>Nov 30 12:01:10 h a: one\0")
        assert [row["message"] for row in rows(source, 1)] == ["one"]
        sender.sendall(b"<13>Nov 30 12:01:11 h a: two\n\tstill two\0")
        assert [row["message"] for row in rows(source, 1)] == ["two\n\tstill two"]
        sender.sendall(b"<13>Nov 30 12:01:12 h a: three\0<13>Nov 30 12:01:13 h a: four\0")
        assert [row["message"] for row in rows(source, 2)] == ["three", "four"]
    assert source.rejected == {}
    source.close()


MERAKI_US = 1_563_249_630_774_247


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            b"<134>1 1563249630.774247467 MX84 urls src=192.168.1.9:53910 dst=1.2.3.4:80 request: GET http://a/",
            ("MX84", "urls", MERAKI_US, "src=192.168.1.9:53910 dst=1.2.3.4:80 request: GET http://a/"),
        ),
        (b"<134>1 1563249630.774247467 MR18 events type=association", ("MR18", "events", MERAKI_US, "type=association")),
        (b"<134>1 1563249630.774247467 MR18 events type=x radio='0' vap='1' channel='6'", ("MR18", "events", MERAKI_US, None)),
        (
            b"<134>1 1563249630.774247467 My_MX ids-alerts signature=1:1 p=1 -x -y",
            ("My_MX", "ids-alerts", MERAKI_US, None),
        ),
        (b"<134>1 1563249630.774247467 MX84 flows", ("MX84", "flows", MERAKI_US, "")),
        (b"<134>1 1563249630 MX84 flows allow src=1", ("MX84", "flows", 1_563_249_630_000_000, "allow src=1")),
        (b"<134>1563249630.7 MX84 flows allow src=1", ("MX84", "flows", 1_563_249_630_700_000, "allow src=1")),
    ],
)
def test_merakis_header_is_its_time_its_device_and_which_log_it_is(raw: bytes, expected: tuple[Any, ...]) -> None:
    found = read_message(raw, NOW_US, UTC)
    host, app, time_us, message = expected
    assert (found.host, found.app, found.time_us, found.problem) == (host, app, time_us, "")
    assert (found.facility, found.severity, found.proc_id) == (16, 6, None)
    assert message is None or found.message == message


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"<13>1 1563249630.774247 h app 7 ID1 - text", {"time_us": MERAKI_US, "app": "app", "proc_id": "7", "message": "text"}),
        (b'<13>1 1563249630.774247 h app 7 ID1 [a b="c"] text', {"structured": {"a": {"b": "c"}}, "time_us": MERAKI_US}),
        (b"<13>1 2024-05-01T00:00:10Z h app - - - x", {"time_us": 1_714_521_610_000_000, "app": "app"}),
        (b"<13>1563249630 is a number and no time", {"time_us": None, "message": "1563249630 is a number and no time"}),
        (b"<13>1 12345.678 MX84 urls x", {"time_us": None}),
    ],
)
def test_a_time_in_seconds_is_no_reason_to_take_a_message_for_merakis(raw: bytes, expected: dict[str, Any]) -> None:
    found = read_message(raw, NOW_US, UTC)
    assert {name: getattr(found, name) for name in expected} == expected
