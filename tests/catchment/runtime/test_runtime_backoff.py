"""Waits between tries."""

import pytest

from catchment.runtime.clock import Backoff, doubled_s


def test_backoff_doubles_up_to_its_cap_and_starts_anew() -> None:
    backoff = Backoff(1.0, 8.0, lambda: 1.0)
    assert [backoff.next_s() for _ in range(5)] == [1, 2, 4, 8, 8]
    backoff.succeeded()
    assert backoff.next_s() == 1


@pytest.mark.parametrize(("draw", "first_s"), [(0.0, 0.5), (0.5, 0.75), (0.999, 0.9995)])
def test_jitter_takes_away_half_of_a_wait_at_most(draw: float, first_s: float) -> None:
    assert Backoff(1.0, 8.0, lambda: draw).next_s() == first_s


def test_without_a_draw_there_is_no_jitter() -> None:
    backoff = Backoff(0.1, 10.0)
    assert [backoff.next_s() for _ in range(3)] == [0.1, 0.2, 0.4]


@pytest.mark.parametrize(("failures", "wait_s"), [(-1, 0.5), (0, 0.5), (1, 1.0), (3, 4.0), (10_000, 60.0)])
def test_a_wait_is_bounded_however_many_failures_went_before(failures: int, wait_s: float) -> None:
    assert doubled_s(0.5, 60.0, failures) == wait_s
