"""The windows and the reasons: pure bookkeeping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.spool.records import ObjectRef
from edge_agent.uplink.parts import Transfer
from edge_agent.uplink.send_window import Flight, Window
from edge_agent.uplink.session import MAX_TRIES, Verdict, judge
from schemas.ids import Digest
from schemas.receipts import ObjectState


@given(st.lists(st.tuples(st.sampled_from("saflo"), st.integers(0, 20), st.integers(1, 100)), max_size=60))
def test_the_windows_never_drift(steps: list[tuple[str, int, int]]) -> None:
    flight = Flight(1_000, 2_000, 10.0)
    mid, now_s, up = 0, 0.0, set()
    for what, id_, size in steps:
        now_s += 1
        if what == "s" and id_ not in up:
            mid += 1
            flight.sent(mid, id_, size, now_s)
            up.add(id_)
        elif what == "a":
            flight.acked(id_, now_s)
        elif what == "f":
            flight.forget([id_])
            up.discard(id_)
        elif what == "l":
            up -= set(flight.lost())
        elif what == "o":
            up -= set(flight.overdue(now_s))
        assert flight.unsettled_count == len(up)
        assert flight.unacked_count <= len(up)
    flight.forget(up)
    flight.lost()
    assert flight.room_bytes() == 1_000


def test_what_is_not_settled_is_due_each_time_after_twice_as_long() -> None:
    flight = Flight(1_000, 2_000, 10.0)
    flight.sent(1, 7, 5, 0.0)
    flight.acked(1, 0.1)
    assert flight.overdue(9.9) == []
    assert flight.overdue(10.0) == [7]
    flight.sent(2, 7, 5, 10.0)
    flight.acked(2, 10.1)
    assert flight.overdue(29.9) == []
    assert flight.overdue(30.0) == [7]


@pytest.mark.parametrize(
    ("code", "tries", "verdict"),
    [
        (0x00, 1, Verdict.TAKEN),
        (0x10, 99, Verdict.NOT_SENT),
        (0x87, 99, Verdict.NOT_SENT),
        (0x97, 99, Verdict.NOT_SENT),
        (0x95, 1, Verdict.NEVER),
        (0x80, 1, Verdict.NOT_SENT),
        (0x80, MAX_TRIES, Verdict.NEVER),
    ],
)
def test_reasons(code: int, tries: int, verdict: Verdict) -> None:
    assert judge(code, tries) is verdict


def test_a_transfer_sends_only_what_the_core_does_not_have() -> None:
    transfer = Transfer(ObjectRef(Digest("0" * 64), 100))
    assert transfer.next_part(30) is None
    transfer.heard(ObjectState("0" * 64, 100, [(0, 30), (60, 90)]))
    assert transfer.next_part(20) == (30, 50)
    transfer.heard(ObjectState("0" * 64, 100, [(0, 60)], error="hash differs"))
    assert transfer.next_part(20) == (0, 20)


class FlightMachine(RuleBasedStateMachine):
    """A flight beside plain dictionaries; how the window moves is the window's own test's matter."""

    def __init__(self) -> None:
        super().__init__()
        self.flight = Flight(600_000, 900_000, 10.0)
        self.window = Window(600_000)
        self.now_s = 0.0
        self.next_mid = 0
        self.unacked: dict[int, int] = {}
        self.flown: dict[int, list[float]] = {}  # id -> bytes, sent, due
        self.tries: dict[int, int] = {}

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(id_=st.integers(1, 5), size=st.sampled_from([1, 40_000, 200_000]))
    def send(self, id_: int, size: int) -> None:
        if id_ in self.flown:
            return
        self.next_mid += 1
        self.flight.sent(self.next_mid, id_, size, self.now_s)
        due_s = self.now_s + 10.0 * 2 ** min(self.tries.get(id_, 0), 6)
        self.tries[id_] = self.tries.get(id_, 0) + 1
        self.unacked[self.next_mid] = id_
        self.flown[id_] = [size, self.now_s, due_s]

    def _ack(self, mid: int) -> int | None:
        id_ = self.unacked.pop(mid, None)
        if id_ is not None:
            size, sent_s, _ = self.flown[id_]
            self.window.acked(int(size), sent_s, self.now_s)
        return id_

    @rule(back=st.integers(-1, 4))
    def acknowledge(self, back: int) -> None:
        mid = self.next_mid - back
        expected = self._ack(mid)
        assert self.flight.acked(mid, self.now_s) == expected

    @rule(back=st.integers(-1, 4))
    def refuse(self, back: int) -> None:
        mid = self.next_mid - back
        expected = self._ack(mid)
        assert self.flight.refused(mid, self.now_s) == expected
        self.flown.pop(expected or 0, None)

    @rule(ids=st.sets(st.integers(1, 6), max_size=4))
    def forget(self, ids: set[int]) -> None:
        self.flight.forget(iter(ids))
        self.unacked = {mid: id_ for mid, id_ in self.unacked.items() if id_ not in ids}
        for id_ in ids:
            self.flown.pop(id_, None)
            self.tries.pop(id_, None)

    @precondition(lambda self: self.unacked)
    @rule()
    def lose_the_connection(self) -> None:
        assert self.flight.lost() == list(self.unacked.values())
        for id_ in self.unacked.values():
            self.flown.pop(id_)
        self.unacked = {}

    @rule(seconds=st.sampled_from([0.0, 3.0, 30.0]))
    def hasten(self, seconds: float) -> None:
        due_s = self.now_s + seconds
        self.flight.hasten(due_s)
        for id_ in self.flown.keys() - set(self.unacked.values()):
            if self.flown[id_][2] > due_s:
                self.flown[id_][2] = due_s
                self.tries[id_] = 1

    @rule()
    def look_for_overdue(self) -> None:
        under_way = set(self.unacked.values())
        due = [id_ for id_, (_, _, due_s) in self.flown.items() if due_s <= self.now_s]
        late = sorted((id_ for id_ in due if id_ not in under_way), key=lambda id_: (self.flown[id_][2], id_))
        for id_ in due:
            if id_ in under_way:
                self.flown[id_][2] = self.now_s + 10.0
        assert self.flight.overdue(self.now_s) == late
        for id_ in late:
            del self.flown[id_]

    @invariant()
    def the_books_agree(self) -> None:
        assert self.flight.unacked_count == len(self.unacked)
        assert self.flight.unsettled_count == len(self.flown)
        assert [self.flight.tries(id_) for id_ in range(7)] == [self.tries.get(id_, 0) for id_ in range(7)]
        unacked_bytes = sum(self.flown[id_][0] for id_ in self.unacked.values())
        flown_bytes = sum(size for size, _, _ in self.flown.values())
        assert self.flight.room_bytes() == max(0, min(self.window.now_bytes - unacked_bytes, 900_000 - flown_bytes))


TestFlightAgreesWithPlainDictionaries = FlightMachine.TestCase


def test_a_window_starts_at_512_kib_or_at_its_most() -> None:
    assert Window(10_000_000).now_bytes == 512 * 1024
    assert Window(1_000).now_bytes == 1_000


@pytest.mark.parametrize(
    ("took_s", "now_bytes"), [(0.0, 524_388), (0.49, 524_388), (0.5, 524_288), (1.5, 524_288), (1.51, 262_144)]
)
def test_a_window_grows_by_what_came_back_fast_and_halves_by_what_came_back_late(took_s: float, now_bytes: int) -> None:
    window = Window(10_000_000)
    window.acked(100, 5.0, 5.0 + took_s)
    assert window.now_bytes == now_bytes


def test_a_window_never_grows_beyond_its_most() -> None:
    window = Window(600_000)
    window.acked(100_000, 0.0, 0.1)
    assert window.now_bytes == 600_000


def test_a_window_halves_once_for_all_that_was_sent_before_it_did() -> None:
    window = Window(10_000_000)
    window.acked(1, 0.0, 2.0)
    window.acked(1, 1.9, 4.0)
    assert window.now_bytes == 256 * 1024, "sent before it halved"
    window.acked(1, 2.0, 4.0)
    assert window.now_bytes == 128 * 1024, "sent when it had halved"
    window.acked(1, 3.9, 6.0)
    assert window.now_bytes == 128 * 1024


def test_a_window_halves_to_32_kib_and_no_further_but_never_above_its_most() -> None:
    window, small = Window(10_000_000), Window(10_000)
    for second in range(0, 100, 2):
        window.acked(1, second, second + 1.9)
        small.acked(1, second, second + 1.9)
    assert (window.now_bytes, small.now_bytes) == (32 * 1024, 10_000)
    odd = Window(100_001)
    odd.acked(1, 0.0, 2.0)
    assert odd.now_bytes == 50_000


def test_nothing_is_sent_while_50_000_envelopes_wait_for_the_core() -> None:
    flight = Flight(1_000_000, 1_000_000, 10.0)
    for id_ in range(50_000):
        assert flight.room_bytes() > 0
        flight.sent(id_, id_, 0, 0.0)
    assert flight.room_bytes() == 0
    flight.forget([7])
    assert flight.room_bytes() == 512 * 1024


def test_what_waits_for_the_core_leaves_no_room_even_when_the_broker_has_it() -> None:
    flight = Flight(1_000, 100, 10.0)
    flight.sent(1, 1, 90, 0.0)
    flight.acked(1, 1.0)
    assert flight.room_bytes() == 10
    flight.sent(2, 2, 90, 1.0)
    assert flight.room_bytes() == 0


def test_a_resend_waits_64_times_as_long_at_most() -> None:
    flight = Flight(1_000, 1_000, 10.0)
    now_s = 0.0
    for number in range(9):
        flight.sent(number, 1, 1, now_s)
        flight.acked(number, now_s)
        wait_s = 10.0 * min(2**number, 64)
        assert flight.overdue(now_s + wait_s - 0.1) == []
        now_s += wait_s
        assert flight.overdue(now_s) == [1]
    assert flight.tries(1) == 9


def test_an_envelope_that_left_the_spool_starts_its_tries_anew() -> None:
    flight = Flight(1_000, 1_000, 10.0)
    flight.sent(1, 1, 1, 0.0)
    flight.forget([1, 99])
    assert flight.tries(1) == 0
    assert flight.acked(1, 0.1) is None
    assert flight.refused(1, 0.1) is None


def test_what_is_due_and_still_at_the_broker_waits_a_round_more() -> None:
    flight = Flight(1_000, 1_000, 10.0)
    flight.sent(1, 1_001, 1, 0.0)
    flight.sent(2, 1_002, 1, 0.0)
    flight.acked(2, 0.1)
    assert flight.overdue(10.0) == [1_002]
    assert flight.overdue(19.9) == []
    flight.acked(1, 19.9)
    assert flight.overdue(20.0) == [1_001]


def test_what_the_core_did_not_take_is_sent_again_sooner_and_starts_its_tries_anew() -> None:
    flight = Flight(1_000, 1_000, 10.0)
    for id_, sent_s in ((1_001, 0.0), (1_002, 0.0), (1_003, -8.0)):
        flight.sent(id_, id_, 1, sent_s)
    flight.acked(1_001, 0.1)
    flight.acked(1_003, 0.1)
    flight.hasten(3.0)
    assert flight.overdue(2.0) == [1_003], "it was due before"
    assert flight.overdue(2.9) == []
    assert flight.overdue(3.0) == [1_001]
    flight.sent(1, 1_001, 1, 3.0)
    flight.acked(1, 3.0)
    assert flight.tries(1_001) == 2
    flight.hasten(23.0)
    assert flight.tries(1_001) == 2, "it was due then anyway"
    assert flight.overdue(22.9) == [], "1002 is still at the broker"
    assert flight.overdue(23.0) == [1_001]
