"""Ranges against Python's own sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SchemaError
from schemas.ranges import Ranges

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def as_set(spans: object) -> set[int]:
    return {number for low, high in spans for number in range(low, high)}  # type: ignore[attr-defined]


@given(SPANS)
def test_a_union_of_spans_in_any_order_is_the_set_of_their_numbers(spans: list[tuple[int, int]]) -> None:
    ranges = Ranges.of(spans)
    assert as_set(ranges) == as_set(spans)
    assert ranges.count == len(as_set(spans))
    assert bool(ranges) is bool(as_set(spans))
    assert Ranges(ranges.spans) == ranges


@given(SPANS, SPANS)
def test_union_and_minus_are_those_of_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    a, b = Ranges.of(left), Ranges.of(right)
    assert as_set(a.union(b)) == as_set(left) | as_set(right)
    assert as_set(a.minus(b)) == as_set(left) - as_set(right)


@given(SPANS, st.integers(0, 45), st.integers(0, 45))
def test_covers_contains_and_overlapping_are_those_of_sets(spans: list[tuple[int, int]], low: int, high: int) -> None:
    ranges, numbers = Ranges.of(spans), as_set(spans)
    assert ranges.covers(low, high) is (set(range(low, high)) <= numbers)
    assert (low in ranges) is (low in numbers)
    assert as_set(ranges.overlapping(low, high)) & set(range(low, high)) == numbers & set(range(low, high))
    assert as_set(ranges.gaps(high)) == set(range(high)) - numbers


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4))
def test_every_question_about_a_small_set_is_answered_as_by_a_set(spans: list[tuple[int, int]]) -> None:
    ranges, numbers = Ranges.of(spans), as_set(spans)
    for low in range(-1, 11):
        assert (low in ranges) is (low in numbers)
        assert ranges.gaps(max(low, 0)).spans == Ranges.of((n, n + 1) for n in range(low) if n not in numbers).spans
        for high in range(-1, 11):
            assert ranges.covers(low, high) is (set(range(low, high)) <= numbers)
            if low < high:
                shared = [span for span in ranges if set(range(*span)) & set(range(low, high))]
                assert list(ranges.overlapping(low, high)) == shared


REFUSED = [((1, 1),), ((2, 1),), ((0, 2), (2, 3)), ((0, 3), (1, 2)), ((5, 6), (1, 2)), ((-2, 1),), ((-1, 1),), ((0, 1), (2, 2))]


@pytest.mark.parametrize("spans", REFUSED)
def test_spans_that_are_not_sorted_and_disjoint_are_refused(spans: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(SchemaError, match=r"^ranges must be sorted, disjoint and not empty; found "):
        Ranges(spans)


def test_a_refusal_names_the_span_and_where_the_one_before_it_ends() -> None:
    with pytest.raises(SchemaError, match=r"; found \[2, 3\) after 2$"):
        Ranges(((0, 2), (2, 3)))
    with pytest.raises(SchemaError, match=r"; found \[-1, 0\) after -1$"):
        Ranges(((-1, 0),))


def test_touching_spans_are_joined_and_the_rest_is_left_apart() -> None:
    assert Ranges.of([(4, 6), (0, 2), (2, 3), (9, 9), (5, 5)]).spans == ((0, 3), (4, 6))
    assert Ranges.of([(0, 9), (2, 3)]).spans == ((0, 9),)
    assert Ranges().spans == ()
