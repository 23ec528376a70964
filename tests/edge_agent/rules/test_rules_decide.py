"""Which samples go on, which do not, and what the ones that do are worth."""

from collections.abc import Sequence
from itertools import count
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from edge_agent.rules.rule_filter import RuleFilter, chances, decide
from edge_agent.sources.api import SampleBatch
from schemas.contract import builtin_contract
from schemas.edge_policy import EdgeAction, EdgePolicy, EdgeRule
from schemas.ids import StreamName
from tests.fakes.policy_signer import rule
from tests.plant.present import present

STREAM = "vehicle_telemetry"
CONTRACT = builtin_contract(StreamName(STREAM))
ANY_RULE = st.builds(
    EdgeRule,
    id=st.sampled_from("abcdef"),
    sql=st.just("?"),
    action=st.sampled_from(EdgeAction),
    rate=st.floats(0, 1),
    priority=st.integers(0, 200),
    pressure=st.sampled_from([0.0, 0.5, 0.9]),
)


class Book:
    """A policy that stands in a variable."""

    def __init__(self, *rules: EdgeRule) -> None:
        self.policy: EdgePolicy | None = EdgePolicy(1, 0, {STREAM: rules})
        self.suspended: dict[str, str] = {}

    def current(self) -> EdgePolicy | None:
        return self.policy

    def suspend(self, stream: str, rule: str, reason: str) -> None:
        self.suspended[f"{stream}/{rule}"] = reason

    def uninspected(self, stream: str, inspector: str, samples: int, reason: str) -> None:
        raise AssertionError(f"nothing is inspected here: {stream} {inspector} {samples} {reason}")


def batch(*speeds: float | None) -> SampleBatch:
    return SampleBatch(list(range(len(speeds))), {"speed_mps": list(speeds), "frame": list(range(len(speeds)))}, position=b"p")


def rule_filter(book: Book, filled: float = 0.0) -> RuleFilter:
    return RuleFilter(book, CONTRACT, "car-1", 100, lambda: filled)


def speeds_by_priority(book: Book, *speeds: float | None, filled: float = 0.0) -> dict[int, list[float | None]]:
    groups = rule_filter(book, filled)(batch(*speeds)).groups
    return {priority: list(cast("Sequence[float | None]", group.columns["speed_mps"])) for priority, group in groups}


@given(st.lists(ANY_RULE, max_size=6), st.integers(0, 20), st.floats(0, 1), st.data())
def test_every_row_is_kept_once_or_counted_once(rules: list[EdgeRule], rows: int, filled: float, data: DataObject) -> None:
    results = [data.draw(st.lists(st.sampled_from([True, False, None]), min_size=rows, max_size=rows)) for _ in rules]
    decisions = decide(rules, results, rows, 100, filled, lambda row: row / 20)
    kept = sorted(row for group in decisions.kept.values() for row in group)
    assert len(set(kept)) == len(kept)
    assert len(kept) + sum(decisions.left_out.values()) == rows
    silent = [row for row in range(rows) if not any(matches[row] for matches in results)]
    assert set(silent) <= set(kept)


def test_the_first_rule_that_is_true_decides_and_unknown_is_not_true() -> None:
    book = Book(
        rule("brakes", STREAM, "acceleration_mps2 < -5", EdgeAction.KEEP),
        rule("stands", STREAM, "speed_mps < 1", EdgeAction.DROP),
        rule("fast", STREAM, "speed_mps > 30", EdgeAction.PRIORITY, priority=500),
        rule("slow", STREAM, "speed_mps <= 30", EdgeAction.PRIORITY, priority=10),
    )
    filtered = rule_filter(book)(batch(0.0, 40.0, 10.0, None, 0.5))
    assert {priority: list(group.columns["speed_mps"]) for priority, group in filtered.groups} == {
        10: [10.0],
        100: [None],
        500: [40.0],
    }
    assert filtered.left_out == {"rule:stands": 2}
    assert all(group.position == b"p" for _, group in filtered.groups)
    braking = SampleBatch([1], {"speed_mps": [0.0], "acceleration_mps2": [-9.0]})
    assert [len(group) for _, group in rule_filter(book)(braking).groups] == [1]


def test_without_rules_a_batch_passes_untouched() -> None:
    book, whole = Book(), batch(1.0, 2.0)
    assert rule_filter(book)(whole).groups == ((100, whole),)
    book.policy = None
    assert rule_filter(book)(whole).groups == ((100, whole),)


