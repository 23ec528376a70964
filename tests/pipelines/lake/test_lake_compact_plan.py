"""Which small files become one: neighbours, up to the targets, and only where it is worth a rewrite."""

import hashlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake import compact_plan
from pipelines.lake.compact_plan import (
    MIN_FILES,
    SMALL_BYTES,
    SMALL_PAYLOAD_BYTES,
    TARGET_BYTES,
    TARGET_PAYLOAD_BYTES,
    TARGET_ROWS,
    Small,
    bins,
    name_of,
)

MIB = 1024 * 1024
FILES = st.lists(
    st.tuples(
        st.sampled_from([1, TARGET_ROWS // 4, TARGET_ROWS // 2, TARGET_ROWS]),
        st.sampled_from([1, TARGET_BYTES // 4, SMALL_BYTES - 1, SMALL_BYTES, TARGET_BYTES]),
        st.sampled_from([0, 1, SMALL_PAYLOAD_BYTES - 1, SMALL_PAYLOAD_BYTES, TARGET_PAYLOAD_BYTES]),
    ),
    max_size=14,
).map(lambda found: [Small(f"day=1/{number:02}.parquet", *sizes) for number, sizes in enumerate(found)])


def is_small(file: Small) -> bool:
    return file.payload_bytes < SMALL_PAYLOAD_BYTES if file.payload_bytes else file.bytes < SMALL_BYTES


def fits(group: tuple[Small, ...] | list[Small]) -> bool:
    rows, size, payload = (sum(getattr(file, field) for file in group) for field in ("rows", "bytes", "payload_bytes"))
    return bool(rows <= TARGET_ROWS and size <= TARGET_BYTES and payload <= TARGET_PAYLOAD_BYTES)


@given(FILES, st.integers(1, 5), st.randoms())
def test_each_small_file_is_in_one_group_at_most_and_groups_are_as_large_as_may_be(
    files: list[Small], min_files: int, random: Random
) -> None:
    shuffled = list(files)
    random.shuffle(shuffled)
    groups = bins(shuffled, min_files)
    grouped = [file for group in groups for file in group]
    small = [file for file in files if is_small(file)]
    assert grouped == sorted(grouped), "files keep their order and none comes twice"
    assert set(grouped) <= set(small)
    for group in groups:
        assert len(group) >= min_files
        assert fits(group) or len(group) == 1
        first, after = small.index(group[0]), small.index(group[-1]) + 1
        assert tuple(small[first:after]) == group, "neighbours stay together"
        assert after == len(small) or not fits([*group, small[after]]), "the next one would have fitted"
    if min_files == 1:
        assert grouped == small


def test_what_is_small_and_what_is_enough_changes_only_on_purpose() -> None:
    assert (SMALL_BYTES, TARGET_BYTES, SMALL_PAYLOAD_BYTES, TARGET_PAYLOAD_BYTES) == (64 * MIB, 128 * MIB, 128 * MIB, 512 * MIB)
    assert (compact_plan.TARGET_ROWS, MIN_FILES) == (4_000_000, 4)


@pytest.mark.parametrize(
    ("file", "small"),
    [
        (Small("a", 1, SMALL_BYTES - 1), True),
        (Small("a", 1, SMALL_BYTES), False),
        (Small("a", 1, TARGET_BYTES, SMALL_PAYLOAD_BYTES - 1), True),
        (Small("a", 1, 1, SMALL_PAYLOAD_BYTES), False),
    ],
)
def test_a_file_is_small_by_its_payload_where_it_has_one(file: Small, small: bool) -> None:
    assert bins([file], 1) == ([(file,)] if small else [])


@pytest.mark.parametrize("column", ["rows", "bytes", "payload_bytes"])
def test_a_group_may_reach_each_target_and_not_go_beyond_it(column: str) -> None:
    target = {"rows": TARGET_ROWS, "bytes": TARGET_BYTES, "payload_bytes": TARGET_PAYLOAD_BYTES}[column]
    blank = {"rows": 1, "bytes": 1, "payload_bytes": 1}
    files = [Small(str(number), **{**blank, column: target // 8}) for number in range(8)]
    assert bins(files, 1) == [tuple(files)]
    larger = [*files[:-1], Small(files[-1].path, **{**blank, column: target // 8 + 1})]
    assert bins(larger, 1) == [tuple(larger[:-1]), (larger[-1],)]


def test_too_few_neighbours_are_left_as_they_are() -> None:
    files = [Small(str(number), 1, 1) for number in range(MIN_FILES)]
    assert bins(files) == [tuple(files)]
    assert bins(files[1:]) == []
    assert bins([], 1) == []


def test_a_large_file_between_small_ones_does_not_part_them() -> None:
    files = [Small("a", 1, 1), Small("b", 1, SMALL_BYTES), Small("c", 1, 1)]
    assert bins(files, 2) == [(files[0], files[2])]


def test_the_same_group_gives_the_same_name_and_another_group_or_salt_another() -> None:
    group = (Small("x/a", 1, 1), Small("x/b", 2, 2))
    assert name_of(group) == "compact-" + hashlib.sha256(b"\nx/a\nx/b").hexdigest()[:24] + ".parquet"
    assert name_of(group, "s") == "compact-" + hashlib.sha256(b"s\nx/a\nx/b").hexdigest()[:24] + ".parquet"
