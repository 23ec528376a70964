"""The windows and the reasons: pure bookkeeping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.spool.records import ObjectRef
from edge_agent.uplink.backoff import Backoff
from edge_agent.uplink.flight import Flight
from edge_agent.uplink.parts import Transfer
from edge_agent.uplink.reasons import MAX_TRIES, Verdict, judge
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


def test_backoff_doubles_up_to_its_cap_and_starts_anew() -> None:
    backoff = Backoff(1.0, 8.0, lambda: 1.0)
    assert [backoff.next_s() for _ in range(5)] == [1, 2, 4, 8, 8]
    backoff.succeeded()
    assert backoff.next_s() == 1


def test_a_transfer_sends_only_what_the_core_does_not_have() -> None:
    transfer = Transfer(ObjectRef(Digest("0" * 64), 100))
    assert transfer.next_part(30) is None
    transfer.heard(ObjectState("0" * 64, 100, [(0, 30), (60, 90)]))
    assert transfer.next_part(20) == (30, 50)
    transfer.heard(ObjectState("0" * 64, 100, [(0, 60)], error="hash differs"))
    assert transfer.next_part(20) == (0, 20)
