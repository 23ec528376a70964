"""A broker, or a proxy before it, that hangs up on one message: that one is put aside with the reason, all others arrive."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.mqtt_link import BrokerLimits, open_connection
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.uplink import session
from edge_agent.uplink.poison import HANGS_UP
from edge_agent.uplink.send_window import UplinkTimes
from schemas.ids import StreamName
from tests.fakes.broker_fronts import HangUpFront
from tests.fakes.device import Device, eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import Address, RunningBroker

pytestmark = pytest.mark.broker
BETA = StreamName("beta")


HURRIED = UplinkTimes(steady_s=0.2, careful_turn_s=0.02, first_reconnect_s=0.05)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(broker: Address, times: UplinkTimes = HURRIED) -> Device:
        made.append(Device(tmp_path, broker, times=times))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_real_mosquitto_that_hangs_up_on_a_packet_above_a_limit_it_did_not_tell_does_not_stop_the_rest(
    make_broker: Callable[..., Any], device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_without_limits(*args: Any, **more: Any) -> BrokerLimits:
        open_connection(*args, **more)
        return BrokerLimits()

    monkeypatch.setattr(session, "open_connection", open_without_limits)
    broker = make_broker(extra="max_packet_size 20000\n")
    with FakeCore(broker.host, broker.port):
        agent = device(broker)
        agent.put(b"a", count=3)
        agent.put(b"x" * 30_000, count=2)
        agent.put(b"b", count=5)
        eventually(lambda: agent.spool.books()[0].settled == 8 and agent.spool.parked_samples() == 2, 60)
        assert agent.spool.books()[0].is_balanced
        (reason,) = agent.parked_reasons()
        assert reason.startswith(HANGS_UP)
        assert "0x95" in reason, "Mosquitto says in its DISCONNECT that the packet was too large"
        agent.put(b"c")
        eventually(lambda: agent.spool.books()[0].settled == 9)


@pytest.mark.slow
def test_two_unwanted_messages_among_many_are_parked_and_can_be_replayed_when_the_reason_is_gone(
    broker: RunningBroker, device: Callable[..., Device]
) -> None:
    with FakeCore(broker.host, broker.port), HangUpFront(broker.port, lambda _, body: b"unwanted" in body) as front:
        agent = device(front)
        for n in range(60):
            agent.put(b"unwanted" if n in {7, 31} else b"%d" % n)
        eventually(lambda: agent.spool.books()[0].settled == 58 and agent.spool.parked_samples() == 2, 60)
        assert all(reason.startswith(HANGS_UP) for reason in agent.parked_reasons())
        before = front.hung_up
        front.is_unwanted = lambda *_: False
        agent.spool.replay(None)
        eventually(lambda: agent.spooled() == 0)
        assert front.hung_up == before
        assert before < 40, "bounded tries"


@pytest.mark.slow
def test_a_stream_without_a_right_waits_as_a_whole_and_goes_when_it_has_one_while_others_flow(
    broker: RunningBroker, device: Callable[..., Device]
) -> None:
    times = replace(HURRIED, first_pause_s=1.0, fresh_for_s=0.2)
    with FakeCore(broker.host, broker.port), HangUpFront(broker.port, lambda topic, _: topic.endswith("/beta")) as front:
        agent = device(front, times)
        for n in range(40):
            agent.put(b"%d" % n)
            agent.spool.append(Append(BETA, (NewEnvelope(1, b"%d" % n, "1.0.0"),))).result()

        def settled() -> dict[str, int]:
            return {books.stream: books.settled for books in agent.spool.books()}

        eventually(lambda: settled()["alpha"] == 40 and agent.forwarder.progress.waiting_streams == ("beta",), 40)
        assert agent.spool.parked_samples() == 0
        front.is_unwanted = lambda *_: False
        eventually(lambda: settled() == {"alpha": 40, "beta": 40}, 60)
        assert agent.forwarder.progress.waiting_streams == ()


@pytest.mark.slow
def test_a_device_all_of_whose_messages_are_unwanted_parks_none(broker: RunningBroker, device: Callable[..., Device]) -> None:
    with FakeCore(broker.host, broker.port), HangUpFront(broker.port, lambda topic, _: "/up/" in topic) as front:
        agent = device(front)
        for n in range(5):
            agent.put(b"%d" % n)
        eventually(lambda: front.hung_up >= 7, 60)
        assert agent.spool.parked_samples() == 0
        front.is_unwanted = lambda *_: False
        eventually(lambda: agent.spooled() == 0, 60)
