"""What was refused comes back once its cause is gone: each sample once, whatever dies in the middle."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.commands.quarantine import quarantine_app
from pipelines.config import CoreConfig
from pipelines.contracts.odcs import to_odcs
from pipelines.ingest.loop import load_state, only_loop
from pipelines.ingest.quarantine import Request, write_request
from pipelines.lake.books import Counts
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import books_path
from pipelines.lake.quarantined import Where, grouped, heads
from pipelines.maintenance.vacuum import Keep, Vacuum
from schemas.contract import Column, ColumnType, Contract
from tests.fakes.lake_files import orphans
from tests.faults.deaths import Deaths
from tests.plant.core import AsIpc, Core, MakeEnvelope

STREAM = "streams/room"
PARTS = 2  # the test's workers share the steps
US = pa.timestamp("us", "UTC")


def contract(folder: Path, version: str = "1.0.0", **bounds: Any) -> None:
    folder.mkdir(exist_ok=True)
    column = Column("celsius", ColumnType.FLOAT64, **bounds)
    found = Contract(name="room", version=version, columns=(column, Column("note", ColumnType.STRING)))
    (folder / f"room-{version}.odcs.yaml").write_text(to_odcs(found))


@pytest.fixture
def room(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, tmp_path: Path) -> Any:
    """A lake with rows of a room that a bound refuses, an envelope of a version nobody knows, garbage, and a JSON row."""
    contract(tmp_path / "contracts", minimum=0.0)
    core.config = CoreConfig(lake=str(core.root), contracts=str(tmp_path / "contracts"))

    def body(first: int, values: list[float]) -> bytes:
        times = pa.array([1_790_000_000_000_000 + first + at for at in range(len(values))]).cast(US)
        return as_ipc(pa.record_batch({"event_time": times, "celsius": values}))

    text = [{"event_time": "2026-01-01T00:00:00Z", "celsius": 1}, {"event_time": "2026-01-01T00:00:00Z", "celsius": "cold"}]
    core.landing.seal(
        [
            envelope(0, 5, stream="room", body=body(0, [1, -2, 3, -4, -5]), version="1.0.0"),
            envelope(5, 3, stream="room", body=body(5, [1, 2, 3]), version="2.0.0"),
            envelope(8, 2, stream="room", body=b"garbage", version="1.0.0"),
            envelope(10, 2, stream="room", body=json.dumps(text).encode(), version="1.0.0", content_type="application/json"),
        ]
    )
    core.run()
    return core


def seqs(core: Core) -> list[int]:
    return sorted(row["seq"] for row in core.rows(STREAM))


def ask(core: Core, kind: str = "replay", **where: Any) -> None:
    ids = tuple(row_id for row_id in heads(lake_at(core.root), Where(**where)).column("id").to_pylist() if row_id)
    write_request(lake_at(core.root), Request(kind, ids, 1_790_000_000_000_000))  # type: ignore[arg-type]


def test_refusals_are_listed_by_stream_stage_and_kind_of_reason(room: Core) -> None:
    found = [(group["stage"], group["samples"], group["rows"]) for group in grouped(heads(lake_at(room.root), Where()))]
    assert sorted(found) == [("contract", 1, 1), ("contract", 3, 1), ("contract", 3, 1), ("decode", 2, 1)]


def test_a_replay_after_the_contract_was_mended_commits_each_sample_once(room: Core, tmp_path: Path) -> None:
    assert seqs(room) == [0, 2, 10]
    contract(tmp_path / "contracts", minimum=-4.5)
    contract(tmp_path / "contracts", "2.0.0", minimum=-4.5)
    ask(room)
    loop = room.run()
    assert seqs(room) == [0, 1, 2, 3, 5, 6, 7, 10]
    books = loop.ledger.books["car-1", "room"]
    assert (books.received, books.committed, books.quarantined, books.duplicate) == (12, 8, 4, 0)
    left = heads(lake_at(room.root), Where())
    assert sorted(json.loads(spans)[0][0] for spans in left.column("spans").to_pylist()) == [4, 8, 11]
    assert not any((room.root / "runs" / "requests").iterdir())


def test_the_same_request_carried_out_twice_does_nothing_the_second_time(room: Core, tmp_path: Path) -> None:
    contract(tmp_path / "contracts", minimum=-9.0)
    ask(room)
    request = next((room.root / "runs" / "requests").iterdir())
    kept = request.read_bytes()
    runs = room.run().ledger.run
    request.write_bytes(kept)
    loop = room.run()
    assert loop.ledger.run == runs
    assert seqs(room) == [0, 1, 2, 3, 4, 10]


def test_rows_are_read_by_another_contract_version_if_requested(room: Core, tmp_path: Path) -> None:
    contract(tmp_path / "contracts", "3.0.0", minimum=-100.0)
    ids = tuple(heads(lake_at(room.root), Where(stage="contract")).column("id").to_pylist())
    write_request(lake_at(room.root), Request("replay", ids, 1, "3.0.0"))
    room.run()
    assert seqs(room) == [0, 1, 2, 3, 4, 5, 6, 7, 10]
    assert {row["contract_version"] for row in room.rows(STREAM)} == {"1.0.0", "3.0.0"}


def test_a_replay_tags_by_the_policies_of_the_day(room: Core, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "cold.yaml").write_text("id: cold\nstreams: [room]\nrules:\n  - tag: cold\n    when: celsius < 0\n")
    contract(tmp_path / "contracts", minimum=-4.5)
    room.config = CoreConfig(lake=str(room.root), contracts=str(tmp_path / "contracts"), policies=str(policies))
    ask(room, stage="contract")
    room.run()
    assert {row["seq"] for row in room.rows(STREAM) if row["tags"]} == {1, 3}


def test_a_discarded_row_leaves_the_list_and_the_books_say_so(room: Core, envelope: MakeEnvelope) -> None:
    head = replace(envelope(50, 3, stream="room"), kind="refused", refusal="no such head")
    room.landing.seal([head])
    before = room.run().ledger.books
    assert before["car-1", ""].quarantined == 1
    ask(room, "discard", stage="decode")
    ask(room, "discard", stage="head")
    loop = room.run()
    assert loop.ledger.books["car-1", ""] == Counts(received=1, discarded=1)
    assert {group["stage"] for group in grouped(heads(lake_at(room.root), Where()))} == {"contract"}
    assert not loop.ledger.unbalanced()
    assert loop.ledger.books["car-1", "room"] == Counts(received=12, committed=3, quarantined=7, discarded=2)
    assert load_state(lake_at(room.root)).ledger.books == loop.ledger.books
    assert sorted(row["count"] for row in room.rows("quarantine_closed") if row["outcome"] == "discard") == [1, 2]


def test_books_of_before_there_was_a_column_of_discarded_samples_are_read(room: Core) -> None:
    ledger = room.loop().ledger
    path = books_path(room.root, ledger.run)
    now = pq.read_table(path)
    pq.write_table(now.remove_column(now.schema.get_field_index("discarded")), path)
    assert load_state(lake_at(room.root)).ledger.books == ledger.books


def test_rows_go_on_being_settled_while_a_replay_waits(room: Core, envelope: MakeEnvelope) -> None:
    ask(room)
    room.landing.seal([envelope(0, 10)])
    loop = room.run()
    assert len(room.rows("streams/vehicle_telemetry")) == 10
    assert not loop.ledger.unbalanced()


def test_the_command_replays_here_if_no_loop_is_at_work(room: Core, tmp_path: Path) -> None:
    config = tmp_path / "core.toml"
    config.write_text('lake = "lake"\ncontracts = "contracts"\n')
    contract(tmp_path / "contracts", minimum=-4.5)
    done = CliRunner().invoke(quarantine_app, ["replay", "--stage", "contract", "--stream", "room", "--json", "-c", str(config)])
    assert done.exit_code == 0, done.output
    (outcome,) = json.loads(done.stdout.splitlines()[-1])
    assert (outcome["samples"], outcome["committed"], outcome["refused_again"]) == (7, 2, 5)
    nothing = CliRunner().invoke(quarantine_app, ["replay", "-c", str(config)])
    assert "say which" in str(nothing.exception)
    with only_loop(lake_at(room.root)):
        busy = CliRunner().invoke(quarantine_app, ["discard", "--all", "--yes", "--wait-s", "0", "-c", str(config)])
    assert "has not come to it" in str(busy.exception)
    listed = CliRunner().invoke(quarantine_app, ["ls", "--json", "-c", str(config)])
    assert json.loads(listed.stdout)
    shown = CliRunner().invoke(quarantine_app, ["show", "room", "-c", str(config)])
    assert shown.exit_code == 0


def check_replayed(room: Core) -> None:
    loop = room.run()
    assert seqs(room) == [0, 1, 2, 3, 10]
    books = loop.ledger.books["car-1", "room"]
    assert (books.received, books.committed, books.quarantined) == (12, 5, 7)
    assert not loop.ledger.unbalanced()
    assert sum(heads(lake_at(room.root), Where()).column("count").to_pylist()) == 7
    Vacuum(lake_at(room.root), Keep(0, 0, 0, 0, 0)).sweep()
    assert orphans(room.root) == set()
    assert seqs(room) == [0, 1, 2, 3, 10]


@pytest.fixture
def replay_requested(room: Core, tmp_path: Path) -> Any:
    contract(tmp_path / "contracts", minimum=-4.5)
    ask(room)
    return room


def kill_at_each(room: Core, deaths: Deaths, part: slice) -> list[str]:
    return deaths.at_each("run", room.root, part, lambda _name: check_replayed(room), room.root.parent / "contracts")


@pytest.mark.slow
def test_a_replay_that_is_killed_commits_each_sample_once(replay_requested: Core, deaths: Deaths) -> None:
    kill_at_each(replay_requested, deaths, slice(9, None, 50))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(PARTS))
def test_a_replay_that_is_killed_at_any_durable_step_commits_each_sample_once(
    replay_requested: Core, deaths: Deaths, first: int
) -> None:
    assert len(kill_at_each(replay_requested, deaths, slice(first, None, PARTS))) > 100
