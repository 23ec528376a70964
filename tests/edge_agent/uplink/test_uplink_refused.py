"""What a broker refuses by size or quota: a size parks the envelope, a quota only makes it wait; both leave the rest its way."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.ranges import Ranges
from tests.fakes.broker_fronts import QUOTA_EXCEEDED, RefusingFront
from tests.fakes.device import ALPHA, Device, eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker

pytestmark = pytest.mark.broker


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(broker: RunningBroker, **uplink: Any) -> Device:
        made.append(Device(tmp_path, broker, **uplink))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_message_above_mosquittos_message_size_limit_is_parked_with_the_reason_and_the_rest_goes_on(
    make_broker: Callable[..., Any], device: Callable[..., Device]
) -> None:
    broker = make_broker(extra="message_size_limit 20000\n")
    with FakeCore(broker.host, broker.port):
        agent = device(broker)
        agent.put(b"x" * 30_000, count=2)
        agent.put(b"y", count=3)
        eventually(lambda: agent.spool.books()[0].settled == 3 and agent.spool.parked_samples() == 2)
        assert agent.spool.books()[0].is_balanced
        (parked,) = agent.parked_reasons()
        assert "0x95" in parked
        assert agent.forwarder.progress.is_connected


@pytest.mark.parametrize(("limit_bytes", "arrives"), [(300_000, True), (5_000, False)])
def test_parts_above_the_limit_become_smaller_and_a_payload_that_no_part_can_carry_is_parked(
    make_broker: Callable[..., Any], device: Callable[..., Device], limit_bytes: int, arrives: bool
) -> None:
    broker = make_broker(extra=f"message_size_limit {limit_bytes}\n")
    with FakeCore(broker.host, broker.port):
        agent = device(broker)
        agent.put_large(os.urandom(2_000_000))
        agent.put(b"y", count=3)
        eventually(lambda: agent.spool.parked_samples() == (0 if arrives else 1) and agent.spooled() == (0 if arrives else 1))
        assert agent.spool.books()[0].is_balanced
        assert agent.forwarder.parts_sent < 40


def test_what_is_over_the_quota_waits_and_is_never_parked_and_goes_when_there_is_quota_again(
    broker: RunningBroker, device: Callable[..., Device]
) -> None:
    with FakeCore(broker.host, broker.port) as core, RefusingFront(broker.port) as front:
        front.publishes, front.passed_first = {"catchment/up/": QUOTA_EXCEEDED}, {"catchment/up/": 5}
        agent = device(front)
        for n in range(20):
            agent.put(b"%d" % n)
        eventually(lambda: agent.forwarder.progress.not_sent_count >= 3 and agent.spooled() == 15)
        assert agent.spool.parked_samples() == 0
        assert agent.forwarder.progress.is_connected
        front.publishes = {}
        eventually(lambda: agent.spooled() == 0)
        assert core.landed_seqs(ALPHA) == {agent.spool.epoch: Ranges(((0, 20),))}
        assert agent.spool.books()[0].settled == 20
