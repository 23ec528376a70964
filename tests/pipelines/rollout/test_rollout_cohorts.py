"""Whom a cohort covers, and how it is read and written."""

import hashlib
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RefusedError
from pipelines.rollout.cohorts import BUCKETS, Cohort, bucket, parse_cohort

NAMES = st.text("ab1-", min_size=1, max_size=4).filter(lambda name: name[0] != "-")
PATTERNS = st.text("ab1-*?", min_size=1, max_size=4).filter(lambda name: name[0] != "-" and name != "all")


@given(st.text("r12", max_size=4), NAMES)
def test_a_devices_bucket_is_the_same_in_every_process(rollout: str, device: str) -> None:
    digest = hashlib.sha256(f"{rollout}/{device}".encode()).hexdigest()
    assert bucket(rollout, device) == int(digest[:16], 16) % 10_000


@given(st.integers(0, BUCKETS), st.lists(PATTERNS, max_size=3), st.lists(NAMES, max_size=8))
def test_a_cohort_covers_the_buckets_below_its_share_and_the_names(share: int, names: list[str], devices: list[str]) -> None:
    cohort = Cohort(share, tuple(names))
    covered = [one for one in devices if bucket("r", one) < share or any(fnmatchcase(one, name) for name in names)]
    assert [one for one in devices if cohort.covers("r", one)] == covered
    assert cohort.among("r", devices) == sorted(covered)


def test_the_device_in_the_bucket_of_the_share_itself_is_not_covered() -> None:
    own = bucket("r", "press-1")
    assert not Cohort(own).covers("r", "press-1")
    assert Cohort(own + 1).covers("r", "press-1")


def test_a_cohort_of_nobody_covers_nobody() -> None:
    assert Cohort() == Cohort(0, ())
    assert not Cohort().covers("r", "press-1")


def test_devices_named_in_full_are_those_without_a_pattern() -> None:
    assert Cohort(1, ("a", "b*", "c?", "d", "e*?")).named_devices == ("a", "d")


@pytest.mark.parametrize(
    ("cohort", "text"),
    [
        (Cohort(), "none"),
        (Cohort(BUCKETS), "all"),
        (Cohort(BUCKETS, ("a",)), "all"),
        (Cohort(BUCKETS - 1), "99.99%"),
        (Cohort(1), "0.01%"),
        (Cohort(1_000), "10%"),
        (Cohort(1_050, ("a", "b*")), "10.5%,a,b*"),
        (Cohort(0, ("a", "b*")), "a,b*"),
    ],
)
def test_a_cohort_is_written_as_a_person_would(cohort: Cohort, text: str) -> None:
    assert str(cohort) == text
    if text != "none":
        assert parse_cohort(text) == (Cohort(BUCKETS) if text == "all" else cohort)


@pytest.mark.parametrize(
    ("text", "cohort"),
    [
        ("all", Cohort(BUCKETS)),
        ("all,10%", Cohort(BUCKETS)),
        ("10%,all", Cohort(BUCKETS)),
        ("100%", Cohort(BUCKETS)),
        ("0%", Cohort()),
        ("5%,20%,10%", Cohort(2_000)),
        ("0.29%", Cohort(29)),
        ("12.3%", Cohort(1_230)),
        (" a , 1% ,b", Cohort(100, ("a", "b"))),
        ("a-1,*,?x", Cohort(0, ("a-1", "*", "?x"))),
        ("a" * 63, Cohort(0, ("a" * 63,))),
    ],
)
def test_a_cohort_is_read_as_written(text: str, cohort: Cohort) -> None:
    assert parse_cohort(text) == cohort


@pytest.mark.parametrize("text", ["", ",", "a,", "101%", "100.01%", "1000%", "1.234%", "10 %", "-a", "A", "a_b", "a" * 64])
def test_a_part_that_is_no_cohort_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^cohort '[^']*' is not one of: all, 10%, a device's name, a pattern like line-\*$"):
        parse_cohort(text)


def test_a_part_that_is_too_long_to_print_is_cut_in_the_message() -> None:
    with pytest.raises(RefusedError, match=f"^cohort '{'A' * 80}' is not one of"):
        parse_cohort("A" * 81)
