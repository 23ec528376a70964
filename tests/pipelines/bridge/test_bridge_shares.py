"""One device has its share and no more: over it its messages wait on the device, and the others do not notice."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bridge.parts_room import Disk
from pipelines.bridge.shares import BYTES, DISK, MESSAGES, RETAINED, STREAMS, Shares
from pipelines.config import ShareConfig
from pipelines.logs import LogLimit
from tests.plant.present import present

MB = 1_000_000


def shares(max_accounts: int = 100_000, **changes: int) -> Shares:
    none = dict.fromkeys(("bytes_per_s", "burst_bytes", "messages_per_s", "burst_messages", "streams"), 0)
    return Shares(ShareConfig(**{**none, **changes}), max_accounts)


def test_a_device_over_its_rate_waits_and_another_does_not_notice() -> None:
    one = shares(bytes_per_s=MB, burst_bytes=10 * MB)
    taken = [one.admit("flood", "s", MB, 0.0) for _ in range(20)]
    assert taken == [True] * 10 + [False] * 10
    assert all(one.admit("calm", "s", MB, 0.0) for _ in range(10))
    assert (one.deferred_messages, one.deferred_bytes) == (10, 10 * MB)
    (over,) = one.over(0.0)
    assert (over.device, over.limit, over.messages, over.bytes) == ("flood", BYTES, 10, 10 * MB)


def test_a_device_that_was_over_goes_on_when_it_may_send_for_a_while_not_message_by_message() -> None:
    one = shares(bytes_per_s=MB, burst_bytes=100 * MB)
    while one.admit("dev", "", MB, 0.0):
        pass
    notice = present(one.notice("dev", 0.0))
    assert (notice.limit, notice.wait_ms, notice.bytes_per_s, notice.deferred) == (BYTES, 10_000, MB, 1)
    assert one.notice("dev", 1.0) is None
    assert not one.admit("dev", "", 1, 9.9)
    assert [one.admit("dev", "", MB, 10.0) for _ in range(11)] == [True] * 10 + [False]
    assert one.count_over(11.0) == 1
    assert one.over(200.0) == []


def test_tiny_messages_are_counted_too() -> None:
    one = shares(messages_per_s=10, burst_messages=50)
    assert sum(one.admit("dev", "", 1, 0.0) for _ in range(100)) == 50
    assert present(one.notice("dev", 0.0)).limit == MESSAGES
    assert sum(one.admit("dev", "", 1, 5.0) for _ in range(100)) == 50


def test_more_streams_than_a_device_may_have_wait_and_those_it_has_go_on() -> None:
    one = shares(streams=3)
    assert [one.admit("dev", f"s{number}", 1, 0.0) for number in range(5)] == [True, True, True, False, False]
    notice = present(one.notice("dev", 0.0))
    assert (notice.limit, notice.wait_ms) == (STREAMS, 0)
    assert all(one.admit("dev", f"s{number % 3}", 1, 0.0) for number in range(100))
    assert one.over(1.0)[0].limit == STREAMS


def test_on_a_disk_that_is_nearly_full_one_device_takes_an_eighth_of_what_is_left() -> None:
    one = shares()
    room, taken = 80 * MB, 0
    while one.admit("flood", "", MB, 0.0, room - taken):
        taken += MB
    assert 8 * MB < taken < 10 * MB
    assert present(one.notice("flood", 0.0)).limit == DISK
    assert one.admit("calm", "", MB, 0.0, room - taken)
    assert one.admit("flood", "", MB, 0.0)  # there is room again


def test_what_was_retained_for_nothing_is_shown_with_its_device() -> None:
    one = shares()
    assert present(one.note_retained("dev", 10, 0.0)).limit == RETAINED
    assert one.note_retained("dev", 10, 1.0) is None
    (over,) = one.over(2.0)
    assert (over.device, over.limit, over.messages, over.bytes) == ("dev", RETAINED, 2, 20)


def test_names_alone_do_not_fill_the_memory() -> None:
    one = shares(max_accounts=100, messages_per_s=10, burst_messages=10)
    for number in range(2_000):
        one.admit(f"dev-{number}", "", 1, float(number))
    assert one.account_count <= 200


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3 * MB), st.floats(0, 3)), max_size=200))
def test_over_any_time_no_device_lands_more_than_burst_rate_and_one_message(steps: list[tuple[str, int, float]]) -> None:
    one, now_s, landed, largest = shares(bytes_per_s=MB, burst_bytes=5 * MB), 0.0, dict.fromkeys("abc", 0), 0
    for device, size, pause_s in steps:
        now_s += pause_s
        largest = max(largest, size)
        if one.admit(device, "", size, now_s):
            landed[device] += size
    assert all(total <= 5 * MB + now_s * MB + largest for total in landed.values())


@given(st.lists(st.tuples(st.integers(1, MB), st.floats(0, 1)), max_size=100))
def test_a_device_within_its_rate_is_never_deferred_whatever_another_does(steps: list[tuple[int, float]]) -> None:
    one, now_s, owed = shares(bytes_per_s=MB, burst_bytes=2 * MB), 0.0, 0.0
    for size, pause_s in steps:
        now_s += pause_s
        one.admit("flood", "", 50 * MB, now_s)
        owed = max(0.0, owed - pause_s * MB)
        if owed + size < 2 * MB:
            assert one.admit("calm", "", size, now_s)
            owed += size


def test_a_small_disk_keeps_a_twentieth_free_and_a_large_one_what_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        f_frsize, f_blocks, f_bavail = 1_000, 1_000_000, 60_000

    monkeypatch.setattr(os, "statvfs", lambda _path: Found)
    small = Disk(tmp_path, ShareConfig())
    assert (small.min_free_bytes, small.low_free_bytes) == (50 * MB, 100 * MB)
    assert small.low_room_bytes(small.free_bytes()) == 10 * MB
    assert small.low_room_bytes(40 * MB) == 0
    small.demand_room(10 * MB)
    with pytest.raises(OSError, match="stay free") as refused:
        small.demand_room(10 * MB + 1)
    assert refused.value.errno == errno.ENOSPC
    Found.f_blocks, Found.f_bavail = 1_000_000_000, 900_000_000
    large = Disk(tmp_path, ShareConfig())
    assert (large.min_free_bytes, large.low_free_bytes) == (1024**3, 8 * 1024**3)
    assert large.low_room_bytes(large.free_bytes()) is None


@pytest.mark.parametrize("wrong", [{"bytes_per_s": -1}, {"bytes_per_s": 1, "burst_bytes": 0}])
def test_shares_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="shares"):
        ShareConfig(**wrong)


def test_a_line_a_device_can_cause_is_logged_once_a_minute_with_a_count() -> None:
    limit = LogLimit()
    assert [limit.due("a", second) for second in (0, 1, 2, 61, 62, 122)] == [0, None, None, 2, None, 1]
    assert limit.due("b", 0) == 0
