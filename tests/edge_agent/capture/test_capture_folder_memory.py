"""A folder whose files are kept: however many there are, none is captured twice and none is left out, across restarts."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.sources.registry import GuardedSource, build_source
from edge_agent.spool import changes, database
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.contract import builtin_contract
from schemas.ids import StreamName

FRAMES = builtin_contract("camera_frame")
STREAM = StreamName("camera_frame")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", max_bytes=1 << 28, linger_ms=0, clock=SystemClock())
    yield made
    made.close()


def watch(folder: Path, position: bytes | None) -> GuardedSource:
    options = {"path": str(folder), "pattern": "*.jpg", "done": "keep", "settle_ms": 0, "poll_ms": 0}
    return build_source("directory", options, FRAMES, SystemClock(), position)


def take(spool: Spool, folder: Path, most: int = 10_000) -> list[str]:
    """An agent's life: what a source gives, up to so many batches, stored with its position as the pump does."""
    source = watch(folder, spool.position("d"))
    found: list[str] = []
    for _ in range(most):
        batch = source.read(200)
        if batch is None:
            break
        spool.append(Append(STREAM, (NewEnvelope(len(batch), b"x", "1.0.0"),), source="d", position=batch.position)).result()
        found += map(str, batch.columns["file_name"])
        source.stored(batch)
    source.close()
    return found


def fill(folder: Path, names: range) -> None:
    folder.mkdir(exist_ok=True)
    for n in names:
        (folder / f"{n:05}.jpg").write_bytes(b"%d" % n)


@pytest.mark.parametrize("many", [1_200, pytest.param(5_000, marks=pytest.mark.slow)])
def test_thousands_of_files_are_captured_once_whatever_happens_to_them_while_the_agent_is_down(
    tmp_path: Path, spool: Spool, many: int
) -> None:
    folder = tmp_path / "in"
    fill(folder, range(many))
    found = take(spool, folder, most=many // 500)
    for number in range(3):
        for path in random.Random(number).sample(sorted(folder.glob("*.jpg")), many // 3):
            path.chmod(0o600 + number)
        for path in random.Random(number).sample(sorted(folder.glob("0*.jpg")), many // 12):
            if path.stem.isdecimal() and path.name in found:
                path.rename(path.with_name(f"{path.stem}r{number}.jpg"))
        fill(folder, range(many + 100 * number, many + 100 * (number + 1)))
        late = folder / f"late{number}.jpg"
        late.write_bytes(b"late %d" % number)
        os.utime(late, ns=(number, number))  # its time lies before all others
        found += take(spool, folder, most=many // 500 if number < 2 else 10_000)
    captured = sorted(name.partition("r")[0].removesuffix(".jpg") for name in found if not name.startswith("late"))
    assert captured == [f"{n:05}" for n in range(many + 300)]
    assert sorted(name for name in found if name.startswith("late")) == ["late0.jpg", "late1.jpg", "late2.jpg"]
    assert take(spool, folder) == []


def test_a_rewritten_file_is_new_and_one_that_was_removed_is_forgotten(tmp_path: Path, spool: Spool) -> None:
    folder = tmp_path / "in"
    fill(folder, range(50))
    assert len(take(spool, folder)) == 50
    for n in range(40):
        (folder / f"{n:05}.jpg").unlink()
    (folder / "00045.jpg").write_bytes(b"other")
    assert take(spool, folder) == ["00045.jpg"]
    kept = msgspec.json.decode(spool.position("d") or b"")["given"]
    assert len(kept) == 10


def test_the_position_of_an_older_agent_is_taken_over(tmp_path: Path, spool: Spool) -> None:
    folder = tmp_path / "in"
    fill(folder, range(5))
    newest = max(path.stat().st_ctime_ns for path in folder.iterdir())
    old = msgspec.json.encode({"mark": (newest, "99999.jpg"), "given": []})
    source = watch(folder, old)
    assert source.read(100) is None
    fill(folder, range(5, 6))
    while (batch := source.read(100)) is None:
        pass  # a look is not due at once
    assert batch.columns["file_name"] == ["00005.jpg"]
    assert len(msgspec.json.decode(batch.position or b"")["given"]) == 6


def test_one_more_file_rewrites_a_piece_of_the_position_and_not_all_of_it(tmp_path: Path) -> None:
    db = database.connect_writer(tmp_path / "db", 1 << 28, 4_096)
    value = b'{"given":[' + b",".join(b'"%016d"' % n for n in range(5_000))
    changes.keep_position(db, "d", value + b"]}")
    before = db.total_changes
    changes.keep_position(db, "d", value + b',"one more"]}')
    assert db.total_changes - before <= 3
    assert changes.load_position(db, "d") == value + b',"one more"]}'
    changes.keep_position(db, "d", b"short")
    assert changes.load_position(db, "d") == b"short"
    assert changes.load_position(db, "other") is None
    db.close()
