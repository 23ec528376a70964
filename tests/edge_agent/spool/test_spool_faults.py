"""The spool under faults: kill, full, rot, lost files."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SpoolError
from edge_agent.spool import database
from edge_agent.spool.opening import OBJECTS_FOLDER
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.ranges import Ranges
from schemas.receipts import Receipt

MIB = 1024 * 1024
ALPHA = StreamName("alpha")


def open_spool(folder: Path, max_bytes: int = 64 * MIB) -> Spool:
    return Spool(folder, max_bytes=max_bytes, linger_ms=0, clock=SystemClock())


def put(spool: Spool, body: bytes, count: int = 1, priority: int = 100) -> int:
    return spool.append(Append(ALPHA, (NewEnvelope(count, body, "1.0.0"),), priority=priority)).result().first_seq


def drain(spool: Spool) -> list[tuple[int, int, bytes]]:
    found = []
    while batch := spool.next_unsent(MIB):
        found += [(e.span.epoch, e.span.first_seq, e.body) for e in batch]
    return found


_WRITER = """
import sys
from pathlib import Path
from catchment.runtime.clock import SystemClock
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30, linger_ms=1, clock=SystemClock())
n = 0
while True:
    futures = [spool.append(Append(StreamName("alpha"), (NewEnvelope(1, b"%d" % (n + k) * 20, "1.0.0"),))) for k in range(20)]
    for future in futures:
        span = future.result()
        sys.stdout.write(f"{span.epoch} {span.first_seq}\\n")
    sys.stdout.flush()
    n += 20
