"""Over a link that is slow or breaks, through a real TCP proxy: what is sent arrives, and little is sent twice."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import BrokerConfig
from tests.fakes.bad_link import BadLink
from tests.fakes.device import ALPHA, Device, eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker

MIB = 1024 * 1024


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(link: Any, **uplink: Any) -> Device:
        made.append(Device(tmp_path, link, **uplink))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("cut", "size_bytes"),
    [
        pytest.param({"cut_after_bytes": 3 * MIB}, 10 * MIB, id="by bytes"),
        pytest.param({"cut_after_s": 0.3, "bytes_per_s": 8 * MIB}, 6 * MIB, id="by time", marks=pytest.mark.slow),
    ],
)
def test_a_large_payload_crosses_a_link_that_breaks_again_and_again(
    broker: RunningBroker, device: Callable[..., Device], cut: dict[str, Any], size_bytes: int
) -> None:
    content = os.urandom(size_bytes)
    with FakeCore(broker.host, broker.port) as core, BadLink(broker.port, **cut) as link:
        agent = device(link, part_bytes=MIB)
        digest = agent.put_large(content)
        eventually(lambda: agent.spooled() == 0, 60)
        assert core.objects == {digest: content}
        assert [body for _, body in core.landed] == [b"row"], "the object arrives once, and its sample once"
        assert link.cuts >= 3
        distinct = {(part.offset, part.length) for part in core.parts if part.length}
        resent = agent.forwarder.parts_sent - len(distinct)
        assert resent <= link.cuts, f"{resent} parts were sent again over {link.cuts} breaks"


@pytest.mark.slow
def test_a_link_too_slow_for_a_whole_part_between_two_breaks_still_gets_the_payload_through(
    broker: RunningBroker, device: Callable[..., Device]
) -> None:
    content = os.urandom(MIB)
    with FakeCore(broker.host, broker.port) as core, BadLink(broker.port, cut_after_bytes=300_000) as link:
        agent = device(link, part_bytes=MIB)
        digest = agent.put_large(content)
        eventually(lambda: agent.spooled() == 0, 60)
        assert core.objects == {digest: content}
        assert link.bytes_up < 3 * len(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("link_bytes_per_s", "own_bytes_per_s", "size_bytes"),
    [pytest.param(60_000, 0, 700_000, id="slow link"), pytest.param(None, 60_000, 540_000, id="slow by our own rate")],
)
def test_one_long_message_on_a_slow_link_is_no_dead_connection(
    broker: RunningBroker, device: Callable[..., Device], link_bytes_per_s: int | None, own_bytes_per_s: int, size_bytes: int
) -> None:
    """It takes longer than a keep-alive time bears; a client that counts only answers would start over permanently."""
    with FakeCore(broker.host, broker.port), BadLink(broker.port, bytes_per_s=link_bytes_per_s) as link:
        connection = BrokerConfig(host=link.host, port=link.port, keepalive_s=5)
        agent = device(link, connection=connection, resend_after_s=60.0, bytes_per_s=own_bytes_per_s)
        agent.put(os.urandom(size_bytes))
        eventually(lambda: agent.spooled() == 0, 60)
        assert link.connections == 1
        assert agent.forwarder.progress.sent_count == 1


def test_samples_cross_a_breaking_link_once_each(broker: RunningBroker, device: Callable[..., Device]) -> None:
    with FakeCore(broker.host, broker.port) as core, BadLink(broker.port, cut_after_s=0.4) as link:
        agent = device(link)
        for n in range(300):
            agent.put(b"%d" % n * 2_000, count=10)
        eventually(lambda: agent.spooled() == 0, 40)
        assert [ranges.spans for ranges in core.landed_seqs(ALPHA).values()] == [((0, 3_000),)]
        assert agent.spool.books()[0].is_balanced