def test_a_share_is_kept_evenly_and_the_same_samples_each_time() -> None:
    book = Book(rule("tenth", STREAM, "speed_mps >= 0", EdgeAction.SAMPLE, rate=0.1))
    speeds = [float(n) for n in range(20_000)]
    kept = speeds_by_priority(book, *speeds)[100]
    assert 1_800 < len(kept) < 2_200
    assert speeds_by_priority(book, *speeds)[100] == kept
    halves = rule_filter(book)(batch(*speeds[:10_000])).groups[0][1]
    assert list(halves.columns["speed_mps"]) == [speed for speed in kept if speed is not None and speed < 10_000]
    more = Book(rule("fifth", STREAM, "speed_mps >= 0", EdgeAction.SAMPLE, rate=0.2))
    assert set(kept) < set(speeds_by_priority(more, *speeds)[100])


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 0), (1.0, 500)])
def test_the_shares_nothing_and_all_are_exact(rate: float, kept: int) -> None:
    book = Book(rule("share", STREAM, "speed_mps >= 0", EdgeAction.SAMPLE, rate=rate))
    assert sum(map(len, speeds_by_priority(book, *map(float, range(500))).values())) == kept


def test_other_devices_keep_other_samples() -> None:
    whole = batch(*map(float, range(100)))
    assert [chances("car-1", STREAM, whole)(row) for row in range(100)] != [
        chances("car-2", STREAM, whole)(row) for row in range(100)
    ]


def test_a_rule_of_pressure_sleeps_until_the_spool_is_that_full() -> None:
    book = Book(rule("thin", STREAM, "speed_mps >= 0", EdgeAction.DROP, pressure=0.8))
    assert speeds_by_priority(book, 1.0, filled=0.79) == {100: [1.0]}
    assert speeds_by_priority(book, 1.0, filled=0.8) == {}


def test_a_new_policy_counts_from_the_next_batch_on() -> None:
    book = Book(rule("all", STREAM, "speed_mps >= 0", EdgeAction.DROP))
    one = rule_filter(book)
    assert one(batch(1.0)).groups == ()
    book.policy = EdgePolicy(2, 0, {})
    assert len(one(batch(1.0)).groups) == 1


@pytest.mark.parametrize(
    ("bad", "fragment"),
    [
        (EdgeRule("bad", "randomblob(?)", EdgeAction.DROP, (1,)), "not a function"),
        (EdgeRule("bad", '"seq" > ?', EdgeAction.DROP, (1,)), "does not know"),
        (EdgeRule("bad", '"speed_mps" > ?', EdgeAction.DROP, ()), "places"),
        (EdgeRule("bad", '("speed_mps", ?) IS NULL', EdgeAction.DROP, (1,)), "engine"),
        (rule("bad", "network_flow", "duration_s > 1", EdgeAction.DROP), "does not know"),
    ],
)
def test_a_rule_that_means_nothing_here_is_reported_and_costs_no_sample(bad: EdgeRule, fragment: str) -> None:
    book = Book(bad, rule("stands", STREAM, "speed_mps < 1", EdgeAction.DROP))
    assert speeds_by_priority(book, 0.0, 5.0) == {100: [5.0]}
    assert fragment in book.suspended[f"{STREAM}/bad"]


def test_a_column_of_another_type_than_the_core_has_is_no_ground_to_drop() -> None:
    wrong = EdgeRule("bad", '"frame" > ?', EdgeAction.DROP, (0,), columns={"frame": present(CONTRACT.column("speed_mps")).type})
    book = Book(wrong)
    assert speeds_by_priority(book, 0.0, 5.0) == {100: [0.0, 5.0]}
    assert "int64" in book.suspended[f"{STREAM}/bad"]


def test_values_that_are_not_of_the_contract_are_kept_for_the_contract_to_refuse() -> None:
    book = Book(rule("stands", STREAM, "speed_mps < 1", EdgeAction.DROP))
    strange = SampleBatch([1], {"speed_mps": ["fast"]})
    assert rule_filter(book)(strange).groups == ((100, strange),)
    assert "kept whole" in book.suspended[f"{STREAM}/*"]


def test_rules_may_use_time_and_device() -> None:
    book = Book(rule("mine", STREAM, "device = 'car-1' and hour(event_time) = 1", EdgeAction.DROP))
    numbers = count()
    kept = rule_filter(book)(
        SampleBatch([0, 1, 3_600_000_000, 3_600_000_001], {"frame": [next(numbers) for _ in range(4)]})
    ).groups
    assert [list(group.columns["frame"]) for _, group in kept] == [[0, 1]]
