"""Which split a row goes to and where shards are cut, against the same said row by row."""

import hashlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RefusedError
from pipelines.training.manifest import SplitRule
from pipelines.training.near_duplicates import NO_GROUP
from pipelines.training.permutation import Permutation
from pipelines.training.split import EarlierSplits, alike_groups, group_unit, plan_splits, shard_bounds, shuffled_rows

TEXTS = st.one_of(st.none(), st.text("abé\x1f", max_size=3))


def unit_by_hand(seed: int, group: str) -> float:
    digest = hashlib.sha256(f"{seed}\x1f{group}".encode()).digest()
    return int.from_bytes(digest[:7], "little") / 2**56


@given(st.integers(0, 2**64), st.text(max_size=9))
def test_a_groups_number_is_made_as_the_first_release_made_it(seed: int, group: str) -> None:
    unit = group_unit(seed, group)
    assert unit == unit_by_hand(seed, group)
    assert 0 <= unit < 1


def test_a_groups_number_means_the_same_for_ever() -> None:
    assert group_unit(4, "press-1") == 0.7713361572147537


def rule_of(*group: str, stratify: tuple[str, ...] = (), block_s: float = 0.0, gap_s: float = 0.0) -> SplitRule:
    shares = (("train", 0.8), ("validation", 0.1), ("test", 0.1))
    return SplitRule(group, shares, stratify, block_s, gap_s, "stratified")


def parts_of(seed: int, groups: int = 40, of_rare: int = 3) -> pa.Table:
    """Rows of groups of uneven size with two common classes, and a rare one that only some groups hold."""
    random = np.random.default_rng(seed)
    rare = set(random.choice(groups, of_rare, replace=False).tolist())
    kinds = [["ok", "scratch"][int(random.integers(2))] for _ in range(groups)]
    rows = [
        (f"part-{g}", kinds[g] if at or g not in rare else "crack") for g in range(groups) for at in range(random.integers(4, 30))
    ]
    return pa.table({"part": [part for part, _ in rows], "kind": [kind for _, kind in rows]})


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 200), marks=pytest.mark.slow)])
def test_a_rare_class_is_in_every_split_with_each_seed(seeds: range) -> None:
    rule = rule_of("part", stratify=("kind",))
    assert [seed for seed in seeds if plan_splits(parts_of(seed), rule, seed).missing] == []


def test_groups_of_one_size_are_split_exactly() -> None:
    table = pa.table({"part": [f"p{at // 5}" for at in range(200)]})
    for seed in range(20):
        assert np.bincount(plan_splits(table, rule_of("part"), seed).splits).tolist() == [160, 20, 20]


@pytest.mark.slow
def test_groups_of_any_size_come_within_half_a_group_of_their_share() -> None:
    for seed in range(20):
        table = parts_of(seed)
        rows = np.bincount(plan_splits(table, rule_of("part", stratify=("kind",)), seed).splits, minlength=3)
        assert np.abs(rows - np.array([0.8, 0.1, 0.1]) * len(table)).max() <= 15


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=20), st.integers(0, 9))
def test_values_that_read_alike_when_joined_are_groups_apart(rows: list[tuple[str | None, str | None]], seed: int) -> None:
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate("ab")})
    assert len(plan_splits(table, rule_of("a", "b"), seed).groups) == len(set(rows))


def test_rows_without_a_group_stay_together_and_are_counted() -> None:
    table = pa.table({"g": pa.array([None, "", None, "x", ""], pa.string())})
    plan = plan_splits(table, rule_of("g"), 1)
    assert plan.null_rows == 2
    assert sorted(plan.groups["rows"].to_pylist()) == [1, 2, 2]


def test_rows_in_several_chunks_are_split_as_in_one() -> None:
    chunked = pa.table({"g": pa.chunked_array([["a", "b"], ["c", None, "a"]])})
    assert (
        plan_splits(chunked, rule_of("g"), 1).splits.tolist()
        == plan_splits(chunked.combine_chunks(), rule_of("g"), 1).splits.tolist()
    )


