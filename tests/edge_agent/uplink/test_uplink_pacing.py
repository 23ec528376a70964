"""A rate holds within a message, too: on real sockets with the clock in our hands, and on a real broker."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.config import BrokerConfig, UplinkConfig
from edge_agent.uplink import keepalive
from edge_agent.uplink.keepalive import KeepaliveClient
from edge_agent.uplink.rate_limiter import RateLimiter
from tests.fakes.bad_link import BadLink
from tests.fakes.device import Device, eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker

KEEPALIVE_S = 30
STEP_S = 0.02


class Clock:
    """What the client takes for the time."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class TestedClient(KeepaliveClient):
    """The client of one connection, without a broker: the test is its network thread."""

    __test__ = False

    def plug(self, end: object) -> None:
        self._sock = end  # type: ignore[assignment]  # a socket, or what is asked of one
        self._keepalive = KEEPALIVE_S
        self._thread = threading.current_thread()  # else paho writes as soon as something is queued

    def unplug(self) -> None:
        self._thread = None
        self._sock = None

    def queue(self, size_bytes: int) -> None:
        self._packet_queue(mqtt.PUBLISH, bytearray(size_bytes), mid=1, qos=1)

    def was_silent_for_long(self) -> None:
        self._last_bytes_received = self._last_msg_out = 0.0

    @property
    def has_pinged(self) -> bool:
        return self._ping_t != 0

    def is_alive(self, now_s: float) -> bool:
        return self._look(now_s)


class Line:
    """A client whose socket is real and whose network thread is the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(keepalive, "time", self.clock)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.near = socket.create_connection(listener.getsockname())
            self.far, _ = listener.accept()
        for end in (self.near, self.far):
            end.setblocking(False)
        self.client = TestedClient(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.plug(self.near)

    def queue(self, size_bytes: int) -> None:
        self.client.queue(size_bytes)

    def turn(self) -> int:
        """What arrived at the far end."""
        self.clock.now_s += STEP_S
        if self.client.want_write():
            assert self.client.loop_write() == mqtt.MQTT_ERR_SUCCESS
        arrived = 0
        while True:
            try:
                arrived += len(self.far.recv(1 << 20))
            except BlockingIOError:
                return arrived

    def fill(self) -> None:
        """Write until the far kernel has acknowledged all that it will: it goes on for a while, in its own time."""
        acknowledged, last_change_s = -1, time.monotonic()
        while time.monotonic() - last_change_s < 1.0:
            self.client.loop_write()
            if (taken := keepalive.taken_bytes(self.near)) != acknowledged:
                acknowledged, last_change_s = taken, time.monotonic()
            time.sleep(0.01)

    def close(self) -> None:
        self.client.unplug()
        self.near.close()
        self.far.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    made = Line(monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize("rate", [100_000, 500_000])
@pytest.mark.parametrize("body_bytes", [2_000, 40_000, 200_000, 4 * 1024 * 1024])
def test_any_ten_seconds_carry_the_rate_within_five_per_cent_whatever_the_size(line: Line, rate: int, body_bytes: int) -> None:
    rate_limiter = RateLimiter(UplinkConfig(bytes_per_s=rate))
    line.client.pacer.retune(rate)
    carried = [0]
    for _ in range(int(40 / STEP_S)):
        while rate_limiter.available_bytes(line.clock.now_s) > 0:
            line.queue(body_bytes)
            rate_limiter.sent(body_bytes)
        carried.append(carried[-1] + line.turn())
    after_the_first_s, window = int(1 / STEP_S), int(10 / STEP_S)
    for start in range(after_the_first_s, len(carried) - window, 7):
        assert carried[start + window] - carried[start] == pytest.approx(10 * rate, rel=0.05)


def test_another_rate_holds_in_the_middle_of_a_message_and_none_lets_the_rest_go(line: Line) -> None:
    line.client.pacer.retune(100_000)
    line.queue(3_000_000)
    slow = sum(line.turn() for _ in range(int(5 / STEP_S)))
    line.client.pacer.retune(200_000)
    fast = sum(line.turn() for _ in range(int(5 / STEP_S)))
    assert slow == pytest.approx(500_000, rel=0.1)
    assert fast == pytest.approx(1_000_000, rel=0.1)
    line.client.pacer.retune(0)
    assert sum(line.turn() for _ in range(50)) == 3_000_000 - slow - fast


def test_while_a_paced_message_moves_the_keep_alive_is_not_judged(line: Line) -> None:
    line.client.pacer.retune(1_000)
    line.queue(1_000_000)
    line.client.was_silent_for_long()
    for _ in range(int(3 * KEEPALIVE_S / STEP_S)):
        line.turn()
        assert line.client.loop_misc() == mqtt.MQTT_ERR_SUCCESS
    assert not line.client.has_pinged


def test_what_nobody_takes_is_judged_by_the_keep_alive(line: Line) -> None:
    """The kernel's buffer is full and stays so: to have given it bytes is no sign of life."""
    line.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    line.queue(16 * 1024 * 1024)
    line.fill()
    looks = []
    for _ in range(2 * KEEPALIVE_S):
        line.clock.now_s += 1.0
        line.client.loop_write()
        looks.append(line.client.is_alive(line.clock.now_s))
    assert looks[0]
    assert not looks[-1]
    assert all(before or not after for before, after in pairwise(looks)), "once it does not move, it is not alive again"


def test_a_frame_that_the_websocket_holds_back_is_not_forgotten(line: Line) -> None:
    """Paho's WebSocket takes a frame whole and tells 0 until the last byte of it went; its client drops such a packet."""

    class Holding:
        def __init__(self) -> None:
            self.offered: list[int] = []

        def send(self, data: bytes | bytearray) -> int:
            self.offered.append(len(data))
            return 0 if len(self.offered) < 3 else self.offered[0]

    held = Holding()
    line.client.plug(held)
    line.client.pacer.retune(10_000)
    line.queue(1_000)
    assert not line.client.want_write()
    line.clock.now_s += 10.0
    for _ in range(3):
        assert line.client.want_write()
        assert line.client.loop_write() == mqtt.MQTT_ERR_SUCCESS
    assert held.offered == [1_000, 1_000, 1_000]
    assert not line.client.want_write()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(link: Any, **uplink: Any) -> Device:
        made.append(Device(tmp_path, link, **uplink))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.slow
def test_to_stop_in_the_middle_of_a_paced_message_cuts_it_off_and_keeps_it(broker: RunningBroker, tmp_path: Path) -> None:
    with FakeCore(broker.host, broker.port) as core, BadLink(broker.port) as link:
        agent = Device(tmp_path, link, bytes_per_s=5_000)
        agent.put(b"x" * 2_000_000)
        eventually(lambda: link.bytes_up > 3_000)
        assert agent.spooled() == 1
        agent.close()
        assert link.bytes_up < 500_000
        assert core.landed == []


def test_a_paced_body_arrives_whole_over_websockets(make_broker: Callable[..., Any], device: Callable[..., Device]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    broker = make_broker(extra=f"listener {port} 127.0.0.1\nprotocol websockets")
    body = bytes(range(256)) * 3_000
    with FakeCore(broker.host, broker.port) as core:
        agent = device(None, connection=BrokerConfig(port=port, transport="websockets"), bytes_per_s=1_500_000)
        agent.put(body)
        eventually(lambda: agent.spooled() == 0)
        assert [landed for _, landed in core.landed] == [body]
