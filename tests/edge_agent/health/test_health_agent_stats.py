"""Alive, in progress, and what the figures say: pure decisions, and the port that tells them."""

import dataclasses
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.config import HealthConfig
from edge_agent.errors import ConfigError, SpoolError
from edge_agent.health.agent_stats import AgentStats, check_live, check_ready, render_metrics
from edge_agent.health.server import HealthServer
from schemas.receipts import RefusedStream
from schemas.reported import StreamBooks

GOOD = AgentStats(
    device="dev-a",
    version="1.2",
    last_loop_age_s={"main": 0.1, "uplink": 0.4},
    is_connected=True,
    uptime_s=100.0,
    oldest_unsettled_s=None,
    last_receipt_s=None,
    last_ack_s=None,
    sent=3,
    not_sent=0,
    resent=0,
    parked=0,
    used_bytes=4_096,
    max_bytes=1 << 30,
    rss_bytes=30_000_000,
    sources_running=1,
    books=(StreamBooks("alpha", 10, 6, 1, {"evicted": 3}),),
    left_out=(("alpha", 'odd "name"\\', 4),),
)


def but(**changes: object) -> AgentStats:
    return dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]  # each test names fields of it


@pytest.mark.parametrize(
    ("stats", "is_live", "is_ready", "fragment"),
    [
        (GOOD, True, True, "nothing waits"),
        (but(is_connected=False), True, False, "no connection"),
        (but(oldest_unsettled_s=20.0), True, True, "waited 20 s"),
        (but(oldest_unsettled_s=4_000.0, last_receipt_s=2.0), True, True, "catching up"),
        (but(oldest_unsettled_s=4_000.0, last_receipt_s=900.0), True, False, "900 s ago"),
        (but(oldest_unsettled_s=4_000.0), True, False, "never"),
        (but(last_loop_age_s={"main": 0.1, "uplink": 31.0}), False, False, "uplink came round 31 s ago"),
        (but(failure="disk gone"), False, False, "disk gone"),
        (
            but(refused=(("alpha", RefusedStream(40, 0, 40, "speed: above N")),)),
            True,
            False,
            "alpha: refused by the core: 100 % (40",
        ),
        (but(refused=(("alpha", RefusedStream(40, 900, 12, "x")),)), True, False, "100 % (12 in a row), mostly: x"),
        (but(refused=(("alpha", RefusedStream(40, 960)),)), True, True, "nothing waits"),
        (but(refused=(("", RefusedStream(3, 0, 3)),)), True, False, "messages that name no stream: refused by the core: 100 %"),
    ],
)
def test_alive_is_not_the_same_as_in_progress(stats: AgentStats, is_live: bool, is_ready: bool, fragment: str) -> None:
    live, ready = check_live(stats, 30.0), check_ready(stats, 30.0, 300.0)
    assert (live.is_good, ready.is_good) == (is_live, is_ready)
    assert fragment in ready.message


def test_the_refused_share_is_a_figure_of_each_stream() -> None:
    text = render_metrics(but(refused=(("alpha", RefusedStream(40, 960)), ("beta", RefusedStream(7, 900, 10)))))
    assert 'catchment_agent_refused_share{stream="alpha"} 0.04\n' in text
    assert 'catchment_agent_refused_share{stream="beta"} 1' in text
    assert 'catchment_agent_refused_samples{stream="alpha"} 40' in text
    assert 'catchment_agent_refused_in_row_samples{stream="beta"} 10' in text


def test_the_figures_are_in_prometheus_text_format() -> None:
    text = render_metrics(GOOD)
    sample = re.compile(r'^[a-z_]+(\{([a-z_]+="(\\.|[^"\\])*",?)+\})? -?[0-9.]+(e[+-][0-9]+)?$')
    named, typed = set(), {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in typed, "a family stands once"
            typed[name] = kind
        elif not line.startswith("#"):
            assert sample.fullmatch(line), line
            named.add(re.split(r"[{ ]", line)[0])
    assert named == set(typed)
    assert {name for name in named if name.endswith("_total")} == {name for name, kind in typed.items() if kind == "counter"}
    assert 'catchment_agent_dropped_samples_total{stream="alpha",reason="evicted"} 3' in text
    assert 'reason="odd \\"name\\"\\\\"' in text


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class BatchInspector:
    """What the port looks at."""

    def __init__(self) -> None:
        self.found: AgentStats | Exception = GOOD

    def __call__(self) -> AgentStats:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def snapshot() -> BatchInspector:
    return BatchInspector()


@pytest.fixture
def port(snapshot: BatchInspector, free_port: int) -> Iterator[int]:
    with HealthServer(HealthConfig(port=free_port), snapshot) as server:
        yield server.port


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_port_answers_by_what_it_sees(port: int, snapshot: BatchInspector) -> None:
    assert ask(port, "/live") == (200, "live\n")
    assert ask(port, "/ready")[0] == 200
    assert "catchment_agent_connected 1" in ask(port, "/metrics")[1]
    snapshot.found = but(is_connected=False)
    assert ask(port, "/live")[0] == 200
    assert ask(port, "/ready")[0] == 503
    snapshot.found = SpoolError("broken")
    assert ask(port, "/metrics") == (503, "broken\n")
    assert ask(port, "/../etc/passwd")[0] == 404


def test_it_listens_on_the_loopback_alone(port: int) -> None:
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening


def test_a_taken_port_is_reported_with_its_key(port: int, snapshot: BatchInspector) -> None:
    with pytest.raises(ConfigError, match=r"\[health\] port"):
        HealthServer(HealthConfig(port=port), snapshot)
