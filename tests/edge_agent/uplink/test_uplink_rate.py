"""The rate, the hours, the lanes, the windows: pure, with time given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.config import UplinkConfig
from edge_agent.sections import ScheduleConfig
from edge_agent.spool.leases import Lane, Lanes
from edge_agent.uplink.parts import MIN_PART_BYTES, PartSize
from edge_agent.uplink.rate_limiter import RateLimiter, SendLimits, TokenBucket, limits_at
from edge_agent.uplink.send_window import ByteWindow


@settings(max_examples=20)
@given(
    st.integers(2_000, 10_000_000),
    st.lists(st.tuples(st.floats(0.001, 0.2), st.floats(0.01, 1.0)), min_size=20, max_size=200),
)
def test_any_ten_seconds_carry_the_rate_within_five_per_cent(rate: int, turns: list[tuple[float, float]]) -> None:
    bucket = TokenBucket(rate)
    now_s, sent = 0.0, [(0.0, 0)]
    bucket.available_bytes(now_s)
    position = 0
    while now_s < 35:
        pause_s, share = turns[position % len(turns)]
        position += 1
        # A turn comes late, or as soon as there is room; a message is up to a burst long.
        now_s += max(pause_s if position % 7 == 0 else 0.0, bucket.wait_s(now_s), 1e-6)
        while bucket.available_bytes(now_s) > 0:
            size = max(1, int(bucket.burst_bytes * share))
            bucket.sent(size)
            sent.append((now_s, size))
    for start_s in range(1, 24):
        carried = sum(size for at_s, size in sent if start_s <= at_s < start_s + 10)
        assert abs(carried - rate * 10) <= rate * 10 * 0.05


def test_a_message_longer_than_the_burst_goes_and_is_paid_for() -> None:
    bucket = TokenBucket(1_000)
    bucket.available_bytes(0.0)
    assert bucket.available_bytes(1.0) == 250
    bucket.sent(10_250)
    assert bucket.available_bytes(10.9) == 0
    assert bucket.wait_s(10.9) == pytest.approx(0.1, abs=0.01)
    assert bucket.available_bytes(11.1) > 0


def test_without_a_rate_nothing_waits() -> None:
    bucket = TokenBucket(0)
    bucket.sent(10**12)
    assert bucket.available_bytes(0.0) > 10**9
    assert bucket.wait_s(0.0) == 0.0


@pytest.mark.parametrize(
    ("at", "limits"),
    [
        ("12:00", SendLimits(1_000, 50)),
        ("22:29", SendLimits(1_000, 50)),
        ("22:30", SendLimits(0, 0)),
        ("23:59", SendLimits(0, 0)),
        ("00:00", SendLimits(0, 0)),
        ("05:59", SendLimits(0, 0)),
        ("06:00", SendLimits(1_000, 50)),
        ("07:15", SendLimits(500, 90)),
    ],
)
def test_hours_hold_over_midnight_and_the_first_counts(at: str, limits: SendLimits) -> None:
    night = ScheduleConfig(start="22:30", end="06:00")
    morning = ScheduleConfig(start="07:00", end="08:00", bytes_per_s=500, min_priority=90)
    late = ScheduleConfig(start="07:00", end="07:30", bytes_per_s=900)
    config = UplinkConfig(bytes_per_s=1_000, min_priority=50, schedule=(night, morning, late))
    hours, _, minutes = at.partition(":")
    assert limits_at(config, int(hours) * 60 + int(minutes)) == limits


def test_the_governor_says_when_the_terms_change() -> None:
    config = UplinkConfig(bytes_per_s=1_000, schedule=(ScheduleConfig(start="01:00", end="02:00", bytes_per_s=2_000),))
    rate_limiter = RateLimiter(config)
    assert not rate_limiter.look(0)
    assert rate_limiter.look(60)
    assert rate_limiter.limits == SendLimits(2_000, 0)
    rate_limiter.retune(UplinkConfig())
    assert rate_limiter.look(60)
    assert rate_limiter.limits == SendLimits(0, 0)


@given(st.floats(0.1, 0.9), st.lists(st.integers(1, 10), min_size=50, max_size=300))
def test_two_waiting_lanes_share_as_configured(share: float, sizes: list[int]) -> None:
    lanes = Lanes(fresh_share=share)
    sent = {Lane.OLD: 0, Lane.FRESH: 0}
    for size in sizes:
        lane = lanes.order()[0]
        lanes.sent(lane, size, are_both_waiting=True)
        sent[lane] += size
    assert abs(sent[Lane.FRESH] - share * sum(sizes)) <= 10


@given(st.lists(st.tuples(st.sampled_from(["capture", "take", "release", "part"]), st.integers(0, 30)), max_size=80))
def test_nothing_is_given_out_twice_and_nothing_is_forgotten(steps: list[tuple[str, int]]) -> None:
    lanes, ids, out = Lanes(), 0, set()

    def take(lane: Lane) -> int | None:
        after, upto = lanes.bounds(lane)
        for id_ in range(after + 1, (ids if upto is None else min(ids, upto)) + 1):
            if id_ not in out:
                lanes.passed(lane, id_)
                return id_
        return None

    for what, number in steps:
        if what == "capture":
            ids += number % 5
        elif what == "part":
            lanes.part(ids)
        elif what == "release" and number in out:
            out.discard(number)
            lanes.released(number)
        elif what == "take":
            lane = lanes.order()[number % 2]
            found = take(lane)
            if found is not None:
                out.add(found)
                lanes.sent(lane, 1, are_both_waiting=number % 3 == 0)
    while (found := take(Lane.OLD) or take(Lane.FRESH)) is not None:
        out.add(found)
    assert out == set(range(1, ids + 1))


def test_a_slow_link_has_little_under_way_and_a_fast_one_all_that_is_allowed() -> None:
    window = ByteWindow(4_000_000)
    for second in range(20):
        window.acked(100_000, second, second + 3.0)
    assert window.now_bytes == 32 * 1024
    for second in range(50):
        window.acked(100_000, 100 + second, 100.1 + second)
    assert window.now_bytes == 4_000_000


def test_parts_shrink_where_the_link_is_slow_or_breaks_and_grow_back() -> None:
    size = PartSize(1_000_000)
    size.broke()
    size.arrived(10.0)
    assert size.now_bytes == 250_000
    for _ in range(20):
        size.broke()
    assert size.now_bytes == MIN_PART_BYTES
    for _ in range(20):
        size.arrived(0.1)
    assert size.now_bytes == 1_000_000
