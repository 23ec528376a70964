"""The pump: nothing a source does ends the agent, holds up what comes behind, or is stored twice."""

import threading
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder, RetryingEncoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.transforms import build_transforms
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.errors import SourceEndedError, SpoolFullError
from edge_agent.sections import ReportConfig
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.registry import GuardedSource
from edge_agent.spool.payload_files import SpoolObjects
from edge_agent.spool.records import NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.contract import Contract, builtin_contract

TELEMETRY = builtin_contract("vehicle_telemetry")
FRAMES = builtin_contract("camera_frame")


class Scripted:
    """Yields samples from where it is told to go on, failing where told."""

    def __init__(self, position: bytes | None, values: list[Any], fail_at: set[int], contract: Contract) -> None:
        self.at = int(position or b"0")
        self.values = values
        self.fail_at = fail_at
        self.has_payload = contract.payload is not None
        self.closed = False

    def read(self, max_samples: int) -> SampleBatch | None:
        if self.at >= len(self.values):
            raise SourceEndedError("done")
        if self.at in self.fail_at:
            self.fail_at.discard(self.at)
            raise RuntimeError("a foreign library fell over")
        rows = self.values[self.at : self.at + 3]
        start, self.at = self.at, self.at + len(rows)
        times = list(range(start, self.at))
        if self.has_payload:
            return SampleBatch(times, {}, rows, str(self.at).encode())
        return SampleBatch(times, {"speed_mps": rows}, None, str(self.at).encode())

    def stored(self, batch: SampleBatch) -> None:
        pass

    def close(self) -> None:
        raise OSError("cannot be closed either")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", max_bytes=1 << 26, linger_ms=5, clock=SystemClock())
    yield made
    made.close()


def pump(
    spool: Spool, values: list[Any], fail_at: AbstractSet[int] = frozenset(), contract: Contract = TELEMETRY, report: Any = None
) -> SourcePump:
    failing = set(fail_at)
    config = SourceConfig(kind="scripted", stream=contract.name)

    def build(position: bytes | None) -> GuardedSource:
        return GuardedSource("scripted", lambda: Scripted(position, values, failing, contract))

    encoder = Encoder(contract, BatchLimits(1 << 18, 64), spool.put_object)
    transform = build_transforms(contract, report, b"", ClockWatch(SystemClock()), None)
    return SourcePump(config, build, encoder, spool, transform, SystemClock())


def captured(spool: Spool) -> int:
    return sum(book.captured for book in spool.books())


def test_a_source_that_fails_again_and_again_goes_on_where_it_was(spool: Spool) -> None:
    made = pump(spool, [float(n) for n in range(12)], {0, 6})
    made.run(threading.Event())
    assert captured(spool) == 12
    assert spool.position("scripted:vehicle_telemetry:{}") == b"12"


def test_rows_that_cannot_be_encoded_are_refused_alone_and_counted(spool: Spool) -> None:
    values: list[Any] = [float(n) for n in range(12)]
    values[4] = "no number"
    values[9] = object()
    made = pump(spool, values)
    made.run(threading.Event())
    assert captured(spool) == 10
    assert sum(made.left_out().values()) == 2
    assert all(reason.startswith("row: cannot be encoded: column speed_mps") for reason in made.left_out())
    assert spool.position("scripted:vehicle_telemetry:{}") == b"12"


def test_a_batch_of_which_no_row_can_be_encoded_is_passed_over(spool: Spool) -> None:
    made = pump(spool, ["no"] * 9)
    made.run(threading.Event())
    assert captured(spool) == 0
    assert sum(made.left_out().values()) == 9
    assert spool.position("scripted:vehicle_telemetry:{}") == b"9"


def test_what_says_nothing_new_is_not_stored_and_not_read_again(spool: Spool) -> None:
    made = pump(spool, [1.0] * 12, report=ReportConfig(deadband={"speed_mps": 0.5}))
    made.run(threading.Event())
    assert captured(spool) == 1
    assert made.left_out() == {"report: unchanged": 11}
    assert spool.position("scripted:vehicle_telemetry:{}") == b"12"
    again = pump(spool, [1.0] * 12, report=ReportConfig(deadband={"speed_mps": 0.5}))
    again.run(threading.Event())
    assert captured(spool) == 1


class Failing(Encoder):
    def __init__(self, error: Exception, times: int) -> None:
        super().__init__(TELEMETRY, BatchLimits(1 << 18, 64), lambda body: pytest.fail(f"an object: {body!r}"))
        self.error, self.times, self.calls = error, times, 0

    def encode(self, batch: SampleBatch, created_us: int) -> tuple[NewEnvelope, ...]:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return tuple(NewEnvelope(1, b"", "1.0.0") for _ in range(len(batch)))


def test_a_full_disk_is_waited_for_and_nothing_is_given_up() -> None:
    encoder, rejects = Failing(SpoolFullError("full"), 8), Rejects("test")
    patient = RetryingEncoder(encoder, rejects, first_wait_s=0.0001)
    assert len(patient.encode(SampleBatch([1, 2], {}), 0, threading.Event())) == 2
    assert rejects.counts == {}


def test_a_payload_file_that_is_gone_for_good_is_refused_after_bounded_tries(spool: Spool, tmp_path: Path) -> None:
    encoder = Encoder(FRAMES, BatchLimits(1 << 18, 64), spool.put_object)
    rejects = Rejects("test")
    there = tmp_path / "there.jpg"
    there.write_bytes(b"x" * 100)
    batch = SampleBatch([1, 2, 3], {}, [b"a", tmp_path / "gone.jpg", there])
    envelopes = RetryingEncoder(encoder, rejects, first_wait_s=0.0001).encode(batch, 0, threading.Event())
    assert sum(envelope.count for envelope in envelopes) == 2
    assert sum(rejects.counts.values()) == 1


def test_a_payload_file_that_cannot_be_read_is_not_taken_for_a_full_disk(spool: Spool) -> None:
    """/proc/self/mem opens and then answers EIO, as a rotten sector does."""
    with pytest.raises(OSError, match="Input/output error") as error:
        SpoolObjects(spool.folder / "objects").put(Path("/proc/self/mem"))
    assert not isinstance(error.value, SpoolFullError)


def test_what_a_stop_takes_from_a_source_that_cannot_go_back_is_counted() -> None:
    stop = threading.Event()
    stop.set()
    rejects = Rejects("test")
    with pytest.raises(SpoolFullError):
        RetryingEncoder(Failing(SpoolFullError("full"), 99), rejects).encode(SampleBatch([1, 2], {}), 0, stop)
    assert rejects.counts == {"row: the disk was full when the agent stopped": 2}


def test_a_source_is_closed_even_if_its_last_samples_cannot_be_stored(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(Scripted, "close", lambda _: closed.append(True))
    made = pump(spool, [1.0, 2.0])
    made._encoder = RetryingEncoder(Failing(SpoolFullError("full"), 99), Rejects("test"))
    stop = threading.Event()

    def stopped(_seconds: float) -> bool:
        stop.set()
        return True

    monkeypatch.setattr(stop, "wait", stopped)
    made.run(stop)
    assert closed == [True]
