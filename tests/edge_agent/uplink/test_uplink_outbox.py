"""What goes out and what a broker's answer means for it, with a real spool, and time and answers by hand."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.config import UplinkConfig
from edge_agent.sections import ScheduleConfig
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from edge_agent.uplink.outbox import Outbox, UplinkProgress
from edge_agent.uplink.session import MAX_TRIES, OutgoingMessage
from schemas.ids import DeviceId, StreamName
from schemas.receipts import ObjectState, ShareNotice
from schemas.topics import Topics

ALPHA = StreamName("alpha")
DEVICE = DeviceId("dev-a")
NOON_MS = 1_700_000_000_000


class HandClock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def now_ms(self) -> int:
        return NOON_MS + int(self.now_s * 1_000)

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class HandSession:
    """Keeps what was published; the test answers."""

    max_packet_bytes = 1 << 20
    receive_maximum = 100

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.paced = -1

    def publish(self, message: OutgoingMessage) -> int:
        self.sent.append(message)
        return len(self.sent)

    def subscribe(self, filters: Sequence[str]) -> None:
        raise NotImplementedError

    def pace(self, bytes_per_s: int) -> None:
        self.paced = bytes_per_s

    def close(self) -> None:
        raise NotImplementedError


class Bench:
    """An outbox with everything around it."""

    def __init__(self, folder: Path, **uplink: Any) -> None:
        self.clock, self.session, self.progress = HandClock(), HandSession(), UplinkProgress()
        self.spool = Spool(folder / "spool", max_bytes=1 << 28, linger_ms=0, clock=SystemClock())
        config = UplinkConfig(**{"resend_after_s": 10_000.0, **uplink})
        self.outbox = Outbox(self.spool, config, Topics(), DEVICE, self.progress, self.clock)
        self.outbox.connected(self.session)

    def put(self, count: int, size_bytes: int, priority: int = 100) -> None:
        envelopes = tuple(NewEnvelope(1, b"x" * size_bytes, "1.0.0") for _ in range(count))
        self.spool.append(Append(ALPHA, envelopes, priority=priority)).result()

    def put_large(self, size_bytes: int) -> str:
        ref = self.spool.put_object(bytes(size_bytes))
        self.spool.append(Append(ALPHA, (NewEnvelope(1, b"row", "1.0.0", large=ref),))).result()
        return str(ref.digest)

    def turn(self, seconds: float = 0.0, code: int = 0) -> list[OutgoingMessage]:
        """One turn after so long; what it sent is answered with a code."""
        self.clock.sleep(seconds)
        before = len(self.session.sent)
        self.outbox.step(self.session, self.clock.now_s)
        for mid in range(before + 1, len(self.session.sent) + 1):
            self.outbox.acked(mid, code)
        return self.session.sent[before:]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**uplink: Any) -> Bench:
        made.append(Bench(tmp_path, **uplink))
        return made[-1]

    yield make
    for one in made:
        one.spool.close()


@pytest.mark.parametrize("code", [0x10, 0x87, 0x97], ids=["nobody listens", "not authorised", "over quota"])
def test_an_answer_that_is_no_delivery_is_tried_again_for_ever_and_alone(bench: Callable[..., Bench], code: int) -> None:
    one = bench()
    one.put(5, 100)
    assert len(one.turn(code=code)) == 5
    for _ in range(3 * MAX_TRIES):
        assert len(one.turn(30.0, code=code)) == 1, "one goes ahead, the others wait"
    assert one.spool.parked_samples() == 0
    assert one.progress.not_sent_count == 5 + 3 * MAX_TRIES
    assert len(one.turn(30.0)) == 1
    assert len(one.turn()) == 4
    assert sum(books.spooled for books in one.spool.books()) == 5, "and only a receipt deletes"


def test_an_error_that_stays_parks_the_envelope_with_its_reason_and_the_rest_goes_on(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.put(1, 100)
    for _ in range(MAX_TRIES):
        one.turn(30.0, code=0x83)
    assert one.spool.parked_samples() == 1
    one.put(1, 100)
    assert len(one.turn(30.0)) == 1
    assert one.progress.parked_count == 1


def test_a_large_payload_and_envelopes_share_a_rate_evenly(bench: Callable[..., Bench]) -> None:
    one = bench(bytes_per_s=100_000)
    digest = one.put_large(4_000_000)
    one.put(400, 10_000)
    by_kind = {"parts": 0, "up": 0}
    one.turn()
    one.turn(1.0)  # the question what the core has
    one.outbox.parts.heard(ObjectState(digest, 4_000_000, []))
    for _ in range(200):
        for message in one.turn(0.1):
            by_kind[message.topic.split("/")[1]] += len(message.body)
    assert sum(by_kind.values()) == pytest.approx(20 * 100_000, rel=0.05)
    assert by_kind["parts"] == pytest.approx(by_kind["up"], rel=0.1)


def test_a_rate_cuts_parts_so_that_it_stays_even(bench: Callable[..., Bench]) -> None:
    one = bench(bytes_per_s=100_000)
    digest = one.put_large(1_000_000)
    one.turn()
    one.turn(1.0)  # the question what the core has
    one.outbox.parts.heard(ObjectState(digest, 1_000_000, []))
    parts = [message for _ in range(20) for message in one.turn(0.25)]
    assert {len(message.body) for message in parts} == {25_000}
    assert one.session.paced == 100_000


def test_a_schedule_lets_the_cheap_samples_go_when_its_hour_comes(bench: Callable[..., Bench]) -> None:

    one = bench(min_priority=500)
    local = time.localtime(one.clock.now_ms() / 1_000)
    one.put(3, 100, priority=10)
    one.put(2, 100, priority=900)
    assert len(one.turn()) == 2
    assert one.turn(60.0) == []
    from_hour, to_hour = (local.tm_hour + 1) % 24, (local.tm_hour + 2) % 24
    night = ScheduleConfig(start=f"{from_hour:02}:{local.tm_min:02}", end=f"{to_hour:02}:{local.tm_min:02}")
    one.outbox.retune(UplinkConfig(min_priority=500, schedule=(night,), resend_after_s=10_000.0))
    assert one.turn() == []
    assert len(one.turn(3_600.0)) == 3
    one.put(1, 100, priority=10)
    assert one.turn(3_600.0) == []


def test_a_large_payload_that_is_worth_little_waits_on_a_metered_link(bench: Callable[..., Bench]) -> None:
    one = bench(min_priority=500)
    one.put_large(1_000_000)
    assert one.turn(20.0) == []
    one.outbox.retune(UplinkConfig(resend_after_s=10_000.0))
    assert [message.topic.split("/")[1] for message in one.turn()] == ["parts"]


def test_a_device_over_its_share_pauses_then_sends_again_what_was_not_landed_at_the_rate_it_was_given(
    bench: Callable[..., Bench],
) -> None:
    one = bench()
    one.put(10, 10_000)
    assert len(one.turn()) == 10
    one.outbox.over_share(ShareNotice("bytes", "more than 20000 bytes/s", 5_000, 20_000, 3))
    one.put(5, 10_000)
    assert one.turn(1.0) == []
    assert one.progress.over_share == "more than 20000 bytes/s"
    sent = [message for _ in range(40) for message in one.turn(0.5)]
    assert len(sent) == 15  # what had no receipt, and what waited
    assert one.session.paced == 20_000
    one.turn(700.0)
    assert one.progress.over_share == ""
    assert one.session.paced == 0


def test_a_notice_without_a_wait_stops_nothing(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.outbox.over_share(ShareNotice("streams", "more than 3 streams"))
    one.put(3, 100)
    assert len(one.turn()) == 3
    assert one.progress.share_notices == 1


def test_parts_that_are_not_taken_for_want_of_room_wait_and_are_never_parked(bench: Callable[..., Bench]) -> None:
    one = bench(part_bytes=100_000)
    digest = one.put_large(250_000)
    one.turn()
    for _ in range(20):
        one.outbox.parts.heard(ObjectState(digest, 250_000, [], error="no room", wait_ms=30_000, reason="no room"))
        assert one.turn(1.0) == []
        assert one.turn(10.0) == []
        sent = [message for _ in range(5) for message in one.turn(10.0)]
        assert any(message.body for message in sent)
    one.turn(11.0)  # it asks again what is there
    one.outbox.parts.heard(ObjectState(digest, 250_000, [(0, 100_000)]))
    sent = [message for _ in range(3) for message in one.turn(1.0)]
    assert {dict(message.properties)["offset"] for message in sent if message.body} >= {"100000", "200000"}
    one.outbox.parts.heard(ObjectState(digest, 250_000, [(0, 250_000)], settled=True))
    assert not one.outbox.parts.is_busy