def test_no_rows_have_no_splits() -> None:
    splits = plan_splits(pa.table({"g": pa.array([], pa.string())}), rule_of("g"), 1).splits
    assert splits.tolist() == []
    assert splits.dtype == np.int64


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(0, 99))
def test_a_group_that_was_assigned_never_changes_split(seed: int) -> None:
    rule = rule_of("part", stratify=("kind",))
    first = plan_splits(parts_of(seed), rule, seed)
    numbers = [["train", "validation", "test"].index(split) for split in first.groups["split"].to_pylist()]
    earlier = EarlierSplits(first.groups["group"].combine_chunks(), np.array(numbers, np.int64))
    more = pa.concat_tables([parts_of(seed), pa.table({"part": ["new-1", "new-2", "part-0"], "kind": ["crack", "ok", "crack"]})])
    second = plan_splits(more, rule, seed + 1, earlier)
    assert second.splits[: len(first.splits)].tolist() == first.splits.tolist()
    assert (second.kept_groups, len(second.groups)) == (40, 42)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 3)), max_size=12))
def test_groups_are_alike_that_share_a_group_of_near_duplicates(rows: list[tuple[int, int]]) -> None:
    of_row = np.array([group for group, _ in rows], np.int64)
    near = np.array([NO_GROUP if kind < 0 else kind for _, kind in rows], np.int64)
    found = {(int(left), int(right)) for left, right in zip(*alike_groups(of_row, near), strict=True)}
    share = {(left, right) for left, kind in rows for right, other in rows if kind == other >= 0}
    assert found <= share
    reach = {group: {group} for group, _ in rows}
    for left, right in [*found] * len(rows):
        both = reach[left] | reach[right]
        for group in both:
            reach[group] = reach[group] | both
    assert all(right in reach[left] for left, right in share)


def test_groups_with_near_duplicates_go_to_one_split_and_are_counted() -> None:
    rows = pa.table({"part": [f"p{at // 5:02d}" for at in range(200)]})
    near = np.full(200, NO_GROUP, np.int64)
    near[4:199:10] = near[5:200:10] = np.arange(20)  # the last row of each even part is like the first of the next one
    plan = plan_splits(rows, rule_of("part"), 3, near=near)
    assert plan.splits[4:199:10].tolist() == plan.splits[5:200:10].tolist()
    assert (plan.joined_groups, plan.torn_groups, plan.kept_groups) == (20, 0, 0)
    assert set(plan.groups["rows"].to_pylist()) == {5}


def test_near_duplicates_follow_the_split_a_group_had_and_stay_torn_where_two_had_theirs() -> None:
    names = pa.array(["1:a", "1:b"])
    rows = pa.table({"part": ["a", "b", "c"]})
    assert plan_splits(rows, rule_of("part"), 0).groups["group"].to_pylist()[:2] == names.to_pylist()
    for first, second in ((0, 2), (2, 0)):
        earlier = EarlierSplits(names, np.array([first, second], np.int64))
        follows = plan_splits(rows, rule_of("part"), 0, earlier, near=np.array([NO_GROUP, 4, 4], np.int64))
        assert (follows.splits.tolist(), follows.torn_groups) == ([first, second, second], 0)
        torn = plan_splits(rows, rule_of("part"), 0, earlier, near=np.array([4, 4, 4], np.int64))
        assert (torn.splits.tolist(), torn.torn_groups) == ([first, second, first], 1)


def test_a_class_that_too_few_groups_hold_is_named_for_the_splits_that_lack_it() -> None:
    plan = plan_splits(parts_of(1, of_rare=2), rule_of("part", stratify=("kind",)), 1)
    assert [(count.name, count.rows) for count in plan.missing] == [("kind=crack", 0)]


def test_each_item_of_a_list_is_a_class() -> None:
    tags = [["dark"], ["dark", "wet"], [], None, ["wet"], ["dark"]]
    table = pa.table({"g": list("abcdef"), "tags": pa.array(tags, pa.list_(pa.string()))})
    coverage = plan_splits(table, rule_of("g", stratify=("tags",)), 1).coverage
    assert sum(count.rows for count in coverage if count.name == "tags=dark") == 3
    assert sum(count.rows for count in coverage if count.name == "tags=wet") == 2


