"""What rules leave out stands in the books with its reason; what they value is given up last."""

import pytest

from edge_agent.clock import SystemClock
from edge_agent.spool.records import Append, NewEnvelope, Passed
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName

STREAM = StreamName("vehicle_telemetry")
MIB = 1024 * 1024


@pytest.fixture
def spool(tmp_path):
    opened = Spool(tmp_path / "spool", max_bytes=8 * MIB, linger_ms=0, clock=SystemClock())
    yield opened
    opened.close()


def envelope(letter: bytes, priority: int | None = None) -> NewEnvelope:
    return NewEnvelope(10, letter * 100_000, "1.0.0", priority=priority)


def test_left_out_samples_are_captured_and_dropped_with_their_reason_and_take_no_seq(spool):
    append = Append(STREAM, (envelope(b"a"),), position=b"1", source="s", left_out=(("rule:a", 5), ("rule:b", 1)))
    span = spool.append(append).result()
    spool.note(Passed(STREAM, "s", b"2", (("rule:a", 4),)))
    assert (span.first_seq, span.count) == (0, 10)
    (books,) = spool.books()
    assert (books.captured, books.spooled, books.dropped) == (20, 10, {"rule:a": 9, "rule:b": 1})
    assert books.is_balanced
    assert spool.position("s") == b"2"
    assert [(epoch.next_seq, epoch.dropped) for epoch in spool.epochs()] == [(10, ())]


def test_books_of_left_out_samples_outlive_a_restart(spool, tmp_path):
    spool.note(Passed(STREAM, "s", None, (("rule:a", 4),)))
    spool.close()
    again = Spool(tmp_path / "spool", max_bytes=8 * MIB, linger_ms=0, clock=SystemClock())
    (books,) = again.books()
    again.close()
    assert (books.captured, books.dropped, books.is_balanced) == (4, {"rule:a": 4}, True)


def test_within_a_batch_the_less_valuable_envelope_goes_first(spool):
    for _ in range(60):
        spool.append(Append(STREAM, (envelope(b"c", 10), envelope(b"d", 900)), priority=900)).result()
    kept = [found.body[:1] for found in spool.next_unsent(8 * MIB)]
    assert kept.count(b"d") > 25
    assert kept.count(b"c") <= 1
    assert all(books.is_balanced for books in spool.books())
