import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest import admit as admission
from pipelines.ingest.admit import BLOCK_SPANS, Bounds, DropReport, Head, SpanSet, admit
from pipelines.lake.books import EpochKey
from schemas.ranges import Ranges
from schemas.receipts import Floor

KEYS = st.sampled_from([EpochKey("a", "s", 1), EpochKey("a", "s", 2), EpochKey("b", "s", 1)])
HEADS = st.builds(Head, KEYS, st.integers(0, 40), st.integers(1, 12))
SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=3).map(
    lambda found: Ranges.of((low, low + size) for low, size in found)
)
DROPS = st.builds(DropReport, KEYS, SPANS.map(lambda ranges: ranges.spans))


@given(st.lists(st.one_of(HEADS, DROPS), max_size=30), st.dictionaries(KEYS, SPANS, max_size=3))
def test_admission_agrees_with_a_set_of_all_samples(arrivals: list[Head | DropReport], settled: dict[EpochKey, Ranges]) -> None:
    model = {(key, seq) for key, ranges in settled.items() for low, high in ranges for seq in range(low, high)}
    admission = admit(arrivals, settled)
    for arrival, fresh_spans in zip(arrivals, admission.fresh_by_place, strict=True):
        spans = ((arrival.first_seq, arrival.first_seq + arrival.samples),) if isinstance(arrival, Head) else arrival.spans
        claimed = {(arrival.key, seq) for low, high in spans for seq in range(low, high)}
        assert {(arrival.key, seq) for low, high in fresh_spans for seq in range(low, high)} == claimed - model
        model |= claimed
    after = {**settled, **admission.touched}
    assert {(key, seq) for key, ranges in after.items() for low, high in ranges for seq in range(low, high)} == model


def test_envelopes_in_order_stay_one_range() -> None:
    key = EpochKey("a", "s", 1)
    admission = admit([Head(key, number * 10, 10) for number in range(1_000)], {})
    assert admission.touched[key].spans == ((0, 10_000),)


FLOORS = st.dictionaries(
    st.sampled_from([("a", "s"), ("b", "s")]), st.builds(Floor, st.sampled_from(["0", "1", "2"]), st.integers(1, 30)), max_size=2
)


@given(st.lists(st.one_of(HEADS, DROPS), max_size=30), st.dictionaries(KEYS, SPANS, max_size=3), FLOORS)
def test_below_a_floor_nothing_becomes_a_row_and_each_sample_is_late_once(
    arrivals: list[Head | DropReport], settled: dict[EpochKey, Ranges], floors: dict[tuple[str, str], Floor]
) -> None:
    admission = admit(arrivals, settled, Bounds(floors))
    model = {(key, seq) for key, ranges in settled.items() for low, high in ranges for seq in range(low, high)}
    for index, (arrival, fresh_spans) in enumerate(zip(arrivals, admission.fresh_by_place, strict=True)):
        below = floors.get(arrival.key[:2], Floor("0", 0)).below(arrival.key.epoch)
        spans = ((arrival.first_seq, arrival.first_seq + arrival.samples),) if isinstance(arrival, Head) else arrival.spans
        new = {(arrival.key, seq) for low, high in spans for seq in range(low, high)} - model
        late = {(arrival.key, seq) for low, high in admission.late.get(index, ()) for seq in range(low, high)}
        assert {(arrival.key, seq) for low, high in fresh_spans for seq in range(low, high)} == {
            one for one in new if one[1] >= below
        }
        assert late == ({one for one in new if one[1] < below} if isinstance(arrival, Head) else set())
        model |= new
    after = {**settled, **admission.touched}
    assert {(key, seq) for key, ranges in after.items() for low, high in ranges for seq in range(low, high)} == model
    assert all(admission.late.values()), "an envelope is late only if something of it is"
    spans_of_all = [span for fresh_spans in (*admission.fresh_by_place, *admission.late.values()) for span in fresh_spans]
    assert all(low < high for low, high in spans_of_all), "no span is empty"


def test_an_envelope_that_starts_at_the_floor_is_not_late_and_one_that_is_known_neither() -> None:
    key = EpochKey("a", "s", 1)
    admission = admit([Head(key, 5, 5), Head(key, 5, 5), Head(key, 4, 1)], {}, Bounds({("a", "s"): Floor("1", 5)}))
    assert admission.fresh_by_place == [((5, 10),), (), ()]
    assert admission.late == {2: ((4, 5),)}
    split = admit([Head(key, 3, 4)], {key: Ranges(((4, 5),))}, Bounds({("a", "s"): Floor("1", 5)}))
    assert (split.fresh_by_place, split.late) == ([((5, 7),)], {0: ((3, 4),)})


