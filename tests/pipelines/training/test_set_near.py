"""Groups of near-duplicates against the same pair by pair, and that they never stand on two sides."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RefusedError
from pipelines.training import near_duplicates
from pipelines.training.manifest import SplitRule
from pipelines.training.near_duplicates import NO_GROUP, near_groups
from pipelines.training.split import EarlierSplits, plan_splits


def hashes_of(seed: int, count: int, changed_bits: int = 4) -> list[str | None]:
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 2**63, 10, dtype=np.uint64)
    words = kinds[random.integers(0, 10, count)]
    for _ in range(changed_bits):
        words = words ^ (np.uint64(1) << random.integers(0, 64, count).astype(np.uint64))
    return [None if at % 13 == 5 else f"{int(word):016x}" for at, word in enumerate(words)]


def partition(groups: list[int]) -> set[frozenset[int]]:
    members: dict[object, set[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(("alone", row) if group == NO_GROUP else group, set()).add(row)
    return {frozenset(each) for each in members.values()}


def by_hand(hashes: list[str | None], devices: list[str], times: list[int], bits: int, within: int | None) -> set[frozenset[int]]:
    group = list(range(len(hashes)))
    for one, first in enumerate(hashes):
        for other, second in enumerate(hashes[:one]):
            if first is None or second is None or (int(first, 16) ^ int(second, 16)).bit_count() > bits:
                continue
            if within is None or (devices[one] == devices[other] and abs(times[one] - times[other]) <= within):
                group = [group[other] if each == group[one] else each for each in group]
    return partition(group)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0, 3, 6, 10]), st.sampled_from([None, 4, 60]))
def test_groups_are_those_of_every_pair_compared(seed: int, bits: int, within: int | None) -> None:
    random = np.random.default_rng(seed)
    hashes = hashes_of(seed, 70)
    devices = [f"cam-{int(random.integers(2))}" for _ in hashes]
    times = random.integers(0, 400, len(hashes)).astype(np.int64)
    found = near_groups(pa.chunked_array([hashes], pa.string()), pa.chunked_array([devices]), times, bits, within)
    assert partition(found.tolist()) == by_hand(hashes, devices, times.tolist(), bits, within)


def test_a_text_that_is_no_hash_is_like_nothing() -> None:
    hashes = pa.chunked_array([["zz", "zz", "", "00" * 20]], pa.string())
    found = near_groups(hashes, pa.chunked_array([["a"] * 4]), np.zeros(4, np.int64), 6, 10)
    assert found.tolist() == [NO_GROUP] * 4


def test_too_many_pairs_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 10)
    hashes = pa.chunked_array([hashes_of(1, 200, 60)], pa.string())
    devices = pa.chunked_array([["a"] * 200])
    with pytest.raises(RefusedError, match="give the near-duplicate rule a time"):
        near_groups(hashes, devices, np.zeros(200, np.int64), 6, None)
    with pytest.raises(RefusedError, match="shorten it"):
        near_groups(hashes, devices, np.zeros(200, np.int64), 6, 10)


def frames(count: int) -> pa.Table:
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at) for at in range(count)]
    return pa.table({"device": ["cam"] * count, "event_time": pa.array(times, pa.timestamp("us", "UTC"))})


def test_blocks_that_share_a_near_duplicate_go_to_one_split() -> None:
    rows = frames(400)
    near = np.full(400, NO_GROUP, np.int64)
    for block in range(0, 40, 2):  # the last frame of each even block is like the first of the next
        near[block * 10 + 9] = near[block * 10 + 10] = block
    rule = SplitRule(("device",), (("train", 0.5), ("test", 0.5)), (), 10.0, 0.0, "stratified")
    apart = plan_splits(rows, rule, 3)
    together = plan_splits(rows, rule, 3, near=near)
    pairs = near.reshape(-1)[9:-1:20] != NO_GROUP
    ends = np.arange(9, 399, 20)[pairs]
    assert (apart.splits[ends] != apart.splits[ends + 1]).any()
    assert (together.splits[ends] == together.splits[ends + 1]).all()
    assert together.joined_groups == 20
    assert abs(int((together.splits == 0).sum()) - 200) <= 20


def test_groups_that_an_earlier_version_put_apart_stay_apart() -> None:
    rows = pa.table({"part": ["a", "b", "c", "d"]})
    rule = SplitRule(("part",), (("train", 0.5), ("test", 0.5)), (), 0.0, 0.0, "stratified")
    names = plan_splits(rows, rule, 0).groups
    earlier = EarlierSplits(names.column("group").combine_chunks(), np.array([0, 1, 0, 1], np.int64))
    plan = plan_splits(rows, rule, 0, earlier, near=np.array([7, 7, NO_GROUP, NO_GROUP], np.int64))
    assert plan.splits.tolist() == [0, 1, 0, 1]
    assert plan.torn_groups == 1


def test_a_new_group_joins_the_split_of_the_one_that_it_is_like() -> None:
    before = pa.table({"part": ["a", "b"]})
    rule = SplitRule(("part",), (("train", 0.5), ("test", 0.5)), (), 0.0, 0.0, "stratified")
    names = plan_splits(before, rule, 0).groups.column("group").combine_chunks()
    rows = pa.table({"part": ["a", "b", "c"]})
    for split in (0, 1):
        earlier = EarlierSplits(names, np.array([1 - split, split], np.int64))
        plan = plan_splits(rows, rule, 0, earlier, near=np.array([NO_GROUP, 4, 4], np.int64))
        assert plan.splits[2] == split
