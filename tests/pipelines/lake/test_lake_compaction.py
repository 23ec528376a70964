"""Small files become large ones: the same rows, the same payloads, readers of old versions undisturbed, no orphan afterwards."""

import hashlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.errors import ConflictError
from pipelines.lake.commit import swap_files
from pipelines.lake.compact import compact_all, compact_table
from pipelines.lake.compact_plan import Small, bins, name_of
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from pipelines.lake.quarantined import Where, heads
from tests.plant.core import Core, MakeEnvelope, MakeFrames

TELEMETRY, FRAMES = "streams/vehicle_telemetry", "streams/camera_frame"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lake is kept once a test has made it."""
    return Path(tmp_path_factory.mktemp("built")) / "lake"


@pytest.fixture
def lake(core: Core, envelope: MakeEnvelope, frames: MakeFrames, built: Path) -> Any:
    """Six runs, each with rows of two streams."""
    if built.exists():
        shutil.rmtree(core.root)
        shutil.copytree(built, core.root)
        core.landing.numbers = itertools.count(7)
        return core
    for run in range(6):
        core.landing.seal(
            [
                envelope(run * 10, 10, device=f"car-{run % 2}"),
                envelope(run * 3, 3, stream="camera_frame", body=frames(run * 3, 3)),
                envelope(100 + run, 1, body=b"garbage"),
            ]
        )
        core.run()
    shutil.copytree(core.root, built)
    return core


def keyed(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {(row["device"], row["epoch"], row["seq"]): row for row in rows}


def payload(root: Path, row: dict[str, Any]) -> bytes:
    body = read_payload(lake_at(root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])
    assert hashlib.sha256(body).hexdigest() == row["payload_sha256"]
    return body


def test_compaction_keeps_every_row_and_sorts_by_device_and_time(lake: Core) -> None:
    before = keyed(lake.rows(TELEMETRY))
    done = {one.table: one for one in compact_all(lake_at(lake.root))}
    assert (done[TELEMETRY].files_before, done[TELEMETRY].files_after) == (6, 1)
    assert keyed(lake.rows(TELEMETRY)) == before
    order = [(row["device"], row["event_time"]) for row in lake.rows(TELEMETRY)]
    assert order == sorted(order)
    assert compact_all(lake_at(lake.root)) == []


def test_payload_shards_become_one_and_every_payload_is_still_read_by_one_pread(lake: Core) -> None:
    before = keyed(lake.rows(FRAMES))
    bodies = {key: payload(lake.root, row) for key, row in before.items()}
    compact_table(lake_at(lake.root), FRAMES)
    after = keyed(lake.rows(FRAMES))
    assert {row["payload_shard"] for row in after.values()} != {row["payload_shard"] for row in before.values()}
    assert len({row["payload_shard"] for row in after.values()}) == 1
    assert {key: payload(lake.root, row) for key, row in after.items()} == bodies


def test_a_reader_of_a_pinned_version_is_not_disturbed(lake: Core) -> None:
    pinned = DeltaTable(lake.root / FRAMES)
    rows = pa.table(pinned.to_pyarrow_table()).to_pylist()
    compact_all(lake_at(lake.root))
    again = pa.table(DeltaTable(lake.root / FRAMES, version=pinned.version()).to_pyarrow_table()).to_pylist()
    assert keyed(again) == keyed(rows)
    for row in again:
        payload(lake.root, row)


def test_runs_and_replays_go_on_after_a_compaction(lake: Core, envelope: MakeEnvelope) -> None:
    compact_all(lake_at(lake.root))
    lake.landing.seal([envelope(0, 10, device="car-0"), envelope(500, 10)])
    loop = lake.run()
    assert len(lake.rows(TELEMETRY)) == 70
    assert not loop.ledger.unbalanced()


def test_rows_that_were_let_go_of_leave_the_quarantine_for_good(lake: Core) -> None:
    from pipelines.ingest.quarantine import Request, write_request

    ids = heads(lake_at(lake.root), Where()).column("id").to_pylist()
    write_request(lake_at(lake.root), Request("discard", tuple(ids[:4]), 1))
    lake.run()
    compact_all(lake_at(lake.root))
    assert sorted(row["id"] for row in lake.rows("quarantine")) == sorted(ids[4:])
    assert heads(lake_at(lake.root), Where()).num_rows == 2


def test_a_contract_that_grew_compacts_with_nulls_for_the_rows_before(lake: Core) -> None:
    table = DeltaTable(lake.root / TELEMETRY)
    from deltalake import Schema

    table.alter.add_columns(list(Schema.from_arrow(pa.schema([pa.field("wiper", pa.int32())])).fields))
    compact_table(lake_at(lake.root), TELEMETRY)
    rows = lake.rows(TELEMETRY)
    assert len(rows) == 60
    assert {row["wiper"] for row in rows} == {None}


def test_a_compaction_that_another_rewrite_overtook_changes_nothing(lake: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.lake import compact

    before = keyed(lake.rows(TELEMETRY))

    def late(root: Any, name: str, old: Any, new: Any, note: Any) -> bool:
        monkeypatch.setattr(compact, "swap_files", swap_files)
        compact_table(root, name, 2)  # somebody else is first
        return swap_files(root, name, old, new, note)

    monkeypatch.setattr(compact, "swap_files", late)
    monkeypatch.setattr(compact, "name_of", lambda group: f"mine-{len(list((lake.root / TELEMETRY).iterdir()))}.parquet")
    compact_table(lake_at(lake.root), TELEMETRY)
    assert keyed(lake.rows(TELEMETRY)) == before
    assert len(lake.rows(TELEMETRY)) == 60


def test_a_swap_gives_up_where_others_always_win(lake: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalake.exceptions import CommitFailedError

    from pipelines.lake import commit

    monkeypatch.setattr(commit, "SWAP_ATTEMPTS", 2)

    def refuse(*_arguments: Any, **_named: Any) -> None:
        raise CommitFailedError("concurrent")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", refuse)
    with pytest.raises(ConflictError, match="committed 2 times meanwhile"):
        compact_table(lake_at(lake.root), TELEMETRY)


def test_private_columns_show_in_no_statistics_after_a_compaction(core: Core, lake: Core) -> None:
    compact_all(lake_at(lake.root))
    (path,) = (lake.root / TELEMETRY).glob("compact-*.parquet")
    shown = {
        pq.read_metadata(path).schema.column(index).path
        for index in range(pq.read_metadata(path).num_columns)
        if pq.read_metadata(path).row_group(0).column(index).is_stats_set
    }
    assert "speed_mps" in shown
    assert "device" not in shown


def test_only_enough_small_neighbours_are_put_together() -> None:
    small = [Small(f"{at:02d}", 10, 1_000) for at in range(5)]
    large = Small("03x", 10, 10**9)
    assert [len(group) for group in bins([*small, large])] == [5]
    assert bins(small[:3]) == []
    full = [Small(f"{at:02d}", 3_000_000, 1_000) for at in range(5)]
    assert bins(full) == []
    assert name_of(small) != name_of(small[:4])
    assert name_of(small) == name_of(list(small))
