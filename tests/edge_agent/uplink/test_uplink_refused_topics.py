"""An agent whose subscription, report or request is refused notices, says what to do, and goes on by itself afterwards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.commands.doctor.broker import examine_rights
from edge_agent.config import AgentConfig, BrokerConfig
from edge_agent.health.agent_stats import AgentStats, check_ready, render_metrics
from edge_agent.uplink.downlink import ModelRequest
from edge_agent.uplink.outbox import UplinkProgress
from tests.fakes.broker_fronts import RefusingFront
from tests.fakes.device import Device, eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker

DOWN = "catchment/down/dev-a/+"
PAGES = "catchment/down/dev-a/receipts/+"


@pytest.fixture
def front(broker: RunningBroker) -> Iterator[RefusingFront]:
    with RefusingFront(broker.port) as one:
        yield one


@pytest.fixture
def device(front: RefusingFront, tmp_path: Path) -> Iterator[Device]:
    one = Device(tmp_path, front)
    yield one
    one.close()


def test_a_refused_subscription_is_shown_until_it_is_granted(front: RefusingFront, tmp_path: Path) -> None:
    front.subscriptions = {"catchment/down/": 0x87}
    device = Device(tmp_path, front)
    try:
        progress = device.forwarder.progress
        eventually(lambda: progress.refused_topics == {DOWN: 0x87, PAGES: 0x87})
        assert progress.refused_count == 2
        front.subscriptions = {}
        front.hang_up()
        eventually(lambda: progress.refused_topics == {})
    finally:
        device.close()


@pytest.mark.slow
def test_a_refused_report_is_sent_again_until_the_broker_takes_it(
    broker: RunningBroker, front: RefusingFront, tmp_path: Path
) -> None:
    front.publishes = {"catchment/reported/": 0x97}
    with FakeCore(broker.host, broker.port) as core:
        device = Device(tmp_path, front)
        try:
            eventually(lambda: len(front.refused) >= 2)
            assert device.forwarder.progress.refused_topics == {"catchment/reported/dev-a": 0x97}
            assert core.reports == []
            front.publishes = {}
            eventually(lambda: bool(core.reports))
            eventually(lambda: device.forwarder.progress.refused_topics == {})
        finally:
            device.close()


def test_a_refused_request_for_a_model_is_noticed(front: RefusingFront, device: Device) -> None:
    front.publishes = {"catchment/models/get/": 0x87}
    eventually(lambda: device.forwarder.progress.is_connected)
    device.forwarder.request_model_piece(ModelRequest(correlation=b"q", body=b"{}"))
    eventually(lambda: device.forwarder.progress.refused_topics == {"catchment/models/get/dev-a": 0x87})


def test_the_doctor_names_the_subscription_that_is_refused(broker: RunningBroker, front: RefusingFront, tmp_path: Path) -> None:
    front.subscriptions = {"catchment/down/": 0x87}
    config = AgentConfig(state_dir=tmp_path, device="dev-a", broker=BrokerConfig(port=front.port))
    found = [finding for finding in examine_rights(config, SystemClock()) if DOWN in finding.message]
    assert len(found) == 1
    assert "0x87 not authorised" in found[0].message


def stats(**changes: Any) -> AgentStats:
    return AgentStats(
        **{
            "device": "d", "version": "0", "last_loop_age_s": {}, "is_connected": True, "uptime_s": 1.0,
            "oldest_unsettled_s": None, "last_receipt_s": None, "last_ack_s": None, "sent": 0, "not_sent": 0, "resent": 0,
            "parked": 0, "used_bytes": 0, "max_bytes": 1, "rss_bytes": 1, "sources_running": 0, "books": (), **changes,
        }
    )  # fmt: skip


def test_an_agent_that_may_not_hear_receipts_is_not_ready_and_its_metrics_say_why() -> None:
    found = stats(refused_topics=((DOWN, 0x87),), refused_count=3)
    assert DOWN in check_ready(found, 30, 300).message
    assert not check_ready(found, 30, 300).is_good
    assert check_ready(stats(refused_topics=(("catchment/models/get/d", 0x87),)), 30, 300).is_good
    page = render_metrics(found)
    assert f'catchment_agent_refused_topics{{topic="{DOWN}",reason="0x87"}} 1' in page
    assert "catchment_agent_refused_control_total 3" in page


def test_an_answer_is_logged_once_until_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    progress = UplinkProgress()
    assert [progress.note_answer("t", code) for code in (0x87, 0x87, 0, 0x97)] == [True, True, False, True]
    assert progress.refused_topics == {"t": 0x97}
    assert capsys.readouterr().out.count("topic_refused") == 2