"""


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_and_no_seq_is_used_twice_over_sigkills(tmp_path: Path) -> None:
    acknowledged: list[tuple[int, int]] = []
    chance = random.Random(7)
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        lines = (first + writer.stdout.read()).splitlines(keepends=True)
        writer.wait()
        writer.stdout.close()
        acknowledged += [
            (int(line.split()[0]), int(line.split()[1])) for line in lines if line.endswith(b"\n") and len(line.split()) == 2
        ]
    assert len(set(acknowledged)) == len(acknowledged)
    spool = open_spool(tmp_path / "s")
    stored = [(epoch, seq) for epoch, seq, _ in drain(spool)]
    assert len(set(stored)) == len(stored)
    assert set(acknowledged) <= set(stored)
    assert len({epoch for epoch, _ in acknowledged}) == 8
    assert spool.books()[0].is_balanced
    spool.close()


def test_a_full_spool_gives_up_the_lowest_priority_then_the_oldest_and_counts_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", 8 * MIB)
    body = os.urandom(100_000)
    precious = [put(spool, body, priority=200) for _ in range(5)]
    for n in range(80):
        put(spool, body, priority=50 if n % 2 else 100)
    books = spool.books()[0]
    assert books.is_balanced
    assert books.captured == 85
    assert books.dropped["evicted"] > 20
    kept = [seq for _, seq, _ in drain(spool)]
    assert set(precious) <= set(kept)
    ranges = Ranges.of((gone.low, gone.high) for epoch in spool.epochs() for gone in epoch.dropped)
    assert ranges.count == books.dropped["evicted"]
    assert sorted(kept) == [seq for seq in range(85) if seq not in ranges]
    assert spool.used_bytes() <= 8 * MIB
    spool.close()


def test_what_is_worth_less_than_all_that_is_stored_is_given_up_itself(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", 8 * MIB)
    for _ in range(60):
        put(spool, os.urandom(100_000), priority=200)
    before = len(spool.epochs()[0].dropped)
    seq = put(spool, os.urandom(900_000), priority=1)
    gone = spool.epochs()[0].dropped
    assert any(low.low <= seq < low.high for low in gone)
    assert len(gone) >= before
    assert spool.books()[0].is_balanced
    spool.close()


def test_a_full_spool_still_drains_on_receipts(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", 8 * MIB)
    for _ in range(60):
        put(spool, os.urandom(100_000))
    spool.settle(Receipt(1, {ALPHA: {str(spool.epoch): [(0, 60)]}})).result()
    books = spool.books()[0]
    assert books.spooled == 0
    assert books.is_balanced
    assert spool.epochs()[0].dropped == ()
    spool.close()


def test_what_comes_after_the_spool_ran_empty_is_sent_too(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    for n in range(5):
        put(spool, b"%d" % n)
        assert [body for _, _, body in drain(spool)] == [b"%d" % n]
        spool.settle(Receipt(n, {ALPHA: {str(spool.epoch): [(0, n + 1)]}})).result()
    spool.close()


def test_an_epoch_settled_in_full_is_forgotten_when_it_is_closed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    put(spool, b"x", count=10)
    old = spool.epoch
    spool.close()
    spool = open_spool(tmp_path / "s")
    put(spool, b"y", count=3)
    assert [(e.epoch, e.closed) for e in spool.epochs()] == [(old, True), (spool.epoch, False)]
    spool.settle(Receipt(1, {ALPHA: {str(old): [(0, 10)], str(spool.epoch): [(0, 3)]}})).result()
    assert [(e.epoch, e.closed) for e in spool.epochs()] == [(spool.epoch, False)]
    assert spool.books()[0].settled == 13
    spool.close()


def test_a_rotten_body_is_given_up_as_corrupt_with_its_range(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    for n in range(3):
        put(spool, bytes([n]) * 50_000, count=4)
    spool.close()
    path = tmp_path / "s" / database.FILE_NAME
    content = bytearray(path.read_bytes())
    at = content.index(b"\x01" * 1000) + 500
    content[at] ^= 0x10
    path.write_bytes(content)
    spool = open_spool(tmp_path / "s")
    assert [body[0] for _, _, body in drain(spool)] == [0, 2]
    spool.settle(Receipt(0, {})).result()
    books = spool.books()[0]
    assert (books.dropped, books.spooled, books.is_balanced) == ({"corrupt": 4}, 8, True)
    assert [(gone.low, gone.high, gone.reason) for gone in spool.epochs()[0].dropped] == [(4, 8, "corrupt")]
    spool.close()


@pytest.mark.parametrize("seed", range(12))
def test_random_bit_flips_never_stop_the_start_and_never_pass_a_changed_body(tmp_path: Path, seed: int) -> None:
    spool = open_spool(tmp_path / "s")
    bodies = {bytes([n]) * (2_000 + n): n for n in range(60)}
    for body in bodies:
        put(spool, body, count=2)
    spool.close()
    path = tmp_path / "s" / database.FILE_NAME
    content = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for _ in range(1 + seed):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    for _ in range(2):
        spool = open_spool(tmp_path / "s")
        try:
            assert all(body in bodies for _, _, body in drain(spool))
            put(spool, b"new", count=1)
        except (SpoolError, sqlite3.DatabaseError):
            # Damage found in service: the process ends, and its next start repairs it.
            spool.close()
            (tmp_path / "s" / "spool.suspect").touch()
            spool = open_spool(tmp_path / "s")
            put(spool, b"new", count=1)
        assert all(books.is_balanced for books in spool.books())
        spool.close()
        bodies[b"new"] = 0


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 500])
def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / database.FILE_NAME).write_bytes(damage)
    spool = open_spool(folder)
    assert put(spool, b"x") == 0
    spool.close()
    assert len(list(folder.glob("*.corrupt-*"))) == (1 if damage else 0)


def test_salvage_keeps_what_is_sound_and_counts_the_rest(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    for n in range(200):
        put(spool, bytes([n]) * 3_000, count=3)
    spool.close()
    path = tmp_path / "s" / database.FILE_NAME
    content = bytearray(path.read_bytes())
    content[100 : 100 + 3] = b"\xff\xff\xff"  # the root page's header
    middle = len(content) // 2 // database.SMALL_PAGE_BYTES * database.SMALL_PAGE_BYTES
    content[middle : middle + 4 * database.SMALL_PAGE_BYTES] = os.urandom(4 * database.SMALL_PAGE_BYTES)
    path.write_bytes(content)
    (tmp_path / "s" / "spool.suspect").touch()
    spool = open_spool(tmp_path / "s")
    assert spool.opened.moved_aside is not None
    put(spool, b"after")
    assert all(books.is_balanced for books in spool.books())
    spool.close()


def test_a_large_payload_is_a_file_that_goes_with_its_last_row(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    ref = spool.put_object(b"z" * 2_000_000)
    span = spool.append(Append(ALPHA, (NewEnvelope(1, b"row", "1.0.0", large=ref),))).result()
    assert spool.next_unsent(MIB) == []
    assert spool.waiting_objects()[0].ref == ref
    spool.object_settled(ref.digest)
    assert [e.body for e in spool.next_unsent(MIB)] == [b"row"]
    assert (tmp_path / "s" / OBJECTS_FOLDER / ref.digest).exists()
    spool.settle(Receipt(1, {ALPHA: {str(span.epoch): [(0, 1)]}})).result()
    assert not (tmp_path / "s" / OBJECTS_FOLDER / ref.digest).exists()
    spool.close()


def test_a_lost_payload_file_is_counted_and_a_left_over_one_swept_at_start(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s")
    ref = spool.put_object(b"z" * 2_000_000)
    spool.append(Append(ALPHA, (NewEnvelope(1, b"row", "1.0.0", large=ref),))).result()
    left_over = spool.put_object(b"never named")
    spool.close()
    (tmp_path / "s" / OBJECTS_FOLDER / ref.digest).unlink()
    spool = open_spool(tmp_path / "s")
    assert spool.books()[0].dropped == {"corrupt": 1}
    assert not (tmp_path / "s" / OBJECTS_FOLDER / left_over.digest).exists()
    spool.close()
