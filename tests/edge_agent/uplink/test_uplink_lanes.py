"""What a real spool gives out: by turns while a backlog waits, by priority where the link costs money."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.spool import leases
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName

ALPHA = StreamName("alpha")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", max_bytes=1 << 28, linger_ms=0, clock=SystemClock())
    yield opened
    opened.close()


def put(spool: Spool, count: int, priority: int = 100, body: bytes = b"x" * 1_000) -> None:
    futures = [spool.append(Append(ALPHA, (NewEnvelope(1, body, "1.0.0"),), priority=priority)) for _ in range(count)]
    for future in futures:
        future.result()


def take(spool: Spool, bytes_at_once: int = 1_000) -> int | None:
    taken = spool.next_unsent(bytes_at_once)
    assert len(taken) <= 1
    return taken[0].span.first_seq if taken else None


def test_new_samples_do_not_wait_behind_a_backlog(spool: Spool) -> None:
    put(spool, 100)
    spool.part_backlog()
    put(spool, 20)
    first = [take(spool) for _ in range(40)]
    assert [seq for seq in first if seq is not None and seq >= 100] == list(range(100, 120))
    assert [seq for seq in first if seq is not None and seq < 100] == list(range(20))
    assert [take(spool) for _ in range(81)] == [*range(20, 100), None]


def test_a_share_of_nothing_sends_the_backlog_first(spool: Spool) -> None:
    spool.tune(fresh_share=0.0, min_priority=0)
    put(spool, 5)
    spool.part_backlog()
    put(spool, 5)
    assert [take(spool) for _ in range(11)] == [*range(10), None]


def test_a_metered_link_carries_what_is_worth_it_and_the_rest_when_it_is_over(spool: Spool) -> None:
    put(spool, 300, priority=10)
    put(spool, 3, priority=90)
    spool.tune(fresh_share=0.5, min_priority=50)
    assert [take(spool) for _ in range(4)] == [300, 301, 302, None]
    put(spool, 1, priority=10)
    put(spool, 1, priority=50)
    assert [take(spool), take(spool)] == [304, None]
    spool.tune(fresh_share=0.5, min_priority=0)
    assert [take(spool) for _ in range(302)] == [*range(300), 303, None]


def test_looking_past_a_long_cheap_backlog_is_cut_and_goes_on(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MAX_PASSED_ROWS", 128)
    put(spool, 400, priority=10)
    put(spool, 1, priority=90)
    spool.tune(fresh_share=0.5, min_priority=50)
    woken: list[int] = []
    spool.listen(lambda: woken.append(1))
    found = [take(spool) for _ in range(8)]
    assert [seq for seq in found if seq is not None] == [400]
    assert woken, "a caller that got nothing is told to ask again"


def test_what_is_released_is_given_out_again_whichever_lane_it_was(spool: Spool) -> None:
    put(spool, 4)
    spool.part_backlog()
    put(spool, 4)
    ids = [spool.next_unsent(1_000)[0].id for _ in range(8)]
    spool.release(ids[2:4])
    spool.part_backlog()
    assert {spool.next_unsent(1_000)[0].id for _ in range(2)} == set(ids[2:4])
    assert take(spool) is None


def test_a_backlog_of_many_is_given_out_once_each_while_more_comes(spool: Spool) -> None:
    put(spool, 500)
    spool.part_backlog()
    seen: list[int] = []
    for _ in range(30):
        put(spool, 10)
        seen += [envelope.span.first_seq for envelope in spool.next_unsent(30_000)]
        spool.part_backlog()
    while taken := spool.next_unsent(1 << 20):
        seen += [envelope.span.first_seq for envelope in taken]
    assert sorted(seen) == list(range(800))
