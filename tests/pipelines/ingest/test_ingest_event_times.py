"""Event times that a device could not know: corrected by the shift it sends, or given by the person who replays them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.commands.quarantine import quarantine_app
from pipelines.ingest.decode import NEVER_SET, ClockNote, DecodeError, Rows, correct_times
from pipelines.ingest.quarantine import Request, write_request
from pipelines.lake.lake import lake_at
from pipelines.lake.quarantined import Where, heads
from schemas.contract import builtin_contract
from tests.plant.core import AsIpc, Core, MakeContract, MakeEnvelope

STREAM = "streams/vehicle_telemetry"
SHIFT_US = 1_780_000_000_000_000
US = pa.timestamp("us", "UTC")
TELEMETRY = builtin_contract("vehicle_telemetry")


def unset(as_ipc: AsIpc, count: int = 3, **columns: Any) -> bytes:
    """A body as a device makes it whose clock counts from 1970."""
    times = pa.array([40_000_000 + n for n in range(count)]).cast(US)
    return as_ipc(
        pa.record_batch({"event_time": times, "speed_mps": [1.0] * count, "clock_quality": ["none"] * count, **columns})
    )


def with_clock(row: Any, **words: str) -> Any:
    row.properties.extend(words.items())
    return row


def times_us(core: Core) -> list[int]:
    return sorted(round(row["event_time"].timestamp() * 1e6) for row in core.rows(STREAM))


def test_a_shift_corrects_and_marks_the_rows_and_commits_them(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    row = with_clock(envelope(0, 3, body=unset(as_ipc)), clockboot="b-1", clockshift=str(SHIFT_US))
    core.landing.seal([row])
    books = core.run().ledger.books["car-1", "vehicle_telemetry"]
    assert (books.committed, books.quarantined) == (3, 0)
    assert times_us(core) == [SHIFT_US + 40_000_000 + n for n in range(3)]
    assert {row["clock_quality"] for row in core.rows(STREAM)} == {"corrected"}


def test_an_unset_clock_without_a_shift_is_quarantined_with_what_to_do(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    core.landing.seal([with_clock(envelope(0, 3, body=unset(as_ipc)), clockboot="b-1"), envelope(3, 2)])
    books = core.run().ledger.books["car-1", "vehicle_telemetry"]
    assert (books.committed, books.quarantined) == (2, 3)
    assert heads(lake_at(core.root), Where()).column("reason").to_pylist() == [NEVER_SET]


def test_other_envelopes_of_the_segment_keep_their_times(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    core.landing.seal(
        [
            envelope(0, 2),
            with_clock(envelope(2, 1, body=unset(as_ipc, 1)), clockboot="b", clockshift=str(SHIFT_US)),
            envelope(3, 2),
        ]
    )
    core.run()
    assert sum(row["clock_quality"] == "corrected" for row in core.rows(STREAM)) == 1
    assert len(times_us(core)) == 5


@pytest.mark.parametrize("shift", ["", "x", "1.5", "9" * 19, "9223372036854775807"])
def test_a_shift_that_is_no_number_or_leads_nowhere_is_refused(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, shift: str
) -> None:
    core.landing.seal([with_clock(envelope(0, 3, body=unset(as_ipc)), clockboot="b", clockshift=shift)])
    books = core.run().ledger.books["car-1", "vehicle_telemetry"]
    assert (books.committed, books.quarantined) == (0, 3)


@pytest.mark.parametrize(
    ("event_time", "first_us"),
    [("received", None), ("1780000000000000", 1_780_000_000_000_000)],
)
def test_a_replay_gives_the_times_that_nobody_knew(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, event_time: str, first_us: int | None
) -> None:
    row = with_clock(envelope(0, 3, body=unset(as_ipc)), clockboot="b-1")
    received_us = row.received_us
    core.landing.seal([row])
    core.run()
    ids = tuple(heads(lake_at(core.root), Where()).column("id").to_pylist())
    write_request(lake_at(core.root), Request("replay", ids, 1, event_time=event_time))
    core.run()
    first = received_us - 2 if first_us is None else first_us
    assert times_us(core) == [first, first + 1, first + 2]
    assert {row["clock_quality"] for row in core.rows(STREAM)} == {"corrected"}


def test_a_replay_dates_rows_that_the_contract_refused_one_by_one(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    """A device that knows nothing of clock properties, at 1970: its rows are refused by their time alone."""
    times = pa.array([5_000_000, SHIFT_US, 5_000_007]).cast(US)
    core.landing.seal([envelope(0, 3, body=as_ipc(pa.record_batch({"event_time": times, "speed_mps": [1.0, 2.0, 3.0]})))])
    core.run()
    assert len(times_us(core)) == 1
    ids = tuple(heads(lake_at(core.root), Where()).column("id").to_pylist())
    write_request(lake_at(core.root), Request("replay", ids, 1, event_time=str(SHIFT_US + 1_000)))
    core.run()
    assert times_us(core) == [SHIFT_US, SHIFT_US + 1_000, SHIFT_US + 1_007]


def test_the_command_takes_a_time_and_refuses_what_is_none(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, tmp_path: Path
) -> None:
    core.landing.seal([with_clock(envelope(0, 2, body=unset(as_ipc, 2)), clockboot="b-1")])
    core.run()
    config = tmp_path / "core.toml"
    config.write_text(f'lake = "{core.root}"\n')
    wrong = CliRunner().invoke(quarantine_app, ["replay", "--all", "--event-time", "yesterday", "-c", str(config)])
    assert wrong.exit_code != 0
    assert "2026-05-28T20:26:40Z" in str(wrong.exception)
    done = CliRunner().invoke(
        quarantine_app, ["replay", "--all", "--event-time", "2026-05-28T20:26:40Z", "-c", str(config), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert times_us(core) == [1_780_000_000_000_000, 1_780_000_000_000_001]


@given(
    times=st.lists(st.one_of(st.none(), st.integers(-(2**62), 2**62)), min_size=1, max_size=20),
    shift=st.integers(-(10**15), 10**15),
)
def test_a_shift_moves_every_time_by_the_same_and_keeps_nulls(times: list[int | None], shift: int) -> None:
    rows = Rows(pa.record_batch({"event_time": pa.array(times, pa.int64()).cast(US)}))
    try:
        moved = correct_times(rows, ClockNote("b", str(shift)), TELEMETRY, 0)
    except DecodeError:
        assert abs(shift) > 200 * 366 * 86_400_000_000
        return
    assert moved.batch.column("event_time").cast(pa.int64()).to_pylist() == [None if t is None else t + shift for t in times]


def test_a_contract_without_the_column_or_the_word_is_not_marked_with_it(contract_with: MakeContract) -> None:
    from schemas.contract import Column, ColumnType

    rows = Rows(pa.record_batch({"event_time": pa.array([1]).cast(US)}))
    plain = correct_times(rows, ClockNote("b", "5"), contract_with(), 0)
    assert plain.batch.schema.names == ["event_time"]
    old = contract_with(columns=(Column("clock_quality", ColumnType.STRING, allowed=("device", "unsynchronised")),))
    assert correct_times(rows, ClockNote("b", "5"), old, 0).batch.column("clock_quality").to_pylist() == ["unsynchronised"]
