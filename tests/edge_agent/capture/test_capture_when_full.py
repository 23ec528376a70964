"""A source that waits for room can be told, while it waits, to wait no longer, or to stop; nothing is skipped or stored twice."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.source_supervisor import SourceSupervisor
from edge_agent.capture.transforms import build_transforms
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.errors import SourceEndedError, SpoolFullError
from edge_agent.sources.api import SampleBatch
from edge_agent.sources.registry import GuardedSource
from edge_agent.spool.changes import Removed
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from edge_agent.spool.transactions import Transactions
from schemas.contract import builtin_contract
from schemas.ids import StreamName
from schemas.reported import StreamBooks

FRAMES = builtin_contract("camera_frame")
FRAME_BYTES = 200_000
OPENING, IN_ALL = 80, 90


class Pictures:
    """Frames one by one; with or without a position to come back to."""

    def __init__(self, position: bytes | None, *, tells_position: bool, pauses_s: float = 0.5) -> None:
        self.at = int(position or b"0")
        self.tells_position = tells_position

    def read(self, max_samples: int) -> SampleBatch | None:
        if self.at >= IN_ALL:
            raise SourceEndedError("done")
        self.at += 1
        position = str(self.at).encode() if self.tells_position else None
        return SampleBatch([self.at], {}, [self.at.to_bytes(2) * (FRAME_BYTES // 2)], position)

    def stored(self, batch: SampleBatch) -> None:
        pass

    def close(self) -> None:
        pass


class Camera:
    """A spool of 8 MiB, and a line-up of one source that gives more than fits."""

    def __init__(self, folder: Path, *, tells_position: bool, pauses_s: float = 0.5) -> None:
        self.spool = Spool(folder, max_bytes=1 << 23, linger_ms=0, clock=SystemClock(), disk_full_pause_s=pauses_s)
        self.tells_position = tells_position
        self.supervisor = SourceSupervisor(self._pump, self._spawn, self.spool.on_source_stopping, max(pauses_s, 15.0))

    def run(self, when_full: Literal["evict", "block"]) -> None:
        self.supervisor.apply([SourceConfig(kind="pictures", stream="camera_frame", when_full=when_full)])

    def waits(self) -> bool:
        return self.spool.held_count > 0

    def ended(self) -> bool:
        return self.supervisor.running == 0

    @property
    def books(self) -> StreamBooks:
        return self.spool.books()[0]

    def _pump(self, config: SourceConfig) -> SourcePump:
        build = lambda position: GuardedSource("pictures", lambda: Pictures(position, tells_position=self.tells_position))  # noqa: E731
        encoder = Encoder(FRAMES, BatchLimits(1 << 18, 1 << 20), self.spool.put_object)
        transform = build_transforms(FRAMES, None, b"", ClockWatch(SystemClock()), None)
        return SourcePump(config, build, encoder, self.spool, transform, SystemClock())

    @staticmethod
    def _spawn(name: str, target: Callable[[threading.Event], None], stop: threading.Event) -> threading.Thread:
        thread = threading.Thread(target=target, args=(stop,), name=name, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def camera(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Camera]:
    made = Camera(tmp_path / "spool", tells_position=getattr(request, "param", True))
    yield made
    made.supervisor.stop()
    made.spool.close()


@pytest.fixture
def patient_camera(tmp_path: Path) -> Iterator[Camera]:
    """The waits are an hour long here: only being woken ends them."""
    made = Camera(tmp_path / "spool", tells_position=True, pauses_s=3_600.0)
    yield made
    made.supervisor.stop()
    made.spool.close()


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_source_that_waits_for_room_evicts_as_soon_as_its_table_says_so(camera: Camera) -> None:
    camera.run("block")
    eventually(camera.waits)
    kept = camera.books.spooled
    assert camera.books.dropped == {}
    camera.run("evict")
    eventually(camera.ended)
    books = camera.books
    assert (books.captured, books.is_balanced) == (IN_ALL, True)
    # What was stored under "block" is kept: that was its promise.
    assert books.spooled >= kept
    assert books.dropped == {"evicted": IN_ALL - books.spooled}


def test_a_source_that_evicts_waits_as_soon_as_its_table_says_so(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    read = Pictures.read

    def slowly(self: Pictures, max_samples: int) -> SampleBatch | None:
        return None if self.at >= OPENING and not gate.is_set() else read(self, max_samples)

    monkeypatch.setattr(Pictures, "read", slowly)
    camera.run("evict")
    eventually(lambda: camera.books.captured == OPENING if camera.spool.books() else False)
    camera.run("block")
    gate.set()
    eventually(camera.ended)
    books = camera.books
    assert (books.captured, books.is_balanced) == (IN_ALL, True)
    left = {envelope.span.first_seq for envelope in camera.spool.next_unsent(1 << 30)}
    assert left >= set(range(OPENING, IN_ALL))


def test_a_source_that_waits_for_room_stops_at_once_and_comes_back_to_what_was_not_stored(camera: Camera) -> None:
    camera.run("block")
    eventually(camera.waits)
    pump = camera.supervisor.pumps[0]
    camera.supervisor.apply([])
    assert camera.ended()
    assert not camera.waits()
    books = camera.books
    assert camera.spool.position("pictures:camera_frame:{}") == str(books.captured).encode()
    assert pump.left_out() == {}  # it can be read again: nothing of it is lost


@pytest.mark.parametrize("camera", [False], indirect=True)
def test_what_cannot_be_read_again_and_found_no_room_is_counted(camera: Camera) -> None:
    camera.run("block")
    eventually(camera.waits)
    pump = camera.supervisor.pumps[0]
    camera.supervisor.apply([])
    assert pump.left_out()["row: the spool was full when the source stopped"] > 0


@pytest.mark.parametrize("full", ["the quota", "the disk"])
def test_a_source_that_waits_for_room_is_woken_when_it_is_to_stop(
    patient_camera: Camera, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    if full == "the disk":
        refused = threading.Event()
        commit = Transactions.commit

        def refuse(self: Transactions, appends: Any, changes: Any, in_flight: Any) -> Any:
            if len(appends) > 0:
                refused.set()
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return commit(self, appends, changes, in_flight)

        monkeypatch.setattr(Transactions, "commit", refuse)
        monkeypatch.setattr(Transactions, "evict", lambda *_: Removed())
        patient_camera.run("block")
        eventually(refused.is_set)
    else:
        patient_camera.run("block")
        eventually(patient_camera.waits)
    patient_camera.supervisor.stop()
    assert patient_camera.ended()
    assert all(books.is_balanced for books in patient_camera.spool.books())


def test_a_spool_that_closes_on_a_full_disk_refuses_what_waits(patient_camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL

    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Transactions, "commit", refuse)
    future = patient_camera.spool.append(Append(StreamName("camera_frame"), (NewEnvelope(1, b"x", "1.0.0"),)))
    eventually(lambda: not patient_camera.spool._writer._waiting.appends)
    patient_camera.spool.close()
    assert isinstance(future.exception(), SpoolFullError)
