"""Capture never waits for a model: what has no answer in time is stored without one, in order, and counted."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.predictions import PredictionWindow
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.transforms import Step, Transforms, build_transforms
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.models.prediction_queue import PredictionQueue
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.registry import GuardedSource
from edge_agent.spool.spool import Spool
from schemas.contract import builtin_contract
from tests.edge_agent.capture.test_capture_pump import FRAMES, Scripted, captured

Build: TypeAlias = Callable[..., PredictionQueue]


class Models:
    """Answers each picture with its length, once it may."""

    def rows_at_once(self, batch: SampleBatch) -> int:
        return 1

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked = 0
        self.counts: Counter[str] = Counter()

    def columns(self) -> tuple[str, ...]:
        return ("model_version",)

    def wanted_rows(self, batch: SampleBatch) -> Sequence[int]:
        return [row for row, payload in enumerate(batch.payloads or ()) if payload is not None]

    def predict(self, batch: SampleBatch, rows: Sequence[int]) -> Sequence[Mapping[str, Scalar]]:
        self.asked += 1
        self.may_answer.wait(30)
        payloads = batch.payloads or ()
        return [{"model_version": len(payload)} for row in rows if isinstance(payload := payloads[row], bytes)]

    def count(self, outcome: str, times: int) -> None:
        self.counts[outcome] += times


@pytest.fixture
def models() -> Iterator[Models]:
    made = Models()
    yield made
    made.may_answer.set()


@pytest.fixture
def queue_of(models: Models) -> Iterator[Callable[..., PredictionQueue]]:
    made: list[PredictionQueue] = []

    def build(
        max_waiting: int = 4, max_held_bytes: int = 100, *, waits: bool = False, last_wait_s: float = 30.0
    ) -> PredictionQueue:
        made.append(
            PredictionQueue(
                "test", models, max_waiting=max_waiting, max_held_bytes=max_held_bytes, waits=waits, last_wait_s=last_wait_s
            )
        )
        return made[-1]

    yield build
    models.may_answer.set()
    for queue in made:
        queue.close()


def one(number: int, size: int = 1) -> SampleBatch:
    return SampleBatch([number], {}, [bytes(size)])


def versions(stored: Sequence[SampleBatch]) -> list[Scalar]:
    return [batch.columns["model_version"][0] for batch in stored]


def test_samples_beyond_the_queue_get_no_prediction_and_all_come_out_in_order(models: Models, queue_of: Build) -> None:
    window, stop = PredictionWindow(queue_of(max_waiting=4)), threading.Event()
    for number in range(10):
        window.add(one(number), (), stop)
    assert list(window.ready()) == []
    models.may_answer.set()
    stored = [batch for batch, _ in window.drain(30)]
    assert [batch.event_time_us[0] for batch in stored] == list(range(10))
    assert versions(stored) == [1] * 4 + [None] * 6
    assert models.counts == {"skipped": 6}


def test_a_model_that_hangs_holds_no_more_than_the_bytes_it_may(models: Models, queue_of: Build) -> None:
    window, stop = PredictionWindow(queue_of(max_waiting=100, max_held_bytes=100)), threading.Event()
    stored = []
    for number in range(20):
        window.add(one(number, 30), (), stop)
        stored += [batch for batch, _ in window.ready()]
        assert len(window) <= 4  # the one the model looks at, and 90 bytes behind it
    assert [batch.event_time_us[0] for batch in stored] == list(range(16))
    assert versions(stored) == [None] * 16
    assert models.counts == {"late": 16}
    assert models.asked <= 1


def test_a_picture_larger_than_what_may_wait_is_still_looked_at(models: Models, queue_of: Build) -> None:
    models.may_answer.set()
    window = PredictionWindow(queue_of(max_held_bytes=100))
    window.add(one(0, 5_000), (), threading.Event())
    assert versions([batch for batch, _ in window.drain(30)]) == [5_000]


def test_where_capture_waits_every_sample_gets_its_prediction(models: Models, queue_of: Build) -> None:
    models.may_answer.set()
    window, stop = PredictionWindow(queue_of(max_waiting=2, max_held_bytes=1, waits=True)), threading.Event()
    stored = []
    for number in range(50):
        window.add(SampleBatch([number] * 3, {}, [b"x", None, b"xy"]), (), stop)
        stored += [batch for batch, _ in window.ready()]
    stored += [batch for batch, _ in window.drain(30)]
    assert [list(batch.columns["model_version"]) for batch in stored] == [[1, None, 2]] * 50
    assert not models.counts


def pump(
    spool: Spool, queue: PredictionQueue, values: list[bytes], fail_at: set[int], later: tuple[Step, ...] = ()
) -> SourcePump:
    def build(position: bytes | None) -> GuardedSource:
        return GuardedSource("scripted", lambda: Scripted(position, values, fail_at, FRAMES))

    encoder = Encoder(FRAMES, BatchLimits(1 << 18, 64), spool.put_object)
    transform = Transforms((), Rejects("camera_frame"), queue, later)
    config = SourceConfig(kind="scripted", stream="camera_frame", max_samples=3)
    return SourcePump(config, build, encoder, spool, transform, SystemClock())


def test_a_source_whose_model_hangs_ends_with_every_sample_stored_once(models: Models, queue_of: Build, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 26, linger_ms=5, clock=SystemClock())
    made = pump(spool, queue_of(max_held_bytes=20, last_wait_s=0.01), [b"x" * 9] * 30, fail_at={9, 21})
    made.run(threading.Event())
    assert captured(spool) == 30
    assert spool.position("scripted:camera_frame:{}") == b"30"
    assert models.counts["late"] + models.counts["skipped"] == 30
    spool.close()


def test_a_batch_that_cannot_be_stored_while_others_wait_is_read_again_and_stored_once(
    models: Models, queue_of: Build, tmp_path: Path
) -> None:
    models.may_answer.set()
    spool = Spool(tmp_path / "spool", max_bytes=1 << 26, linger_ms=5, clock=SystemClock())
    failures = [2]

    def failing(batch: SampleBatch) -> SampleBatch:
        if batch.event_time_us[0] >= 9 and failures[0]:
            failures[0] -= 1
            raise OSError("the disk says no")
        return batch

    made = pump(spool, queue_of(max_waiting=100, max_held_bytes=1 << 20), [b"x"] * 30, set(), (failing,))
    made.run(threading.Event())
    assert captured(spool) == 30
    assert spool.position("scripted:camera_frame:{}") == b"30"
    spool.close()


def test_a_stream_that_no_model_looks_at_has_no_queue() -> None:
    transform = build_transforms(builtin_contract("camera_frame"), None, b"", ClockWatch(SystemClock()), None)
    assert transform.predictor is None
