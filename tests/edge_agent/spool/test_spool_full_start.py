"""A start on a disk without a byte left: the reserve file is deleted for it, and where that is too little nothing is lost."""

import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SpoolError
from edge_agent.spool import database, space_budget
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.receipts import Receipt

ALPHA = StreamName("alpha")
MIB = 1024 * 1024


def open_spool(folder: Path) -> Spool:
    return Spool(folder, max_bytes=64 * MIB, linger_ms=0, clock=SystemClock())


def live(folder: Path, count: int, size_bytes: int) -> int:
    spool = open_spool(folder)
    for n in range(count):
        spool.append(Append(ALPHA, (NewEnvelope(1, n.to_bytes(2) * (size_bytes // 2), "1.0.0"),))).result()
    spool.close()
    return spool.epoch


def fill_disk(folder: Path) -> None:
    with (folder / "other").open("wb", buffering=0) as other, suppress(OSError):
        while True:
            other.write(bytes(4_096))


def damage(folder: Path) -> None:
    """An index page is rotten: every row can be read, but the database is not sound."""
    path = folder / database.FILE_NAME
    db = sqlite3.connect(path)
    (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'envelope_by_span'").fetchone()
    db.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4_096)
        file.write(b"\xff")
    (folder / "spool.suspect").touch()


@pytest.mark.parametrize("is_damaged", [False, True], ids=["sound", "damaged"])
def test_a_start_on_a_full_disk_takes_what_was_held_back(small_disk: Path, is_damaged: bool) -> None:
    folder = small_disk / "s"
    live(folder, 20, 10_000)
    if is_damaged:
        damage(folder)
    fill_disk(small_disk)
    spool = open_spool(folder)
    try:
        assert (spool.opened.moved_aside is not None) == is_damaged
        assert sum(books.spooled for books in spool.books()) == 20
        assert not (folder / space_budget.FILE_NAME).exists()
        (small_disk / "other").unlink()
        spool.append(Append(ALPHA, (NewEnvelope(1, b"more", "1.0.0"),))).result(timeout=60)
        assert (folder / space_budget.FILE_NAME).stat().st_size == space_budget.RESERVE_FILE_BYTES, "and holds it back again"
    finally:
        spool.close()


def test_where_even_that_is_too_little_nothing_is_lost_and_a_later_start_has_it_all(small_disk: Path) -> None:
    folder = small_disk / "s"
    epoch = live(folder, 60, 50_000)
    damage(folder)
    fill_disk(small_disk)
    for _ in range(3):
        with pytest.raises(SpoolError, match="cannot be opened"):
            open_spool(folder)
    (small_disk / "other").unlink()
    spool = open_spool(folder)
    try:
        assert spool.opened.lost_samples == 0
        assert sum(books.spooled for books in spool.books()) == 60
        spool.settle(Receipt(1, {ALPHA: {str(epoch): [(0, 60)]}})).result()
        assert spool.books()[0].settled == 60
    finally:
        spool.close()


def test_a_spool_that_broke_closes_without_a_word_on_a_disk_that_refuses_the_mark_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path / "s")
    spool._writer.failure = SpoolError("broken")
    touch = Path.touch

    def refuse(path: Path, *arguments: object) -> None:
        if path.name == "spool.suspect":
            raise OSError(28, "No space left on device")
        touch(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "touch", refuse)
    spool.close()
    open_spool(tmp_path / "s").close()
