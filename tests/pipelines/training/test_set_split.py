"""Which split a row goes to and where shards are cut, against the same said row by row."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RefusedError
from pipelines.training.manifest import SplitRule
from pipelines.training.permutation import Permutation
from pipelines.training.split import group_unit, shard_bounds, shuffled_rows, split_of_rows

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


def split_by_hand(rule: SplitRule, seed: int, group: str) -> int:
    unit, below = unit_by_hand(seed, group), 0.0
    for number, (_, share) in enumerate(rule.fractions):
        below += share
        if unit < below:
            return number
    return len(rule.fractions) - 1


@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 3)), max_size=20), st.integers(0, 9), st.integers(1, 3))
def test_rows_are_split_by_hash_of_their_groups_columns(
    rows: list[tuple[str | None, str | None, int]], seed: int, used: int
) -> None:
    columns = {"a": pa.string(), "b": pa.string(), "n": pa.int32()}
    table = pa.table({name: pa.array([row[at] for row in rows], kind) for at, (name, kind) in enumerate(columns.items())})
    rule = SplitRule(tuple(list(columns)[:used]), (("train", 0.5), ("test", 0.3), ("held", 0.2)))
    splits = split_of_rows(table, rule, seed)
    groups = ["\x1f".join("" if cell is None else str(cell) for cell in row[:used]) for row in rows]
    assert splits.tolist() == [split_by_hand(rule, seed, group) for group in groups]
    assert splits.dtype == np.int64


def test_rows_in_several_chunks_are_split_as_in_one() -> None:
    rule = SplitRule(("g",), (("train", 0.5), ("test", 0.5)))
    chunked = pa.table({"g": pa.chunked_array([["a", "b"], ["c", None, "a"]])})
    assert split_of_rows(chunked, rule, 1).tolist() == split_of_rows(chunked.combine_chunks(), rule, 1).tolist()


def test_no_rows_have_no_splits() -> None:
    splits = split_of_rows(pa.table({"g": pa.array([], pa.string())}), SplitRule(("g",), (("all", 1.0),)), 1)
    assert (splits.tolist(), splits.dtype) == ([], np.int64)


def test_a_number_above_all_shares_goes_to_the_last_split(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = SplitRule(("g",), (("train", 0.5), ("test", 0.5 - 1e-10)))
    monkeypatch.setattr("pipelines.training.split.group_unit", lambda _seed, _group: 1 - 1e-12)
    assert split_of_rows(pa.table({"g": ["a"]}), rule, 1).tolist() == [1]


def test_a_number_on_the_bound_goes_to_the_split_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.training.split.group_unit", lambda _seed, _group: 0.5)
    assert split_of_rows(pa.table({"g": ["a"]}), SplitRule(("g",), (("train", 0.5), ("test", 0.5))), 1).tolist() == [1]


def test_a_missing_group_column_is_named_beside_those_there_are() -> None:
    table = pa.table({"a": ["x"], "b": ["y"]})
    rule = SplitRule(("a", "line", "shift"), (("all", 1.0),))
    with pytest.raises(RefusedError, match=r"^no column line, shift to group by; there are a, b$"):
        split_of_rows(table, rule, 1)


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
