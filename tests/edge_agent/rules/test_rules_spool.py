"""What rules leave out stands in the books with its reason; what they value is given up last."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.rules.rule_filter import RuleFilter
from edge_agent.sources.api import SampleBatch
from edge_agent.spool.records import Append, NewEnvelope, Passed
from edge_agent.spool.space_budget import soft_limit_bytes
from edge_agent.spool.spool import Spool
from schemas.contract import builtin_contract
from schemas.edge_policy import EdgeAction, EdgePolicy, EdgeRule
from schemas.ids import StreamName
from schemas.receipts import Receipt
from tests.fakes.policy_signer import rule

STREAM = StreamName("vehicle_telemetry")
MIB = 1024 * 1024


class Book:
    """One policy."""

    def __init__(self, *rules: EdgeRule) -> None:
        self.policy = EdgePolicy(1, 0, {STREAM: rules})

    def current(self) -> EdgePolicy:
        return self.policy

    def suspend(self, stream: str, rule: str, reason: str) -> None:
        pytest.fail(f"{stream}/{rule}: {reason}")

    def uninspected(self, stream: str, inspector: str, samples: int, reason: str) -> None:
        pytest.fail(f"{stream}, {inspector}, {samples} samples: {reason}")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", max_bytes=8 * MIB, linger_ms=0, clock=SystemClock())
    yield opened
    opened.close()


def envelope(letter: bytes, priority: int | None = None) -> NewEnvelope:
    return NewEnvelope(10, letter * 100_000, "1.0.0", priority=priority)


def test_left_out_samples_are_captured_and_dropped_with_their_reason_and_take_no_seq(spool: Spool) -> None:
    append = Append(STREAM, (envelope(b"a"),), position=b"1", source="s", left_out=(("rule:a", 5), ("rule:b", 1)))
    span = spool.append(append).result()
    spool.note(Passed(STREAM, "s", b"2", (("rule:a", 4),)))
    assert (span.first_seq, span.count) == (0, 10)
    (books,) = spool.books()
    assert (books.captured, books.spooled, books.dropped) == (20, 10, {"rule:a": 9, "rule:b": 1})
    assert books.is_balanced
    assert spool.position("s") == b"2"
    assert [(epoch.next_seq, epoch.dropped) for epoch in spool.epochs()] == [(10, ())]


def test_books_of_left_out_samples_outlive_a_restart(spool: Spool, tmp_path: Path) -> None:
    spool.note(Passed(STREAM, "s", None, (("rule:a", 4),)))
    spool.close()
    again = Spool(tmp_path / "spool", max_bytes=8 * MIB, linger_ms=0, clock=SystemClock())
    (books,) = again.books()
    again.close()
    assert (books.captured, books.dropped, books.is_balanced) == (4, {"rule:a": 4}, True)


def test_within_a_batch_the_less_valuable_envelope_goes_first(spool: Spool) -> None:
    for _ in range(60):
        spool.append(Append(STREAM, (envelope(b"c", 10), envelope(b"d", 900)), priority=900)).result()
    kept = [found.body[:1] for found in spool.next_unsent(8 * MIB)]
    assert kept.count(b"d") > 25
    assert kept.count(b"c") <= 2  # what goes makes room for two batches
    assert all(books.is_balanced for books in spool.books())


def test_a_spool_that_fills_wakes_the_rules_of_pressure_and_one_that_drains_lets_them_sleep(spool: Spool) -> None:
    contract = builtin_contract(STREAM)
    book = Book(rule("thin", STREAM, "speed_mps >= 0", EdgeAction.DROP, pressure=0.5))
    rule_filter = RuleFilter(book, contract, "car-1", 100, lambda: spool.used_bytes() / soft_limit_bytes(8 * MIB))
    sample = SampleBatch([1], {"speed_mps": [1.0]})
    assert len(rule_filter(sample).groups) == 1
    spans = [spool.append(Append(STREAM, (envelope(b"a"),))).result() for _ in range(25)]
    assert rule_filter(sample).groups == ()
    assert rule_filter(sample).left_out == {"rule:thin": 1}
    spool.settle(Receipt(1, {STREAM: {str(spans[0].epoch): [(0, spans[-1].end_seq)]}})).result()
    assert len(rule_filter(sample).groups) == 1
