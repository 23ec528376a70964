"""What a full spool gives up: the least worth first, what is in flight last, nothing above what comes in."""

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.spool.quota import Eviction, EvictionCandidate, choose_victims

CANDIDATES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.booleans()), max_size=12).map(
    lambda found: [EvictionCandidate(id_, cost, priority, flies) for id_, (cost, priority, flies) in enumerate(found, 1)]
)


@given(CANDIDATES, st.integers(0, 120), st.integers(0, 4))
def test_the_least_worth_goes_first_and_no_more_than_is_needed(found: list[EvictionCandidate], need: int, incoming: int) -> None:
    eviction = choose_victims(found, need, incoming)
    may_go = [one for one in found if one.priority <= incoming]
    in_order = [one for one in may_go if not one.is_in_flight] + [one for one in may_go if one.is_in_flight]
    gone = in_order[: len(eviction.ids)]
    assert eviction.ids == tuple(one.id for one in gone)
    assert eviction.freed_bytes == sum(one.cost_bytes for one in gone)
    assert eviction.freed_bytes >= need or len(gone) == len(may_go)
    if gone:
        assert eviction.freed_bytes - gone[-1].cost_bytes < need, "the last one went though enough was free"


def test_what_is_in_flight_goes_last_and_in_its_order() -> None:
    found = [
        EvictionCandidate(1, 10, 0, True),
        EvictionCandidate(2, 10, 0, True),
        EvictionCandidate(3, 10, 1, False),
        EvictionCandidate(4, 10, 1, False),
    ]
    assert choose_victims(found, 30, 1) == Eviction((3, 4, 1), 30)


def test_what_is_worth_as_much_as_what_comes_in_may_go_and_more_never() -> None:
    found = [EvictionCandidate(1, 10, 1, False), EvictionCandidate(2, 10, 2, False), EvictionCandidate(3, 10, 3, False)]
    assert choose_victims(found, 1_000, 2) == Eviction((1, 2), 20)
    assert choose_victims(found, 1_000, 0) == Eviction((), 0)


def test_nothing_goes_where_nothing_is_needed() -> None:
    assert choose_victims([EvictionCandidate(1, 10, 0, False)], 0, 9) == Eviction((), 0)


def test_exactly_enough_is_enough() -> None:
    found = [EvictionCandidate(1, 10, 0, False), EvictionCandidate(2, 10, 0, False)]
    assert choose_victims(found, 10, 0) == Eviction((1,), 10)
    assert choose_victims(found, 11, 0) == Eviction((1, 2), 20)
