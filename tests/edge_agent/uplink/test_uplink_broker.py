"""The uplink against a real broker: only receipts delete, whatever broker and core do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import DeviceId
from schemas.ranges import Ranges
from tests.fakes.device import ALPHA, DEVICE, Device, eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(broker: RunningBroker, **uplink: Any) -> Device:
        made.append(Device(tmp_path, broker, **uplink))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_samples_leave_the_spool_when_a_receipt_covers_them(broker: RunningBroker, device: Callable[..., Device]) -> None:
    with FakeCore(broker.host, broker.port) as core:
        agent = device(broker)
        for n in range(50):
            agent.put(b"%d" % n, count=10)
        eventually(lambda: agent.spooled() == 0)
        assert core.landed_seqs(ALPHA) == {agent.spool.epoch: Ranges(((0, 500),))}
        eventually(lambda: any(b.settled == 500 for r in core.reports for b in r.books))
        assert all(books.is_balanced for report in core.reports for books in report.books)


@pytest.mark.slow
def test_an_acknowledgement_of_the_broker_deletes_nothing(broker: RunningBroker, device: Callable[..., Device]) -> None:
    with FakeCore(broker.host, broker.port, is_settling=False) as core:
        agent = device(broker)
        agent.put(b"x", count=7)
        eventually(lambda: len(core.landed) >= 1)
        assert agent.spooled() == 7
        eventually(lambda: len(core.landed) >= 2)  # not settled in time: sent again
        core.settle_all(DEVICE)
        eventually(lambda: agent.spooled() == 0)
        assert agent.spool.books()[0].settled == 7


def test_without_a_subscriber_nothing_counts_as_sent(broker: RunningBroker, device: Callable[..., Device]) -> None:
    agent = device(broker)
    agent.put(b"x")
    eventually(lambda: agent.forwarder.progress.not_sent_count >= 2)
    assert agent.spooled() == 1
    with FakeCore(broker.host, broker.port):
        eventually(lambda: agent.spooled() == 0)


@pytest.mark.slow
def test_a_broker_restart_loses_nothing(broker: RunningBroker, device: Callable[..., Device]) -> None:
    with FakeCore(broker.host, broker.port) as core:
        agent = device(broker)
        for n in range(30):
            agent.put(b"%d" % n)
        broker.kill()
        for n in range(30):
            agent.put(b"%d" % n)
        broker.start()
        eventually(lambda: agent.spooled() == 0, 40)
        assert core.landed_seqs(ALPHA) == {agent.spool.epoch: Ranges(((0, 60),))}


def test_what_can_never_fit_the_brokers_packets_is_parked_and_the_rest_goes_on(
    make_broker: Callable[..., Any], device: Callable[..., Device]
) -> None:
    broker = make_broker(max_packet_bytes=20_000)
    with FakeCore(broker.host, broker.port) as core:
        agent = device(broker)
        agent.put(b"x" * 30_000, count=2)
        agent.put(b"y", count=3)
        eventually(lambda: agent.spool.books()[0].settled == 3)
        assert agent.spool.parked_samples() == 2
        assert [len(body) for _, body in core.landed] == [1]
        assert agent.spool.books()[0].is_balanced


def test_a_large_payload_goes_in_parts_and_a_broken_link_repeats_at_most_one(
    broker: RunningBroker, device: Callable[..., Device]
) -> None:
    content = bytes(range(256)) * 4096
    part_bytes = 64 * 1024
    with FakeCore(broker.host, broker.port, is_settling=True) as core:
        agent = device(broker, part_bytes=part_bytes)
        ref = agent.spool.put_object(content)
        agent.spool.append(Append(ALPHA, (NewEnvelope(1, b"row", "1.0.0", large=ref),))).result()
        eventually(lambda: len(core.parts) >= 4)
        broker.restart()
        eventually(lambda: agent.spooled() == 0, 40)
        assert core.objects == {ref.digest: content}
        parts = [part for part in core.parts if part.length]
        assert len(parts) <= len(content) // part_bytes + 1
        assert [body for _, body in core.landed] == [b"row"]


def test_an_evicted_range_is_reported_and_settled(broker: RunningBroker, device: Callable[..., Device], tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=8 << 20, linger_ms=0, clock=SystemClock())
    for _ in range(60):
        spool.append(Append(ALPHA, (NewEnvelope(1, b"x" * 100_000, "1.0.0"),))).result()
    dropped = spool.books()[0].dropped["evicted"]
    spool.close()
    with FakeCore(broker.host, broker.port) as core:
        agent = device(broker)
        eventually(lambda: agent.spooled() == 0)
        eventually(lambda: agent.spool.epochs() == ())
        books = agent.spool.books()[0]
        assert (books.captured, books.settled, books.dropped) == (60, 60 - dropped, {"evicted": dropped})
        assert core.reports


@pytest.mark.slow
def test_many_agents_come_back_after_a_broker_restart_and_not_all_at_once(broker: RunningBroker, tmp_path: Path) -> None:
    agents = [Device(tmp_path / f"{n}", broker, name=DeviceId(f"dev-{n}")) for n in range(15)]
    try:
        with FakeCore(broker.host, broker.port) as core:
            eventually(lambda: all(agent.forwarder.progress.is_connected for agent in agents))
            broker.restart()
            for agent in agents:
                agent.put(b"after", count=2)
            eventually(lambda: all(agent.spooled() == 0 for agent in agents), 60)
            assert len(core.landed) >= 15
            waits = {agent.forwarder.last_wait_s for agent in agents}
            assert len(waits) == 15, "each waited for a time of its own"
    finally:
        for agent in agents:
            agent.close()
