"""Late, reordered, repeated, of new epochs: one row each, and what is missing shows as a gap until it is filled or given up."""

import random
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bridge.rows import LandingRow
from pipelines.ingest.admit import DropReport, Head, admit
from pipelines.lake.books import EpochKey
from pipelines.lake.ledger import Ledger, gaps
from schemas.ranges import Ranges
from schemas.reported import DroppedRange, EpochReport, Reported, encode_reported
from tests.plant.core import Core, MakeEnvelope

STREAM = "streams/vehicle_telemetry"
KEY = EpochKey("car-1", "vehicle_telemetry", 7)


def report(*epochs: EpochReport) -> LandingRow:
    body = encode_reported(Reported("car-1", 1, "1.0.0", epochs=epochs))
    return LandingRow(1, "reported", "catchment/reported/car-1", body, "car-1")


def spans(loop: Any) -> list[tuple[int, int, bool]]:
    return [(gap.low, gap.high, gap.is_awaited) for gap in gaps(loop.ledger)]


def test_a_gap_is_a_hole_until_it_is_filled_late(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 10), envelope(20, 10), envelope(35, 5)])
    assert spans(core.run()) == [(10, 20, True), (30, 35, True)]
    core.landing.seal([envelope(30, 5)])
    assert spans(core.run()) == [(10, 20, True)]
    core.landing.seal([envelope(5, 20)])
    assert spans(core.run()) == []
    assert sorted(row["seq"] for row in core.rows(STREAM)) == list(range(40))


def test_rows_of_a_file_lie_by_device_and_seq_however_they_arrived(core: Core, envelope: MakeEnvelope) -> None:
    sent = [("car-2", 10), ("car-1", 20), ("car-2", 0), ("car-1", 0), ("car-1", 10)]
    core.landing.seal([envelope(first, 10, device=device) for device, first in sent])
    core.run()
    (file,) = (core.root / STREAM).glob("*.parquet")
    rows = pq.ParquetFile(file).read(columns=["device", "seq"])
    found = list(zip(rows["device"].to_pylist(), rows["seq"].to_pylist(), strict=True))
    assert found == [("car-1", seq) for seq in range(30)] + [("car-2", seq) for seq in range(20)]


def test_a_hole_closes_when_the_device_says_that_it_dropped_the_samples(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 10), envelope(20, 10)])
    core.run()
    core.landing.seal([report(EpochReport("vehicle_telemetry", 7, 30, False, dropped=(DroppedRange(10, 15, "full"),)))])
    loop = core.run()
    assert spans(loop) == [(15, 20, True)]
    assert loop.ledger.books["car-1", "vehicle_telemetry"].dropped == 5


def test_a_hole_in_an_epoch_its_device_forgot_is_awaited_no_more(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(3, 7), envelope(0, 5, epoch=9)])
    core.run()
    core.landing.seal([report(EpochReport("vehicle_telemetry", 9, 5, False))])
    assert spans(core.run()) == [(0, 3, False)]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_and_any_repetition_over_several_runs_gives_each_sample_once(
    core: Core, envelope: MakeEnvelope, seed: int
) -> None:
    rng = random.Random(seed)
    sent = [(device, epoch, first) for device in ("car-1", "car-2") for epoch in (7, 9) for first in range(0, 60, 6)]
    copies = sent + rng.sample(sent, 15)
    rng.shuffle(copies)
    for start in range(0, len(copies), 14):
        piece = copies[start : start + 14]
        core.landing.seal([envelope(low, 6 + rng.choice((0, 0, 3)), device=device, epoch=epoch) for device, epoch, low in piece])
        core.run()
    loop = core.run()
    found = sorted((row["device"], row["epoch"], row["seq"]) for row in core.rows(STREAM) if row["seq"] < 60)
    assert found == [(device, epoch, seq) for device in ("car-1", "car-2") for epoch in (7, 9) for seq in range(60)]
    keys = [(row["device"], row["epoch"], row["seq"]) for row in core.rows(STREAM)]
    assert len(keys) == len(set(keys))
    assert spans(loop) == []
    assert not loop.ledger.unbalanced()


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 15)),
        max_size=25,
    )
)
def test_what_is_settled_and_what_is_a_hole_make_the_whole(items: list[tuple[bool, int, int]]) -> None:
    arrivals = [Head(KEY, low, size) if sent else DropReport(KEY, ((low, low + size),)) for sent, low, size in items]
    done = admit(arrivals, {})
    seen: set[int] = set()
    for (_sent, low, size), fresh_spans in zip(items, done.fresh_by_place, strict=True):
        new = {seq for first, end in fresh_spans for seq in range(first, end)}
        assert new == set(range(low, low + size)) - seen
        seen |= new
    ledger = Ledger().after(1, done.touched, {}, {})
    missing = {seq for gap in gaps(ledger) for seq in range(gap.low, gap.high)}
    assert missing == (set(range(max(seen) + 1)) - seen if seen else set())
    assert Ranges.of((seq, seq + 1) for seq in seen) == done.touched.get(KEY, Ranges())
