"""What a receipt does to the spool when it has pages, floors and refusals."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catchment.runtime.clock import SystemClock
from edge_agent.spool import changes, database
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from edge_agent.uplink.downlink import Downlink
from edge_agent.uplink.session import MessageArrived
from schemas.ids import DeviceId, StreamName
from schemas.ranges import Ranges
from schemas.receipts import Floor, Receipt, RefusedStream, encode_receipt, receipt_pages
from schemas.topics import Topics
from tests.fakes.spool_rows import rows_of

MIB = 1024 * 1024
ALPHA = StreamName("alpha")
OPEN = 99


def open_spool(folder: Path) -> Spool:
    return Spool(folder, max_bytes=64 * MIB, linger_ms=0, clock=SystemClock())


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(open_spool(tmp_path / "s")) as opened:
        yield opened


def put(spool: Spool, count: int) -> None:
    spool.append(Append(ALPHA, tuple(NewEnvelope(1, b"x" * 50, "1.0.0") for _ in range(count)))).result()


def held(spool: Spool) -> list[int]:
    return [seq for (seq,) in rows_of(spool, "SELECT first_seq FROM envelope ORDER BY epoch, first_seq")]


def settled(spool: Spool, *spans: tuple[int, int], epoch: int | None = None, **more: object) -> Receipt:
    of_epoch = {str(spool.epoch if epoch is None else epoch): list(spans)}
    return Receipt(1, {str(ALPHA): of_epoch}, **more)  # type: ignore[arg-type]  # fields of a receipt


def test_what_is_held_below_the_floor_is_kept_until_a_receipt_lists_it(spool: Spool) -> None:
    put(spool, 10)
    floors = {str(ALPHA): Floor(str(spool.epoch), 8)}
    spool.settle(settled(spool, (8, 9), floors=floors)).result()
    assert held(spool) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    spool.settle(settled(spool, (0, 3), (8, 9), floors=floors)).result()
    assert held(spool) == [3, 4, 5, 6, 7, 9]
    (books,) = spool.books()
    assert (books.captured, books.settled, books.spooled, books.is_balanced) == (10, 4, 6, True)


def test_an_epoch_of_which_nothing_is_held_is_forgotten_below_the_floor_and_no_earlier(tmp_path: Path) -> None:
    with closing(open_spool(tmp_path / "s")) as first:
        put(first, 5)
        old = first.epoch
        first._writer.change(lambda db: changes.drop(db, [1, 2], "evicted")).result()
    with closing(open_spool(tmp_path / "s")) as spool:
        put(spool, 2)
        floors = {str(ALPHA): Floor(str(spool.epoch), 1)}
        spool.settle(settled(spool, (3, 5), epoch=old, floors=floors)).result()
        # One of the old epoch is still here, so it goes on being told of; what was dropped of it is accounted for.
        (before, _) = spool.epochs()
        assert (before.epoch, before.dropped, held(spool)) == (old, (), [2, 0, 1])
        spool.settle(settled(spool, (2, 5), epoch=old, floors=floors)).result()
        assert [report.epoch for report in spool.epochs()] == [spool.epoch]


def test_pages_in_any_order_settle_what_the_whole_receipt_settles(tmp_path: Path, spool: Spool) -> None:
    put(spool, 600)
    whole = settled(spool, *((2 * n, 2 * n + 1) for n in range(300)))
    pages = receipt_pages(whole, 600)
    assert len(pages) > 2
    downlink = Downlink(spool, None, None, Topics(), DeviceId("dev-a"))  # type: ignore[arg-type]  # no parts, no models here
    for page in reversed(pages):
        topic = Topics().receipt_page(DeviceId("dev-a"), page.page)
        assert downlink.handle(MessageArrived(topic, encode_receipt(page), (), b""))
        assert not downlink.handle(MessageArrived(topic, encode_receipt(page), (), b""))
    assert not downlink.handle(MessageArrived("catchment/down/dev-a/receipts/7", b"", (), b""))
    spool.settle(Receipt(1, {})).result()
    assert held(spool) == list(range(1, 600, 2))


def test_refusals_outlive_a_restart_and_end_with_the_receipt_that_no_longer_has_them(tmp_path: Path) -> None:
    refused = {"alpha": RefusedStream(12, 0, 12, "speed: above N"), "beta": RefusedStream(1, 99)}
    with closing(open_spool(tmp_path / "s")) as spool:
        spool.settle(Receipt(1, {}, refused=refused)).result()
    with closing(open_spool(tmp_path / "s")) as spool:
        assert spool.refused() == refused
        spool.settle(Receipt(2, {}, refused={"beta": RefusedStream(2, 99)}, page=1, pages=2)).result()
        assert spool.refused() == {"alpha": refused["alpha"], "beta": RefusedStream(2, 99)}
        spool.settle(Receipt(3, {}, refused={"beta": RefusedStream(2, 99)})).result()
        assert list(spool.refused()) == ["beta"]


def refusal(run: int, page: int, pages: int, *streams: str) -> Receipt:
    return Receipt(run, {}, refused=dict.fromkeys(streams, RefusedStream(run, 0)), page=page, pages=pages)


def test_a_refusal_ends_with_the_pages_that_no_longer_name_it_in_any_order_and_over_a_restart(tmp_path: Path) -> None:
    with closing(open_spool(tmp_path / "s")) as spool:
        for page in (refusal(1, 0, 2, "alpha", "beta"), refusal(1, 1, 2, "gamma")):
            spool.settle(page).result()
        spool.settle(refusal(2, 2, 3, "gamma")).result()
        # A page that comes twice, as after a reconnection, is not two of them.
        spool.settle(refusal(2, 2, 3, "gamma")).result()
        spool.settle(refusal(2, 0, 3, "beta")).result()
        assert list(spool.refused()) == ["alpha", "beta", "gamma"]
    with closing(open_spool(tmp_path / "s")) as spool:
        spool.settle(refusal(2, 1, 3)).result()
        assert spool.refused() == {"beta": RefusedStream(2, 0), "gamma": RefusedStream(2, 0)}
        # Pages of two runs are not the pages of one.
        spool.settle(refusal(3, 0, 2)).result()
        spool.settle(refusal(4, 1, 2, "gamma")).result()
        assert list(spool.refused()) == ["beta", "gamma"]
        spool.settle(refusal(4, 0, 2)).result()
        assert list(spool.refused()) == ["gamma"]


def test_pages_that_name_a_stream_twice_or_come_after_a_whole_receipt_count_their_own_run(tmp_path: Path) -> None:
    with closing(open_spool(tmp_path / "s")) as spool:
        for page in (refusal(1, 0, 2, "alpha"), refusal(2, 0, 1, "alpha"), refusal(1, 1, 2, "alpha")):
            spool.settle(page).result()
        assert list(spool.refused()) == ["alpha"]
        for page in (refusal(5, 0, 2, "alpha", ""), refusal(5, 1, 2, "alpha")):
            spool.settle(page).result()
        assert list(spool.refused()) == ["", "alpha"]


def test_a_spool_of_before_refusals_is_read_and_opened(tmp_path: Path) -> None:
    with closing(open_spool(tmp_path / "s")) as spool:
        put(spool, 1)
    with closing(sqlite3.connect(tmp_path / "s" / database.FILE_NAME)) as db:
        db.execute("DROP TABLE refused")
        db.commit()
        assert database.refused(db) == {}
    with closing(open_spool(tmp_path / "s")) as spool:
        assert (spool.refused(), held(spool)) == ({}, [0])


SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=6).map(
    lambda found: Ranges.of((low, low + size) for low, size in found)
)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    receipts=st.lists(st.tuples(SPANS, st.integers(0, 45)), min_size=1, max_size=5),
    dropped=st.sets(st.integers(1, 8), max_size=3),
)
def test_only_what_is_listed_leaves_and_the_books_balance(
    sizes: list[int], receipts: list[tuple[Ranges, int]], dropped: set[int]
) -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(database.TABLES)
    next_seq = changes.insert(db, Append(ALPHA, tuple(NewEnvelope(size, b"x", "1") for size in sizes)), 7, 0, 1)
    changes.drop(db, sorted(dropped), "evicted")
    spans = dict(enumerate(zip([sum(sizes[:n]) for n in range(len(sizes))], sizes, strict=True), 1))
    left = {id_: (low, low + size) for id_, (low, size) in spans.items() if id_ not in dropped}
    for ranges, seq in receipts:
        changes.settle(db, Receipt(1, {str(ALPHA): {"7": list(ranges.spans)}}, floors={str(ALPHA): Floor("7", seq)}), OPEN)
        left = {id_: span for id_, span in left.items() if not ranges.covers(*span)}
        assert {id_ for (id_,) in db.execute("SELECT id FROM envelope")} == left.keys()
        (books,) = database.books(db)
        assert books.is_balanced
        assert books.spooled == sum(high - low for low, high in left.values())
        if not database.epochs(db, OPEN):
            assert not left
            assert ranges.union([(0, min(seq, next_seq))]).covers(0, next_seq)
            break
    db.close()
