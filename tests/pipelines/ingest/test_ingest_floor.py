"""A device's ranges are bounded: beyond the bound its oldest gaps are closed, and what comes below is kept and never doubled."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bridge.rows import LandingRow
from pipelines.ingest import run
from pipelines.ingest.admit import Bounds
from pipelines.ingest.quarantine import Request, write_request
from pipelines.lake.books import Counts, EpochKey, floors_of
from pipelines.lake.lake import lake_at
from pipelines.lake.ledger import Ledger, gaps
from pipelines.lake.ledger_files import read_ledger, write_ledger
from pipelines.status.health import assess
from pipelines.status.survey import survey
from schemas.ranges import Ranges
from schemas.receipts import Floor, decode_receipt
from schemas.reported import DroppedRange, EpochReport, Reported, encode_reported
from tests.plant.core import Core, MakeEnvelope

STREAM = "vehicle_telemetry"
TABLE = f"streams/{STREAM}"


def bounded(core: Core, max_ranges: int) -> Any:
    core.config = msgspec.structs.replace(core.config, run=msgspec.structs.replace(core.config.run, max_device_ranges=max_ranges))
    return core


def seqs(core: Core, epoch: int = 7) -> list[int]:
    return sorted(row["seq"] for row in core.rows(TABLE) if row["epoch"] == epoch)


def receipt_of(core: Core, device: str = "car-1") -> Any:
    return decode_receipt(core.mailbox.messages[f"catchment/down/{device}/receipts"])


def report(*epochs: EpochReport, device: str = "car-1") -> LandingRow:
    body = encode_reported(Reported(device, 0, "1", epochs=epochs))
    return LandingRow(1, "reported", f"catchment/reported/{device}", body, device)


def test_beyond_the_bound_the_oldest_gaps_are_closed_and_counted(core: Core, envelope: MakeEnvelope) -> None:
    bounded(core, 10).landing.seal([envelope(10 * n, 1) for n in range(20)])
    core.landing.seal([envelope(0, 5, device="car-2"), envelope(9, 1, device="car-2")])
    loop = core.run()
    assert seqs(core) == sorted([*range(0, 200, 10), *range(5), 9])
    receipt = receipt_of(core)
    assert receipt.settled == {STREAM: {"7": [(10 * n, 10 * n + 1) for n in range(15, 20)]}}
    assert receipt.floors == {STREAM: Floor("7", 141)}
    assert loop.ledger.books["car-1", STREAM] == Counts(received=20, committed=20, closed=141 - 15)
    assert receipt_of(core, "car-2").floors == {}
    # Only the gaps above the floor are still open.
    assert [(gap.low, gap.high) for gap in gaps(loop.ledger, "car-1")] == [
        (141, 150),
        (151, 160),
        (161, 170),
        (171, 180),
        (181, 190),
    ]
    assert core.loop().ledger == loop.ledger


def test_a_later_envelope_below_the_floor_is_kept_once_and_makes_no_second_row(core: Core, envelope: MakeEnvelope) -> None:
    bounded(core, 10).landing.seal([envelope(10 * n, 1) for n in range(20)])
    core.run()
    # A copy of a row, a sample that never came, and an envelope that reaches over the floor.
    late = [envelope(0, 1), envelope(25, 3), envelope(139, 4)]
    core.landing.seal(late)
    core.run()
    core.landing.seal(late)
    loop = core.run()
    assert seqs(core) == sorted([*range(0, 200, 10), 141, 142])
    kept = {(row["first_seq"], row["stage"], row["count"], row["body"]) for row in core.rows("quarantine")}
    assert kept == {(0, "floor", 1, late[0].payload), (25, "floor", 3, late[1].payload), (139, "floor", 2, late[2].payload)}
    assert len(core.rows("quarantine")) == 3
    books = loop.ledger.books["car-1", STREAM]
    assert (books.received, books.committed, books.quarantined, books.duplicate) == (36, 22, 6, 8)
    assert not loop.ledger.unbalanced()
    # Settled by quarantine: the device that still held them may delete them now.
    ranges = receipt_of(core).ranges(STREAM, 7)
    assert all(row.span is not None and ranges.covers(row.span.first_seq, row.span.end_seq) for row in late)


def test_what_is_below_the_floor_cannot_be_replayed_into_a_second_row(core: Core, envelope: MakeEnvelope) -> None:
    bounded(core, 10).landing.seal([envelope(10 * n, 1) for n in range(20)])
    core.run()
    core.landing.seal([envelope(0, 1)])
    core.run()
    (row,) = core.rows("quarantine")
    write_request(lake_at(core.root), Request("replay", (row["id"],), 1))
    loop = core.run()
    assert seqs(core) == list(range(0, 200, 10))
    write_request(lake_at(core.root), Request("discard", (row["id"],), 2))
    loop = core.run()
    books = loop.ledger.books["car-1", STREAM]
    assert (books.quarantined, books.discarded, books.committed) == (0, 1, 20)
    assert not loop.ledger.unbalanced()


def test_an_old_epoch_is_below_the_floor_altogether(core: Core, envelope: MakeEnvelope) -> None:
    bounded(core, 6).landing.seal([envelope(2 * n, 1, epoch=epoch) for epoch in (1, 2, 3) for n in range(4)])
    loop = core.run()
    assert receipt_of(core).floors == {STREAM: Floor("3", 1)}
    assert loop.ledger.books["car-1", STREAM].closed == 3 + 3
    core.landing.seal([envelope(1, 1, epoch=1), envelope(50, 2, epoch=2), envelope(0, 1, epoch=4)])
    loop = core.run()
    assert (seqs(core, 1), seqs(core, 2), seqs(core, 4)) == ([0, 2, 4, 6], [0, 2, 4, 6], [0])
    assert sorted(row["count"] for row in core.rows("quarantine")) == [1, 2]
    assert not loop.ledger.unbalanced()


def test_the_stream_with_the_most_ranges_pays_first(core: Core, envelope: MakeEnvelope) -> None:
    many = [envelope(2 * n, 1, stream="network_flow", body=b"x") for n in range(30)]
    bounded(core, 20).landing.seal([*many, *(envelope(2 * n, 1) for n in range(4))])
    core.run()
    receipt = receipt_of(core)
    assert set(receipt.floors) == {"network_flow"}
    assert len(receipt.settled[STREAM]["7"]) == 4
    assert len(receipt.settled["network_flow"]["7"]) == 6


def test_a_run_done_again_after_a_crash_closes_the_same_gaps(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded(core, 10).landing.seal([envelope(10 * n, 1) for n in range(20)])

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "publish_run", dies)
    with pytest.raises(KeyboardInterrupt):
        core.run()
    first = read_ledger(lake_at(core.root), 1)
    monkeypatch.undo()
    assert core.run().ledger == first


def test_a_hundred_hostile_reports_leave_a_bounded_receipt_and_the_others_theirs(core: Core, envelope: MakeEnvelope) -> None:
    bounded(core, 1_000)
    for number in range(20):
        low = number * 4_000
        gone = tuple(DroppedRange(n, n + 1, "evicted") for n in range(low, low + 4_000, 2))
        epochs = [EpochReport(STREAM, 7, 2**63 - 1, closed=False, dropped=gone)]
        epochs += [EpochReport(f"s{place}", number, 9, closed=False, dropped=(DroppedRange(3, 5, "x"),)) for place in range(100)]
        core.landing.seal([report(*epochs), envelope(number, 1, device="car-2")])
    loop = core.run()
    assert loop.ledger.of(["car-1"]).settled.num_rows <= 1_000
    assert len(core.mailbox.messages["catchment/down/car-1/receipts"]) < 64_000
    assert receipt_of(core, "car-2").settled == {STREAM: {"7": [(0, 20)]}}
    assert not loop.ledger.unbalanced()


def test_a_device_has_no_more_streams_than_it_may_and_what_is_beyond_is_kept(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "Bounds", lambda floors, streams: Bounds(floors, streams, max_streams=3))
    messages = [envelope(0, 4, stream=f"s{number}", body=b"x") for number in range(6)]
    core.landing.seal([*messages, report(EpochReport("s9", 7, 9, closed=False, dropped=(DroppedRange(0, 2, "x"),)))])
    loop = core.run()
    # What is beyond is settled, as its bytes are kept, but in no ledger: a device could make it grow without end.
    assert receipt_of(core).settled == {f"s{number}": {"7": [(0, 4)]} for number in range(6)}
    assert {key.stream for key in loop.ledger.of(["car-1"]).ranges()} == {"s0", "s1", "s2"}
    assert {key for key in loop.ledger.books if key[0] == "car-1"} == {("car-1", name) for name in ("s0", "s1", "s2", "")}
    assert sorted((row["stage"], row["stream"], row["count"]) for row in core.rows("quarantine"))[3:] == [
        ("head", "s3", 4), ("head", "s4", 4), ("head", "s5", 4),
    ]  # fmt: skip
    assert loop.ledger.books["car-1", ""] == Counts(received=12, quarantined=12)
    core.landing.seal([envelope(4, 2, stream="s0", body=b"x"), envelope(4, 2, stream="s4", body=b"x")])
    core.run()
    assert {stream: epochs["7"] for stream, epochs in receipt_of(core).settled.items()} == {
        "s0": [(0, 6)], "s1": [(0, 4)], "s2": [(0, 4)], "s4": [(4, 6)],
    }  # fmt: skip
    write_request(lake_at(core.root), Request("replay", tuple(row["id"] for row in core.rows("quarantine")), 1))
    assert not core.run().ledger.unbalanced()


@pytest.mark.parametrize(
    "epoch",
    [
        EpochReport(STREAM, 7, 2**64 - 1, closed=False, dropped=(DroppedRange(0, 2**64 - 1, "x"),)),
        EpochReport(STREAM, 2**64 - 1, 5, closed=False, dropped=(DroppedRange(0, 2, "x"),)),
    ],
    ids=["seq", "epoch"],
)
def test_a_report_with_numbers_beyond_the_wire_is_refused_alone(core: Core, envelope: MakeEnvelope, epoch: EpochReport) -> None:
    core.landing.seal([report(epoch), envelope(0, 5, device="car-2")])
    core.run()
    assert [row["stage"] for row in core.rows("quarantine")] == ["report"]
    assert seqs(core) == list(range(5))


def test_a_device_that_claims_to_have_dropped_more_than_a_count_holds_stops_no_run(core: Core, envelope: MakeEnvelope) -> None:
    for _ in range(2):
        whole = (DroppedRange(0, 2**63 - 1, "x"),)
        epochs = [EpochReport(STREAM, epoch, 2**63 - 1, closed=True, dropped=whole) for epoch in range(5)]
        core.landing.seal([report(*epochs), envelope(0, 5, device="car-2")])
        loop = core.run()
    assert loop.ledger.books["car-1", STREAM].dropped == 2**53
    assert seqs(core) == list(range(5))


def test_many_ranges_of_one_device_are_an_alarm_that_names_it(core: Core, envelope: MakeEnvelope) -> None:
    core.config = msgspec.structs.replace(core.config, alarms=msgspec.structs.replace(core.config.alarms, device_ranges=15))
    core.landing.seal([*(envelope(2 * n, 1) for n in range(20)), *(envelope(2 * n, 1, device="car-2") for n in range(10))])
    core.run()
    alarms = [alarm.text for alarm in assess(survey(lake_at(core.root), 0), core.config.alarms).found if alarm.kind == "ranges"]
    assert len(alarms) == 1
    assert alarms[0].startswith("car-1 has 20 settled ranges")


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3)), min_size=1, max_size=12).map(
    lambda found: Ranges.of((low, low + size) for low, size in found)
)
RUNS = st.lists(st.dictionaries(st.integers(1, 4), RANGES, min_size=1, max_size=3), min_size=1, max_size=6)


@given(RUNS, st.integers(2, 8))
def test_closing_never_forgets_a_settled_sample_nor_counts_a_gap_twice(runs: list[dict[int, Ranges]], most: int) -> None:
    ledger, settled = Ledger(), set[tuple[int, int]]()
    for number, claimed in enumerate(runs, 1):
        known = ledger.of(["a"])
        touched = {
            EpochKey("a", "s", epoch): known.ranges().get(EpochKey("a", "s", epoch), Ranges()).union(ranges)
            for epoch, ranges in claimed.items()
        }
        settled |= {(epoch, seq) for epoch, ranges in claimed.items() for low, high in ranges for seq in range(low, high)}
        ledger = ledger.after(number, touched, {("a", "s"): Counts()}, {}, max_ranges=most)
    rows = ledger.of(["a"])
    floor = floors_of(rows.books).get(("a", "s"), Floor("0", 0))
    listed = {(key.epoch, seq) for key, ranges in rows.ranges().items() for low, high in ranges for seq in range(low, high)}
    below = {one for one in settled if one[1] < floor.below(one[0])}
    assert listed <= settled
    assert settled - listed <= below
    assert rows.settled.num_rows <= most
    # No more is counted as closed than there is below the floor.
    highest = {epoch: max(seq for other, seq in settled if other == epoch) + 1 for epoch, _ in settled}
    assert ledger.books["a", "s"].closed <= sum(min(floor.below(epoch), high) for epoch, high in highest.items())


def test_a_ledger_with_floors_and_refusals_is_read_as_it_was_written(core: Core) -> None:
    (core.root / "runs").mkdir()
    key = EpochKey("a", "s", 2**63 - 1)
    counts = {("a", "s"): Counts(received=9, quarantined=9)}
    ranges = Ranges(tuple((3 * n, 3 * n + 1) for n in range(9)))
    ledger = Ledger().after(1, {key: ranges}, counts, {}, reasons={("a", "s"): {"x": 5, "y": 4}}, max_ranges=4)
    write_ledger(lake_at(core.root), ledger)
    assert read_ledger(lake_at(core.root), 1) == ledger
    assert floors_of(ledger.whole().books) == {("a", "s"): Floor(str(2**63 - 1), 19)}
