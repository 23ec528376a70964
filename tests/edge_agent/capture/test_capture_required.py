"""A source that fills none of a required column fails, with the reason, and gives the core no stream of nulls."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.transforms import build_transforms
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.errors import SourceEndedError
from edge_agent.sources.api import SampleBatch
from edge_agent.sources.registry import build_source
from edge_agent.spool.spool import Spool
from schemas.contract import Column, ColumnType, Contract

CONTRACT = Contract("drive", "1.0.0", (
    Column("speed", ColumnType.FLOAT64, required=True), Column("note", ColumnType.STRING),
    Column("clock_quality", ColumnType.STRING, required=True),
))  # fmt: skip


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", max_bytes=1 << 24, linger_ms=1, clock=SystemClock())
    yield made
    made.close()


def pumped(spool: Spool, source: object, kind: str = "exec", **options: Any) -> SourcePump:
    """The pump after its source ended, or failed for the first time."""
    clock, stop = SystemClock(), threading.Event()
    config = SourceConfig(kind=kind, stream="drive", options=dict(options))

    def build(position: bytes | None) -> object:
        return source or build_source(kind, options, CONTRACT, clock, position)

    transform = build_transforms(CONTRACT, None, b"", ClockWatch(clock), None)
    pump = SourcePump(config, build, Encoder(CONTRACT, BatchLimits(1 << 16, 1 << 20), spool.put_object), spool, transform, clock)  # type: ignore[arg-type]
    thread = threading.Thread(target=pump.run, args=(stop,))
    thread.start()
    while thread.is_alive() and not pump.failing:
        thread.join(0.01)
    stop.set()
    thread.join()
    return pump


def stored(spool: Spool) -> int:
    return sum(books.captured for books in spool.books())


class Given:
    """A source that gives the batches and ends."""

    def __init__(self, *batches: SampleBatch) -> None:
        self._batches = list(batches)

    def read(self, max_samples: int) -> SampleBatch:
        if not self._batches:
            raise SourceEndedError("done")
        return self._batches.pop(0)

    def stored(self, batch: SampleBatch) -> None:
        pass

    def close(self) -> None:
        pass


def notes(count: int, **more: list[Any]) -> SampleBatch:
    return SampleBatch([1] * count, {"note": ["x"] * count, **more})


@pytest.mark.parametrize(
    "body", ["time,Speed,note\n" + "1714521600,1,x\n" * 3, '{"time": 1714521600, "v": 1, "note": "x"}\n' * 3]
)
def test_a_table_whose_names_fill_no_required_column_is_not_read_at_all(tmp_path: Path, spool: Spool, body: str) -> None:
    path = tmp_path / "table"
    path.write_text(body)
    pump = pumped(spool, None, "replay", path=str(path))
    assert "required column speed of contract drive 1.0.0 would never be filled" in pump.failing
    assert stored(spool) == 0


def test_a_rename_or_a_source_name_heals_it(tmp_path: Path, spool: Spool) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,Speed,note\n" + "1714521600,1,x\n" * 3)
    assert pumped(spool, None, "replay", path=str(path), rename={"Speed": "speed"}).failing == ""
    assert stored(spool) == 3


def test_samples_without_a_required_column_are_refused_once_it_is_clear_that_none_fills_it(spool: Spool) -> None:
    pump = pumped(spool, Given(*(notes(60) for _ in range(5))))
    assert "required column speed" in pump.failing
    reason = "row: required column speed is never filled; the core would refuse it"
    assert pump.left_out()[reason] + stored(spool) == 300
    assert stored(spool) < 180  # until a hundred were seen nobody can know; batches of sixty may be judged together


def test_one_sample_that_fills_the_column_lets_all_others_pass(spool: Spool) -> None:
    mixed = notes(60, speed=[None] * 59 + [1.0])
    pump = pumped(spool, Given(notes(60), mixed, *(notes(60) for _ in range(3))))
    assert (pump.failing, stored(spool)) == ("", 300)


def test_a_source_that_can_read_again_waits_for_its_configuration(tmp_path: Path, spool: Spool) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,speed,note\n" + "1714521600,fast,x\n" * 300)
    pump = pumped(spool, None, "replay", path=str(path))
    assert "required column speed" in pump.failing
    assert stored(spool) == 0
    assert spool.position(SourceConfig(kind="replay", stream="drive", options={"path": str(path)}).name) is None


def test_a_short_source_is_judged_at_its_end(spool: Spool) -> None:
    assert "required column speed" in pumped(spool, Given(notes(3))).failing
    assert stored(spool) == 3
