"""Receipts reach devices one by one: what the broker does not take for one of them delays no other, and no run."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from catchment.runtime.clock import SystemClock
from pipelines.config import CoreBrokerConfig, CoreConfig
from pipelines.errors import RetryLaterError
from pipelines.ingest.receipt_outbox import Broken, LinkLimits, ReceiptAnswer, ReceiptOutbox
from pipelines.ingest.receipt_sender import ReceiptSender
from pipelines.ingest.receipts import Outgoing, PageBook, receipts_of
from pipelines.lake.books import Counts, EpochKey
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import RUNS, receipt_pages_path
from pipelines.lake.ledger import Ledger
from schemas.ids import DeviceId, StreamName
from schemas.ranges import Ranges
from schemas.receipts import decode_receipt
from schemas.topics import Topics
from tests.fakes.broker_fronts import HangUpFront
from tests.plant.broker import MakeBroker
from tests.plant.core import Core, MakeEnvelope
from tests.plant.present import present

STREAM = "vehicle_telemetry"
OTHERS = [f"car-{number:02d}" for number in range(20)]
DEADLINE_S = 20.0


def ledger_with(fragments: dict[str, int], run: int = 1, before: Ledger | None = None) -> Ledger:
    """So many settled ranges of each device, with gaps between them."""
    keys = {
        EpochKey(device, STREAM, 7): Ranges(tuple((2 * n, 2 * n + 1) for n in range(count)))
        for device, count in fragments.items()
    }
    counts = {(key.device, key.stream): Counts(received=ranges.count, committed=ranges.count) for key, ranges in keys.items()}
    return (before or Ledger()).after(run, keys, counts, {})


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Ear:
    """Hears what is retained and what comes, below one filter."""

    def __init__(self, port: int, topic: str = "catchment/down/#") -> None:
        self.heard: dict[str, bytes] = {}
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = lambda _c, _u, message: self.heard.__setitem__(message.topic, bytes(message.payload))
        self._topic = topic
        self._client.on_connect = self._subscribe
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _subscribe(self, *_: object) -> None:
        self._client.subscribe(self._topic, qos=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._client.reinitialise()

    def devices(self) -> set[str]:
        return {topic.split("/")[2] for topic, body in self.heard.items() if body}

    def settled(self, device: str) -> Ranges:
        pages = [body for topic, body in self.heard.items() if body and topic.split("/")[2] == device]
        return Ranges.of(span for body in pages for span in decode_receipt(body).ranges(StreamName(STREAM), 7))


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    root = tmp_path / "lake"
    (root / RUNS).mkdir(parents=True)
    return root


def config_of(lake: Path, port: int) -> CoreConfig:
    return CoreConfig(lake=str(lake), broker=CoreBrokerConfig(port=port))


@pytest.fixture
def sender(lake: Path) -> Iterator[Callable[[int], ReceiptSender]]:
    started: list[ReceiptSender] = []

    def start(port: int) -> ReceiptSender:
        started.append(
            ReceiptSender(lake_at(lake), config_of(lake, port).broker, f"catchment-run-{len(started)}", SystemClock()).__enter__()
        )
        return started[-1]

    yield start
    for one in started:
        one.__exit__(None, None, None)


@pytest.mark.broker
def test_a_receipt_above_the_packet_limit_goes_out_as_pages_and_delays_nobody(
    make_broker: MakeBroker, sender: Callable[[int], ReceiptSender]
) -> None:
    broker = make_broker(max_packet_bytes=4_096)
    ledger = ledger_with({"car-0": 5_000, **dict.fromkeys(OTHERS, 2)})
    one = sender(broker.port)
    one.mark_pending(ledger, ["car-0", *OTHERS])
    one.step()
    with Ear(broker.port) as ear:
        until(lambda: ear.devices() == {"car-0", *OTHERS} and one.pending == 0)
        until(lambda: ear.settled("car-0") == ledger.of(["car-0"]).ranges()[EpochKey(DeviceId("car-0"), StreamName(STREAM), 7)])
        assert max(map(len, ear.heard.values())) < 4_096
        assert decode_receipt(ear.heard["catchment/down/car-0/receipts"]).pages == len(ear.heard) - len(OTHERS)
    assert one.failing == {}


@pytest.mark.broker
def test_pages_that_are_no_longer_needed_are_emptied_also_by_the_next_process(
    make_broker: MakeBroker, sender: Callable[[int], ReceiptSender], lake: Path
) -> None:
    broker = make_broker(max_packet_bytes=4_096)
    first = sender(broker.port)
    first.mark_pending(ledger_with({"car-0": 2_000}), ["car-0"])
    first.drain()
    pages = json.loads(receipt_pages_path(lake).read_bytes())["car-0"]
    assert pages > 2
    first.__exit__(None, None, None)
    second = sender(broker.port)
    key = EpochKey("car-0", STREAM, 7)
    second.mark_pending(Ledger().after(2, {key: Ranges(((0, 4_000),))}, {("car-0", STREAM): Counts()}, {}), ["car-0"])
    second.drain()
    with Ear(broker.port) as ear:
        until(lambda: "car-0" in ear.devices())
        assert list(ear.heard) == ["catchment/down/car-0/receipts"]
    assert json.loads(receipt_pages_path(lake).read_bytes()) == {}


@pytest.mark.broker
def test_a_broker_that_announces_no_limit_and_refuses_the_size_gets_smaller_pages(
    make_broker: MakeBroker, sender: Callable[[int], ReceiptSender]
) -> None:
    broker = make_broker(extra="message_size_limit 3000")
    ledger = ledger_with({"car-0": 3_000, **dict.fromkeys(OTHERS, 2)})
    one = sender(broker.port)
    one.mark_pending(ledger, ["car-0", *OTHERS])
    one.drain()
    assert (one.pending, one.failing) == (0, {})
    with Ear(broker.port) as ear:
        until(lambda: ear.settled("car-0") == ledger.of(["car-0"]).ranges()[EpochKey(DeviceId("car-0"), StreamName(STREAM), 7)])


@pytest.mark.broker
def test_a_device_that_the_broker_refuses_is_an_alarm_of_its_own_and_is_tried_again(
    make_broker: MakeBroker, sender: Callable[[int], ReceiptSender], tmp_path: Path
) -> None:
    rules = tmp_path / "acl"
    rules.write_text("".join(f"topic readwrite catchment/down/{device}/#\n" for device in OTHERS))
    broker = make_broker(extra=f"acl_file {rules}")
    one = sender(broker.port)
    one.mark_pending(ledger_with(dict.fromkeys(["car-0", *OTHERS], 2)), ["car-0", *OTHERS])
    one.step()
    with Ear(broker.port) as ear:
        until(lambda: ear.devices() == set(OTHERS))
        until(lambda: "car-0" in one.failing)
        assert "0x87" in one.failing["car-0"]
        rules.write_text("topic readwrite catchment/#\n")
        present(broker.process).send_signal(1)  # SIGHUP: mosquitto reads the rules again
        until(lambda: "car-0" in ear.devices())
    until(lambda: one.failing == {} and one.pending == 0)


@pytest.mark.slow
@pytest.mark.broker
def test_a_receipt_for_which_the_connection_is_cut_off_blocks_no_other(
    make_broker: MakeBroker, sender: Callable[[int], ReceiptSender]
) -> None:
    broker = make_broker()
    poison = ["car-00", "car-07"]
    with HangUpFront(broker.port, lambda topic, _: topic.split("/")[2] in poison) as front:
        one = sender(front.port)
        one.mark_pending(ledger_with(dict.fromkeys(OTHERS, 2)), OTHERS)
        one.step()
        with Ear(broker.port) as ear:
            until(lambda: ear.devices() == {*OTHERS} - {*poison})
            until(lambda: set(one.failing) == {*poison})
            for run in range(2, 4):  # and so it goes on
                ear.heard.clear()
                one.mark_pending(ledger_with(dict.fromkeys(OTHERS, run + 1), run), OTHERS)
                one.step()
                until(lambda: ear.devices() == {*OTHERS} - {*poison})
            front.is_unwanted = lambda *_: False
            until(lambda: one.pending == 0)
            assert ear.devices() == {*OTHERS}


@pytest.mark.broker
def test_what_was_not_published_survives_a_restart(make_broker: MakeBroker, core: Core, envelope: MakeEnvelope) -> None:
    core.mailbox.is_away = True
    core.landing.seal([envelope(0, 10), envelope(0, 5, device="car-2")])
    assert core.run().receipts_pending == 2
    broker = make_broker()
    with ReceiptSender(lake_at(core.root), config_of(core.root, broker.port).broker, "catchment-run", SystemClock()) as again:
        core.run(again)
        again.drain()
    with Ear(broker.port) as ear:
        until(lambda: ear.devices() == {"car-1", "car-2"})


def test_a_broker_that_is_unreachable_holds_no_run_up(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 10)])
    with ReceiptSender(lake_at(core.root), config_of(core.root, 1).broker, "catchment-run", SystemClock()) as sender:
        loop = core.loop(sender)
        assert loop.step()
        assert loop.receipts_pending == 1


@dataclass
class Clock:
    now_s: float = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def now_ms(self) -> int:
        return 0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class FakeLink:
    """A broker that breaks the connection on some devices, refuses some, and never answers others."""

    breaks: set[str] = field(default_factory=set)
    refuses: set[str] = field(default_factory=set)
    swallows: set[str] = field(default_factory=set)
    is_away: bool = False
    published: list[str] = field(default_factory=list)
    connections: int = 1
    _answers: list[ReceiptAnswer | Broken] = field(default_factory=list)
    _number: int = 0
    _is_broken: bool = False

    def limits(self) -> LinkLimits | None:
        if self.is_away:
            return None
        if self._is_broken:
            self._is_broken, self.connections = False, self.connections + 1
        return LinkLimits(2_000, 10)

    def send(self, message: Outgoing) -> int:
        if self._is_broken or self.is_away:
            raise RetryLaterError("gone")
        self._number += 1
        device = message.topic.split("/")[2]
        if device in self.breaks:
            self._answers.append(Broken("reset"))
            self._is_broken = True
        elif device in self.refuses:
            self._answers.append(ReceiptAnswer(self._number, 0x87))
        elif device not in self.swallows:
            self.published.append(device)
            self._answers.append(ReceiptAnswer(self._number, 0))
        return self._number

    def answers(self) -> list[ReceiptAnswer | Broken]:
        taken, self._answers = self._answers, []
        return taken

    def reset(self, reason: str) -> None:
        self._answers.append(Broken(reason))
        self._is_broken = True


def test_among_a_hundred_devices_three_hostile_ones_are_found_and_all_others_are_served(lake: Path) -> None:
    link, clock = FakeLink(breaks={"car-1", "car-50"}, refuses={"car-2"}, swallows={"car-3"}), Clock()
    outbox = ReceiptOutbox(link, Topics(), clock, PageBook(lake_at(lake)))
    devices = [f"car-{number}" for number in range(100)]
    outbox.mark_pending(ledger_with(dict.fromkeys(devices, 1)), devices)
    hostile = {"car-1", "car-2", "car-3", "car-50"}
    for _ in range(100):
        outbox.step()
        clock.now_s += 1.0
        if set(link.published) >= {*devices} - hostile and set(outbox.failing) == hostile:
            break
    assert set(link.published) == {*devices} - hostile
    assert set(outbox.failing) == hostile
    assert outbox.pending == len(hostile)
    connections, tries = link.connections, clock.now_s
    for _ in range(1_000):
        outbox.step()
        clock.now_s += 1.0
    # Pauses grow to five minutes: a hostile device costs the others a handful of connections, not one each second.
    assert link.connections - connections < 60, tries
    link.breaks, link.refuses, link.swallows = set(), set(), set()
    for _ in range(700):
        outbox.step()
        clock.now_s += 1.0
    assert (outbox.pending, outbox.failing) == (0, {})


def test_a_device_that_is_owed_a_newer_receipt_while_one_is_under_way_gets_both(lake: Path) -> None:
    link, clock = FakeLink(swallows={"car-1"}), Clock()
    outbox = ReceiptOutbox(link, Topics(), clock, PageBook(lake_at(lake)))
    outbox.mark_pending(ledger_with({"car-1": 1}), ["car-1"])
    outbox.step()
    outbox.mark_pending(ledger_with({"car-1": 2}, run=2), ["car-1"])
    link.swallows = set()
    link._answers.append(ReceiptAnswer(1, 0))
    outbox.step()
    assert (link.published, outbox.pending) == (["car-1"], 0)


def test_a_receipt_that_fits_no_page_is_its_devices_failure_alone(lake: Path) -> None:
    link, clock = FakeLink(), Clock()
    link.limits = lambda: LinkLimits(300, 10)  # type: ignore[method-assign]  # a broker for very small messages
    outbox = ReceiptOutbox(link, Topics(), clock, PageBook(lake_at(lake)))
    outbox.mark_pending(ledger_with({"car-1": 100, "car-2": 1, "No Device": 1}), ["car-1", "No Device", "car-2"])
    outbox.step()
    assert link.published == ["car-2"]
    assert set(outbox.failing) == {"car-1", "No Device"}
    assert "needs 512 bytes" in outbox.failing["car-1"]


def test_the_receipt_of_a_device_with_nothing_settled_tells_of_its_refusals() -> None:
    ledger = Ledger().after(
        1, {}, {("car-1", ""): Counts(received=3, quarantined=3)}, {}, reasons={("car-1", ""): {"content type '…'": 3}}
    )
    assert ledger.devices_with_receipt() == {"car-1"}
    refused = receipts_of(ledger, ["car-1"])["car-1"].refused[""]
    assert (refused.quarantined, refused.is_total, refused.reason) == (3, True, "content type '…'")