def test_a_device_may_have_a_thousand_streams_unless_the_bounds_say_otherwise() -> None:
    heads = [Head(EpochKey(device, f"s{number}", 1), 0, 5) for device in ("a", "b") for number in range(1_001)]
    admission = admit(heads, {})
    assert admission.turned_away == {1_000, 2_001}
    assert admission.fresh_by_place[1_000] == ()
    assert len(admission.touched) == 2_000


def test_streams_beyond_the_bound_are_turned_away_and_those_known_are_not() -> None:
    heads = [Head(EpochKey("a", f"s{number}", 1), 0, 5) for number in range(6)]
    admission = admit([*heads, *heads], {}, Bounds(streams={"a": frozenset({"s5", "s4"})}, max_streams=4))
    assert admission.turned_away == {2, 3, 8, 9}
    assert {key.stream for key in admission.touched} == {"s0", "s1", "s4", "s5"}
    assert [bool(fresh_spans) for fresh_spans in admission.fresh_by_place[:6]] == [True, True, False, False, True, True]


CLAIMS = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 40)), max_size=200)


@given(CLAIMS)
def test_a_span_set_in_blocks_agrees_with_ranges(claims: list[tuple[int, int]]) -> None:
    known, model = SpanSet(), Ranges()
    for low, size in claims:
        fresh = known.claim(low, low + size)
        assert Ranges(fresh) == Ranges.of([(low, low + size)]).minus(model)
        model = model.union(fresh)
        assert known.spans() == model.spans


@given(SPANS, CLAIMS)
def test_blocks_stay_small_and_are_found_by_where_they_begin(settled: Ranges, claims: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "BLOCK_SPANS", 2)
        known, model = SpanSet(settled), settled
        for low, size in claims:
            assert Ranges(known.claim(low, low + size)) == Ranges.of([(low, low + size)]).minus(model)
            model = model.union(((low, low + size),) if size else ())
            assert known.spans() == model.spans
            assert not model.spans or known._lows == [block[0][0] for block in known._blocks]
            assert max(len(block) for block in known._blocks) <= 2 * 2


def test_a_span_set_of_many_blocks_joins_and_splits_them() -> None:
    singles = [(2 * n, 2 * n + 1) for n in range(BLOCK_SPANS * 7)]
    known = SpanSet(singles)
    assert known.claim(1_001, 6_001) == tuple((low + 1, low + 2) for low, _ in singles if 1_000 <= low < 6_000)
    assert known.claim(0, 2) == ((1, 2),)
    whole = Ranges.of([*singles, (1_001, 6_001), (0, 2)])
    assert known.spans() == whole.spans
    backwards = SpanSet()
    for low, high in reversed(singles):
        assert backwards.claim(low, high) == ((low, high),)
    assert backwards.spans() == tuple(singles)


@functools.total_ordering
class Compared(int):
    """A number that counts how often numbers are compared."""

    count = 0

    def __lt__(self, other: Any) -> bool:
        Compared.count += 1
        return int(self) < int(other)

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return int(self) == other

    def __add__(self, other: int) -> "Compared":
        return Compared(int(self) + int(other))

    __hash__ = int.__hash__


def comparisons(seqs: list[int]) -> int:
    Compared.count = 0
    key = EpochKey("a", "s", 1)
    admission = admit([Head(key, Compared(seq), 1) for seq in seqs], {})
    assert admission.touched[key].count == len(set(seqs))
    return Compared.count


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(lambda count: [2 * n for n in reversed(range(count))], id="newest-first-with-gaps"),
        pytest.param(lambda count: list(reversed(range(count))), id="newest-first"),
        pytest.param(lambda count: [*range(0, 2 * count, 2), *range(1, count, 2)], id="gaps-filled-later"),
        pytest.param(lambda count: [(7_919 * n) % (4 * count) for n in range(count)], id="scattered"),
    ],
)
def test_admission_of_envelopes_in_any_order_is_near_linear(order: Any) -> None:
    few, many = comparisons(order(1_000)), comparisons(order(16_000))
    assert many < 16 * 2 * few
    assert many < 16_000 * 60
