"""The windows and the reasons: pure bookkeeping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.spool.records import ObjectRef
from edge_agent.uplink.parts import Transfer
from edge_agent.uplink.send_window import ByteWindow, SendWindow
from edge_agent.uplink.session import MAX_TRIES, PubackAction, puback_action
from schemas.ids import Digest
from schemas.receipts import ObjectState


@given(st.lists(st.tuples(st.sampled_from("saflo"), st.integers(0, 20), st.integers(1, 100)), max_size=60))
def test_the_windows_never_drift(steps: list[tuple[str, int, int]]) -> None:
    send_window = SendWindow(1_000, 2_000, 10.0)
    mid, now_s, up = 0, 0.0, set()
    for what, id_, size in steps:
        now_s += 1
        if what == "s" and id_ not in up:
            mid += 1
            send_window.sent(mid, id_, size, now_s)
            up.add(id_)
        elif what == "a":
            send_window.acked(id_, now_s)
        elif what == "f":
            send_window.forget([id_])
            up.discard(id_)
        elif what == "l":
            up -= set(send_window.lost())
        elif what == "o":
            up -= set(send_window.overdue(now_s))
        assert send_window.unsettled_count == len(up)
        assert send_window.unacked_count <= len(up)
    send_window.forget(up)
    send_window.lost()
    assert send_window.available_bytes() == 1_000


def test_what_is_not_settled_is_due_each_time_after_twice_as_long() -> None:
    send_window = SendWindow(1_000, 2_000, 10.0)
    send_window.sent(1, 7, 5, 0.0)
    send_window.acked(1, 0.1)
    assert send_window.overdue(9.9) == []
    assert send_window.overdue(10.0) == [7]
    send_window.sent(2, 7, 5, 10.0)
    send_window.acked(2, 10.1)
    assert send_window.overdue(29.9) == []
    assert send_window.overdue(30.0) == [7]


@pytest.mark.parametrize(
    ("code", "tries", "action"),
    [
        (0x00, 1, PubackAction.TAKEN),
        (0x10, 99, PubackAction.NOT_SENT),
        (0x87, 99, PubackAction.NOT_SENT),
        (0x97, 99, PubackAction.NOT_SENT),
        (0x95, 1, PubackAction.NEVER),
        (0x80, 1, PubackAction.NOT_SENT),
        (0x80, MAX_TRIES, PubackAction.NEVER),
    ],
)
def test_reasons(code: int, tries: int, action: PubackAction) -> None:
    assert puback_action(code, tries) is action


def test_a_transfer_sends_only_what_the_core_does_not_have() -> None:
    transfer = Transfer(ObjectRef(Digest("0" * 64), 100))
    assert transfer.next_part(30) is None
    transfer.heard(ObjectState("0" * 64, 100, [(0, 30), (60, 90)]))
    assert transfer.next_part(20) == (30, 50)
    transfer.heard(ObjectState("0" * 64, 100, [(0, 60)], error="hash differs"))
    assert transfer.next_part(20) == (0, 20)


class SendWindowMachine(RuleBasedStateMachine):
    """A flight next to plain dictionaries; how the window moves is the window's own test's matter."""

    def __init__(self) -> None:
        super().__init__()
        self.send_window = SendWindow(600_000, 900_000, 10.0)
        self.window = ByteWindow(600_000)
        self.now_s = 0.0
        self.next_mid = 0
        self.unacked: dict[int, int] = {}
        self.in_flight: dict[int, list[float]] = {}  # id -> bytes, sent, due
        self.tries: dict[int, int] = {}

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(id_=st.integers(1, 5), size=st.sampled_from([1, 40_000, 200_000]))
    def send(self, id_: int, size: int) -> None:
        if id_ in self.in_flight:
            return
        self.next_mid += 1
        self.send_window.sent(self.next_mid, id_, size, self.now_s)
        due_s = self.now_s + 10.0 * 2 ** min(self.tries.get(id_, 0), 6)
        self.tries[id_] = self.tries.get(id_, 0) + 1
        self.unacked[self.next_mid] = id_
        self.in_flight[id_] = [size, self.now_s, due_s]

    def _ack(self, mid: int) -> int | None:
        id_ = self.unacked.pop(mid, None)
        if id_ is not None:
            size, sent_s, _ = self.in_flight[id_]
            self.window.acked(int(size), sent_s, self.now_s)
        return id_

    @rule(back=st.integers(-1, 4))
    def acknowledge(self, back: int) -> None:
        mid = self.next_mid - back
        expected = self._ack(mid)
        assert self.send_window.acked(mid, self.now_s) == expected

    @rule(back=st.integers(-1, 4))
    def refuse(self, back: int) -> None:
        mid = self.next_mid - back
        expected = self._ack(mid)
        assert self.send_window.refused(mid, self.now_s) == expected
        self.in_flight.pop(expected or 0, None)

    @rule(ids=st.sets(st.integers(1, 6), max_size=4))
    def forget(self, ids: set[int]) -> None:
        self.send_window.forget(iter(ids))
        self.unacked = {mid: id_ for mid, id_ in self.unacked.items() if id_ not in ids}
        for id_ in ids:
            self.in_flight.pop(id_, None)
            self.tries.pop(id_, None)

    @precondition(lambda self: self.unacked)
    @rule()
    def lose_the_connection(self) -> None:
        assert self.send_window.lost() == list(self.unacked.values())
        for id_ in self.unacked.values():
            self.in_flight.pop(id_)
        self.unacked = {}

    @rule(seconds=st.sampled_from([0.0, 3.0, 30.0]))
    def hasten(self, seconds: float) -> None:
        due_s = self.now_s + seconds
        self.send_window.hasten(due_s)
        for id_ in self.in_flight.keys() - set(self.unacked.values()):
            if self.in_flight[id_][2] > due_s:
                self.in_flight[id_][2] = due_s
                self.tries[id_] = 1

    @rule()
    def look_for_overdue(self) -> None:
        under_way = set(self.unacked.values())
        due = [id_ for id_, (_, _, due_s) in self.in_flight.items() if due_s <= self.now_s]
        late = sorted((id_ for id_ in due if id_ not in under_way), key=lambda id_: (self.in_flight[id_][2], id_))
        for id_ in due:
            if id_ in under_way:
                self.in_flight[id_][2] = self.now_s + 10.0
        assert self.send_window.overdue(self.now_s) == late
        for id_ in late:
            del self.in_flight[id_]

    @invariant()
    def the_books_agree(self) -> None:
        assert self.send_window.unacked_count == len(self.unacked)
        assert self.send_window.unsettled_count == len(self.in_flight)
        assert [self.send_window.tries(id_) for id_ in range(7)] == [self.tries.get(id_, 0) for id_ in range(7)]
        unacked_bytes = sum(self.in_flight[id_][0] for id_ in self.unacked.values())
        in_flight_bytes = sum(size for size, _, _ in self.in_flight.values())
        assert self.send_window.available_bytes() == max(0, min(self.window.now_bytes - unacked_bytes, 900_000 - in_flight_bytes))


TestSendWindowAgreesWithPlainDictionaries = SendWindowMachine.TestCase


def test_a_window_starts_at_512_kib_or_at_its_most() -> None:
    assert ByteWindow(10_000_000).now_bytes == 512 * 1024
    assert ByteWindow(1_000).now_bytes == 1_000


@pytest.mark.parametrize(
    ("took_s", "now_bytes"), [(0.0, 524_388), (0.49, 524_388), (0.5, 524_288), (1.5, 524_288), (1.51, 262_144)]
)
def test_a_window_grows_by_what_came_back_fast_and_halves_by_what_came_back_late(took_s: float, now_bytes: int) -> None:
    window = ByteWindow(10_000_000)
    window.acked(100, 5.0, 5.0 + took_s)
    assert window.now_bytes == now_bytes


def test_a_window_never_grows_beyond_its_most() -> None:
    window = ByteWindow(600_000)
    window.acked(100_000, 0.0, 0.1)
    assert window.now_bytes == 600_000


def test_a_window_halves_once_for_all_that_was_sent_before_it_did() -> None:
    window = ByteWindow(10_000_000)
    window.acked(1, 0.0, 2.0)
    window.acked(1, 1.9, 4.0)
    assert window.now_bytes == 256 * 1024, "sent before it halved"
    window.acked(1, 2.0, 4.0)
    assert window.now_bytes == 128 * 1024, "sent when it had halved"
    window.acked(1, 3.9, 6.0)
    assert window.now_bytes == 128 * 1024


def test_a_window_halves_to_32_kib_and_no_further_but_never_above_its_most() -> None:
    window, small = ByteWindow(10_000_000), ByteWindow(10_000)
    for second in range(0, 100, 2):
        window.acked(1, second, second + 1.9)
        small.acked(1, second, second + 1.9)
    assert (window.now_bytes, small.now_bytes) == (32 * 1024, 10_000)
    odd = ByteWindow(100_001)
    odd.acked(1, 0.0, 2.0)
    assert odd.now_bytes == 50_000


def test_nothing_is_sent_while_50_000_envelopes_wait_for_the_core() -> None:
    send_window = SendWindow(1_000_000, 1_000_000, 10.0)
    for id_ in range(50_000):
        assert send_window.available_bytes() > 0
        send_window.sent(id_, id_, 0, 0.0)
    assert send_window.available_bytes() == 0
    send_window.forget([7])
    assert send_window.available_bytes() == 512 * 1024


def test_what_waits_for_the_core_leaves_no_room_even_when_the_broker_has_it() -> None:
    send_window = SendWindow(1_000, 100, 10.0)
    send_window.sent(1, 1, 90, 0.0)
    send_window.acked(1, 1.0)
    assert send_window.available_bytes() == 10
    send_window.sent(2, 2, 90, 1.0)
    assert send_window.available_bytes() == 0


def test_a_resend_waits_64_times_as_long_at_most() -> None:
    send_window = SendWindow(1_000, 1_000, 10.0)
    now_s = 0.0
    for number in range(9):
        send_window.sent(number, 1, 1, now_s)
        send_window.acked(number, now_s)
        wait_s = 10.0 * min(2**number, 64)
        assert send_window.overdue(now_s + wait_s - 0.1) == []
        now_s += wait_s
        assert send_window.overdue(now_s) == [1]
    assert send_window.tries(1) == 9


def test_an_envelope_that_left_the_spool_starts_its_tries_anew() -> None:
    send_window = SendWindow(1_000, 1_000, 10.0)
    send_window.sent(1, 1, 1, 0.0)
    send_window.forget([1, 99])
    assert send_window.tries(1) == 0
    assert send_window.acked(1, 0.1) is None
    assert send_window.refused(1, 0.1) is None


def test_what_is_due_and_still_at_the_broker_waits_a_round_more() -> None:
    send_window = SendWindow(1_000, 1_000, 10.0)
    send_window.sent(1, 1_001, 1, 0.0)
    send_window.sent(2, 1_002, 1, 0.0)
    send_window.acked(2, 0.1)
    assert send_window.overdue(10.0) == [1_002]
    assert send_window.overdue(19.9) == []
    send_window.acked(1, 19.9)
    assert send_window.overdue(20.0) == [1_001]


def test_what_the_core_did_not_take_is_sent_again_sooner_and_starts_its_tries_anew() -> None:
    send_window = SendWindow(1_000, 1_000, 10.0)
    for id_, sent_s in ((1_001, 0.0), (1_002, 0.0), (1_003, -8.0)):
        send_window.sent(id_, id_, 1, sent_s)
    send_window.acked(1_001, 0.1)
    send_window.acked(1_003, 0.1)
    send_window.hasten(3.0)
    assert send_window.overdue(2.0) == [1_003], "it was due before"
    assert send_window.overdue(2.9) == []
    assert send_window.overdue(3.0) == [1_001]
    send_window.sent(1, 1_001, 1, 3.0)
    send_window.acked(1, 3.0)
    assert send_window.tries(1_001) == 2
    send_window.hasten(23.0)
    assert send_window.tries(1_001) == 2, "it was due then anyway"
    assert send_window.overdue(22.9) == [], "1002 is still at the broker"
    assert send_window.overdue(23.0) == [1_001]
