"""Rotten bits anywhere, clocks that jump by years, and backlogs whose size must not be felt."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SpoolError
from edge_agent.spool import database, opening, payload_files
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.receipts import Receipt

MIB = 1024 * 1024
ALPHA = StreamName("alpha")
TEN_YEARS_MS = 10 * 365 * 86_400_000


def open_spool(folder: Path, clock: object = None) -> Spool:
    return Spool(folder, max_bytes=64 * MIB, linger_ms=0, clock=clock or SystemClock())  # type: ignore[arg-type]


def put(spool: Spool, body: bytes) -> tuple[int, int]:
    span = spool.append(Append(ALPHA, (NewEnvelope(1, body, "1.0.0"),))).result()
    return span.epoch, span.first_seq


def drain(spool: Spool) -> list[tuple[int, int, bytes]]:
    found = []
    while batch := spool.next_unsent(MIB):
        found += [(envelope.span.epoch, envelope.span.first_seq, envelope.body) for envelope in batch]
    return found


@pytest.fixture(scope="module")
def worn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, tuple[int, int]]]:
    """What a kill leaves: rows in the database, more of them in its log, bodies in files."""
    folder = tmp_path_factory.mktemp("worn")
    spool = open_spool(folder / "live")
    chance = random.Random(1)
    stored = {}
    for n in range(120):
        body = chance.randbytes((700, 9_000, 70_000)[n % 3])
        stored[body] = put(spool, body)
        if n == 60:
            spool.opened.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(folder / "live", folder / "killed")
    spool.close()
    return folder / "killed", stored


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("where", ["spool.db", "spool.db-wal", payload_files.FOLDER_NAME])
def test_what_rots_is_never_sent_as_good_and_never_stops_the_start(
    tmp_path: Path, worn: tuple[Path, dict[bytes, tuple[int, int]]], where: str, seed: int
) -> None:
    killed, stored = worn
    shutil.copytree(killed, tmp_path / "s")
    chance = random.Random(seed)
    place = tmp_path / "s" / where
    for path in [place] if place.is_file() else sorted(place.iterdir()):
        content = bytearray(path.read_bytes())
        for _ in range(1 + seed):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    epochs = {epoch for epoch, _ in stored.values()}
    for _ in range(3):
        spool = open_spool(tmp_path / "s")
        try:
            found = drain(spool)
            epoch, _ = put(spool, b"new")
            spool.settle(Receipt(0, {})).result()
            break
        except (SpoolError, sqlite3.DatabaseError):
            # Damage met in service: the process ends, its next start repairs.
            spool.close()
            (tmp_path / "s" / opening.SUSPECT_NAME).touch()
    assert all(stored.get(body, (epoch, seq)) == (epoch, seq) for epoch, seq, body in found)
    assert all(body in stored or body == b"new" for _, _, body in found), "something rotten was sent as good"
    assert len({(epoch, seq) for epoch, seq, _ in found}) == len(found)
    assert epoch not in epochs
    books = spool.books()[0]
    assert books.is_balanced
    if where == payload_files.FOLDER_NAME:
        assert books.captured == 121
        assert books.dropped["corrupt"] == 120 - len(found)
    spool.close()


class JumpingClock(SystemClock):
    """A wall clock without a battery; monotonic time goes on."""

    def __init__(self) -> None:
        self.off_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.off_ms


def test_clocks_that_jump_ten_years_either_way_lose_nothing_and_repeat_no_seq(tmp_path: Path) -> None:
    clock = JumpingClock()
    stored = []
    for n, jump in enumerate((0, 1, -1, 0, -1, 1, 1, -1)):
        clock.off_ms = jump * TEN_YEARS_MS
        spool = open_spool(tmp_path / "s", clock)
        for step in (-1, 1, 0):
            clock.off_ms += step * TEN_YEARS_MS
            body = b"%d %d" % (n, step)
            stored.append((*put(spool, body), body))
        if n == 5:
            settled = stored[:9]
            spool.settle(Receipt(1, {ALPHA: {str(epoch): [(0, 3)] for epoch, _, _ in settled}})).result()
        spool.close()
    epochs = [epoch for epoch, _, _ in stored]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) == 8
    spool = open_spool(tmp_path / "s", clock)
    assert drain(spool) == stored[9:]
    assert spool.books()[0].settled == 9
    assert spool.books()[0].is_balanced
    spool.close()


def steps_to_first_send(folder: Path, backlog: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Thousands of steps of SQLite's machine from opening a backlog to its first envelope."""
    spool = open_spool(folder)
    for start in range(0, backlog, 500):
        count = min(500, backlog - start)
        spool.append(Append(ALPHA, tuple(NewEnvelope(1, b"x" * 40, "1") for _ in range(count))))
    spool.close()
    steps = 0

    def tick() -> int:
        nonlocal steps
        steps += 1
        return 0

    def counted(connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def opened(*arguments: object) -> sqlite3.Connection:
            connection = connect(*arguments)
            connection.set_progress_handler(tick, 1_000)
            return connection

        return opened

    with monkeypatch.context() as patched:
        patched.setattr(database, "connect_writer", counted(database.connect_writer))
        patched.setattr(database, "connect_reader", counted(database.connect_reader))
        spool = open_spool(folder)
        assert len(spool.next_unsent(1)) == 1
    spool.close()
    return steps


def test_a_backlog_a_hundred_times_as_long_takes_no_more_steps_to_its_first_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = steps_to_first_send(tmp_path / "few", 200, monkeypatch)
    many = steps_to_first_send(tmp_path / "many", 20_000, monkeypatch)
    assert many <= few + 5


_DRAIN = """
import resource, sys
from pathlib import Path
from catchment.runtime.clock import SystemClock
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.receipts import Receipt
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 34, linger_ms=0, clock=SystemClock())
first = spool.next_unsent(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spool.release([first[0].id])
seen = 0
while batch := spool.next_unsent(1 << 20):
    seen += len(batch)
    spans = [(e.span.first_seq, e.span.end_seq) for e in batch]
    spool.settle(Receipt(1, {"alpha": {str(batch[0].span.epoch): spans}})).result()
print(seen, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, spool.books()[0].spooled)
spool.close()
"""


@pytest.mark.slow
def test_draining_a_backlog_takes_no_memory_for_its_size(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", max_bytes=1 << 34, linger_ms=0, clock=SystemClock())
    pictures = [os.urandom(200_000) for _ in range(4)]
    for n in range(2_000):  # 400 MB
        spool.append(Append(ALPHA, (NewEnvelope(1, pictures[n % 4], "1"),)))
    spool.close()
    done = subprocess.run([sys.executable, "-c", _DRAIN, str(tmp_path / "s")], capture_output=True, text=True, check=True)
    seen, grown_mb, left = map(int, done.stdout.split()[-3:])
    assert (seen, left) == (2_000, 0)
    assert grown_mb <= 10
