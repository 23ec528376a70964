"""The spool's room: a hard quota over all it keeps, a floor of free disk, and streams that wait instead of being given up."""

import os
import random
import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SpoolError, SpoolFullError
from edge_agent.spool import payload_files
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.envelope import Span
from schemas.ids import StreamName
from schemas.policy import MAX_PRIORITY
from schemas.receipts import Receipt
from tests.fakes.spool_rows import rows_of

MIB = 1024 * 1024
ALPHA, BETA = StreamName("alpha"), StreamName("beta")


def open_spool(folder: Path, max_bytes: int = 8 * MIB, min_free_bytes: int = 0) -> Spool:
    return Spool(folder, max_bytes=max_bytes, linger_ms=0, clock=SystemClock(), min_free_bytes=min_free_bytes)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def envelope(size: int) -> NewEnvelope:
    return NewEnvelope(1, os.urandom(size), "1.0.0")


def drain(spool: Spool) -> list[tuple[StreamName, int, bytes]]:
    found = []
    while batch := spool.next_unsent(MIB):
        found += [(e.stream, e.span.first_seq, e.body) for e in batch]
    return found


@pytest.mark.parametrize("sizes", [(30_000, 700_000, 700_000, 700_000), (60_000,) * 30], ids=["bodies", "rows"])
def test_a_heavy_append_to_a_full_spool_takes_no_more_disk_than_the_quota(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    spool = open_spool(tmp_path / "s")
    for _ in range(6):
        for small in range(40):
            spool.append(Append(ALPHA, (envelope(200 + small),))).result()
        spool.append(Append(ALPHA, tuple(map(envelope, sizes)))).result()
        assert on_disk(tmp_path / "s") <= 8 * MIB
    books = spool.books()[0]
    spool.close()
    assert books.is_balanced
    assert books.dropped["evicted"] > 0


@pytest.mark.slow
def test_no_mixture_of_rows_bodies_and_large_payloads_takes_more_disk_than_the_quota(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    chance = random.Random(3)
    most = 0
    for n in range(400):
        try:
            large = spool.put_object(chance.randbytes(700_000)) if n % 9 == 0 else None
        except SpoolFullError:
            continue
        size = chance.choice((500, 20_000, 80_000, 300_000))
        spool.append(Append(ALPHA, (NewEnvelope(1, chance.randbytes(size), "1", large=large),))).result()
        most = max(most, on_disk(tmp_path / "s"))
        if n % 60 == 59:
            spool.settle(Receipt(1, {ALPHA: {str(spool.epoch): [(0, n // 2)]}})).result()
    books = spool.books()[0]
    spool.close()
    assert books.is_balanced
    assert books.dropped["evicted"] > 0
    assert most <= 8 * MIB


def test_a_body_above_64_kb_lies_in_a_file_and_goes_with_its_file(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", 64 * MIB)
    sent = [os.urandom(size) for size in (63 * 1024, 64 * 1024, 300_000, 900_000, 100)]
    for body in sent:
        spool.append(Append(ALPHA, (NewEnvelope(1, body, "1"),))).result()
    files = list((tmp_path / "s" / payload_files.FOLDER_NAME).iterdir())
    assert sum(path.stat().st_size for path in files) == 64 * 1024 + 300_000 + 900_000
    spool.close()
    spool = open_spool(tmp_path / "s", 64 * MIB)
    assert [body for _, _, body in drain(spool)] == sent
    epoch = spool.epochs()[0].epoch
    spool.settle(Receipt(1, {ALPHA: {str(epoch): [(0, 5)]}})).result()
    assert list((tmp_path / "s" / payload_files.FOLDER_NAME).iterdir()) == []
    assert spool.books()[0].settled == 5
    spool.close()


def test_a_rotten_or_lost_body_file_costs_its_own_samples_alone(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    sent = [os.urandom(140_000) for _ in range(4)]  # a file each
    for body in sent:
        spool.append(Append(ALPHA, (NewEnvelope(1, body, "1"),))).result()
    spool.close()
    files = sorted((tmp_path / "s" / payload_files.FOLDER_NAME).iterdir(), key=lambda path: int(path.name))
    content = bytearray(files[0].read_bytes())
    content[5_000] ^= 4
    files[0].write_bytes(content)
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-1])
    spool = open_spool(tmp_path / "s")
    assert [body for _, _, body in drain(spool)] == sent[3:]
    spool.settle(Receipt(0, {})).result()
    assert spool.books()[0].dropped == {"corrupt": 3}
    assert spool.books()[0].is_balanced
    spool.close()


def test_below_the_floor_of_free_disk_nothing_more_is_stored_but_counted(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", 64 * MIB, min_free_bytes=2**50)
    for _ in range(5):
        spool.append(Append(ALPHA, (envelope(1_000),))).result()
    with pytest.raises(SpoolFullError):
        spool.put_object(b"x" * 1_000)
    books = spool.books()[0]
    assert (books.captured, books.dropped, books.is_balanced) == (5, {"evicted": 5}, True)
    spool.close()


def test_a_payload_larger_than_the_quota_is_refused_before_it_is_written(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    with pytest.raises(SpoolFullError, match="larger than the spool"):
        spool.put_object(b"x" * (8 * MIB))
    assert on_disk(tmp_path / "s") < 2 * MIB
    spool.close()


def test_a_large_payload_makes_room_for_itself_by_priority(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    for priority in (10, 200) * 12:
        spool.append(Append(ALPHA, (envelope(130_000),), priority=priority)).result()
    spool.put_object(b"x" * 1_500_000, priority=100)
    with pytest.raises(SpoolFullError):
        spool.put_object(b"y" * 1_500_000, priority=100)
    assert spool.books()[0].is_balanced
    kept = Counter(priority for (priority,) in rows_of(spool, "SELECT priority FROM envelope"))
    assert kept[200] == 12
    assert kept[10] < 12
    spool.close()


def test_a_stream_that_blocks_waits_for_room_and_others_go_on(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    precious: list[Future[Span]] = []

    def capture() -> None:
        precious.extend(spool.append(Append(ALPHA, (envelope(200_000),), waits_for_room=True)) for _ in range(20))

    source = threading.Thread(target=capture)
    source.start()
    source.join(2)  # it waits before it has handed all in, or all is handed in and the last waits
    for _ in range(200):
        spool.append(Append(BETA, (envelope(20_000),), priority=1_000_000)).result()
    books = {entry.stream: entry for entry in spool.books()}
    assert 0 < books[ALPHA].spooled < 20
    assert books[ALPHA].dropped == {}
    assert books[BETA].dropped["evicted"] > 0
    spool.settle(Receipt(1, {ALPHA: {str(spool.epoch): [(0, books[ALPHA].spooled)]}})).result()
    source.join(30)
    assert [future.result(timeout=30).first_seq for future in precious] == list(range(20))
    assert all(entry.is_balanced for entry in spool.books())
    spool.close()


@pytest.mark.parametrize("size", [300, 60_000, 200_000])
def test_samples_never_given_up_make_room_for_themselves_whatever_others_are_worth(tmp_path: Path, size: int) -> None:
    spool = open_spool(tmp_path / "s")
    for _ in range(60):
        spool.append(Append(BETA, (envelope(30_000), envelope(100_000)), priority=MAX_PRIORITY)).result()
    waiting = [spool.append(Append(ALPHA, (envelope(size),), priority=10, waits_for_room=True)) for _ in range(10)]
    assert [future.result(timeout=30).first_seq for future in waiting] == list(range(10))
    spool.append(Append(BETA, (envelope(700_000),) * 4, priority=MAX_PRIORITY)).result()
    books = {entry.stream: entry for entry in spool.books()}
    spool.close()
    assert books[ALPHA].spooled == 10
    assert all(entry.is_balanced for entry in books.values())
    assert on_disk(tmp_path / "s") <= 8 * MIB


def test_samples_that_wait_for_room_when_the_spool_closes_are_refused_and_not_captured(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    appends = [Append(ALPHA, (envelope(200_000),), source="s", position=b"%d" % n, waits_for_room=True) for n in range(30)]
    futures: list[Any] = []

    def capture() -> None:
        try:
            futures.extend(spool.append(append) for append in appends)
        except SpoolError:
            return

    source = threading.Thread(target=capture)
    source.start()
    source.join(2)
    spool.close()
    source.join()
    stored = [future for future in futures if future.exception() is None]
    assert 0 < len(stored) < 30
    assert all(isinstance(future.exception(), SpoolFullError) for future in futures[len(stored) :])
    spool = open_spool(tmp_path / "s")
    assert spool.position("s") == b"%d" % (len(stored) - 1)
    assert spool.books()[0].captured == len(stored)
    spool.close()


def test_a_disk_that_is_really_full_drains_and_takes_up_again(small_disk: Path) -> None:
    """The quota is larger than the disk, and another program fills what is left."""
    spool = open_spool(small_disk / "s", 64 * MIB)
    for _ in range(20):
        spool.append(Append(ALPHA, (envelope(100_000),))).result()
    with (small_disk / "other").open("wb") as other:
        try:
            while True:
                other.write(bytes(64 * 1024))
                other.flush()
        except OSError:
            pass
    futures = [spool.append(Append(ALPHA, (envelope(20_000),))) for _ in range(40)]
    books = spool.books()[0]
    assert books.is_balanced
    spool.settle(Receipt(1, {ALPHA: {str(spool.epoch): [(0, 20)]}})).result(timeout=30)
    for future in futures:
        future.result(timeout=60)
    assert spool.failure is None
    books = spool.books()[0]
    assert books.is_balanced
    assert books.captured == 60
    (small_disk / "other").unlink()
    seq = spool.append(Append(ALPHA, (envelope(100_000),))).result(timeout=30).first_seq
    assert seq == 60
    assert 60 in [seq for _, seq, _ in drain(spool)]
    spool.close()


def test_the_free_space_floor_keeps_a_real_disk_usable_for_others(small_disk: Path) -> None:
    spool = open_spool(small_disk / "s", 64 * MIB, min_free_bytes=3 * MIB)
    for _ in range(100):
        spool.append(Append(ALPHA, (envelope(200_000),))).result()
        spool.append(Append(ALPHA, (envelope(5_000),))).result()
    disk = os.statvfs(small_disk)
    # The write-ahead log of the row in hand and one body are written before they are counted.
    assert disk.f_bavail * disk.f_frsize > 2 * MIB
    assert spool.books()[0].is_balanced
    assert spool.books()[0].dropped["evicted"] > 0
    spool.close()


def test_a_parked_large_payload_that_is_replayed_goes_before_its_envelope_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    large = spool.put_object(os.urandom(100_000))
    spool.append(Append(ALPHA, (NewEnvelope(1, b"row", "1", large=large),))).result()
    spool.object_refused(large.digest, "refused 5 times")
    assert spool.waiting_objects() == []
    spool.unpark_all(but_for="never")
    assert spool.next_unsent(MIB) == [], "its payload is not there yet"
    assert [waiting.ref for waiting in spool.waiting_objects()] == [large]
    spool.object_settled(large.digest)
    assert [envelope.body for envelope in spool.next_unsent(MIB)] == [b"row"]
    spool.close()