def drive(frames: int = 600) -> pa.Table:
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at) for at in range(frames)]
    return pa.table({"device": ["car-1"] * frames, "event_time": pa.array(times, pa.timestamp("us", "UTC"))})


def neighbours_across(table: pa.Table, splits: list[int], within_s: float) -> int:
    times = [time.timestamp() for time in table["event_time"].to_pylist()]
    inside = [(at, split) for at, split in zip(times, splits, strict=True) if split >= 0]
    return sum(any(other != split and abs(at - then) <= within_s for then, other in inside) for at, split in inside)


def test_blocks_of_time_keep_neighbouring_frames_together() -> None:
    plan = plan_splits(drive(), rule_of("device", block_s=30.0), 3)
    assert len(plan.groups) == 20
    assert np.bincount(plan.splits).tolist() == [480, 60, 60]
    for block in range(20):
        assert len(set(plan.splits[block * 30 : block * 30 + 30].tolist())) == 1


def test_a_gap_leaves_no_neighbour_in_another_split() -> None:
    table = drive()
    without = plan_splits(table, rule_of("device", block_s=30.0), 3).splits.tolist()
    with_gap = plan_splits(table, rule_of("device", block_s=30.0, gap_s=2.0), 3).splits.tolist()
    assert neighbours_across(table, without, 2.0) > 0
    assert neighbours_across(table, with_gap, 2.0) == 0
    assert [split for split in with_gap if split > 0].count(1) == without.count(1), "the smaller splits lose nothing to train"


def test_a_column_with_too_many_values_is_no_column_of_classes() -> None:
    table = pa.table({"g": ["a"] * 1_001, "speed": np.arange(1_001) * 0.5})
    with pytest.raises(RefusedError, match=r"^speed has more than 1,000 values; stratify by a column of classes"):
        plan_splits(table, rule_of("g", stratify=("speed",)), 1)


def test_a_missing_group_column_is_named_beside_those_there_are() -> None:
    table = pa.table({"a": ["x"], "b": ["y"]})
    with pytest.raises(RefusedError, match=r"^no column line, shift to group by; there are a, b$"):
        plan_splits(table, rule_of("a", "line", "shift"), 1)


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 2), st.integers(0, 9))
def test_the_rows_of_a_split_lie_in_the_seeds_order(splits: list[int], number: int, seed: int) -> None:
    rows = pa.table({"at": pa.array(range(len(splits)), pa.int64())})
    members = [at for at, split in enumerate(splits) if split == number]
    order = Permutation(len(members), seed, -1 - number).at(np.arange(len(members), dtype=np.int64))
    shuffled = shuffled_rows(rows, np.array(splits, np.int64), number, seed)
    assert shuffled["at"].to_pylist() == [members[at] for at in order]


def bounds_by_hand(sizes: list[int], max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
    bounds, low, held = [], 0, 0
    for at, size in enumerate(sizes):
        if at > low and (at - low >= max_rows or held + size > max_bytes):
            bounds.append((low, at))
            low, held = at, 0
        held += size
    return [*bounds, (low, len(sizes))]


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 8), st.integers(1, 30))
def test_shards_are_cut_where_a_row_more_would_go_beyond_a_limit(sizes: list[int], max_rows: int, max_bytes: int) -> None:
    assert shard_bounds(np.array(sizes, np.int64), max_rows, max_bytes) == bounds_by_hand(sizes, max_rows, max_bytes)


def test_a_row_that_is_larger_than_a_shard_has_one_of_its_own() -> None:
    assert shard_bounds(np.array([5, 100, 5], np.int64), 10, 10) == [(0, 1), (1, 2), (2, 3)]


def test_no_rows_are_one_empty_shard() -> None:
    assert shard_bounds(np.array([], np.int64), 10, 10) == [(0, 0)]
