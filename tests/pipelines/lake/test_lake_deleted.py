"""Deleted means gone: the payload of a deleted row leaves the lake with the next maintenance, and every other one stays."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from pipelines.lake.compact import compact_all
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from pipelines.lake.payload_drop import drop_unnamed
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep, Vacuum
from tests.fakes.lake_files import orphans
from tests.faults.deaths import Deaths
from tests.plant.core import AsIpc, Core, MakeEnvelope

FRAMES = "streams/camera_frame"
NOTHING = Keep(0, 0, 0, 0, 0)
DELETIONS = {"seq % 2 = 0": range(0, 60, 2), "seq < 30": range(30), "seq >= 30": range(30, 60)}


def body_of(seq: int) -> bytes:
    return hashlib.sha256(f"frame {seq}".encode()).digest() * 100


@pytest.fixture
def sixty(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> Any:
    """A lake of sixty frames of 3,200 bytes, in so many runs."""
    import pyarrow as pa

    def make(runs: int) -> Any:
        each = 60 // runs
        for run in range(runs):
            bodies = [body_of(seq) for seq in range(run * each, (run + 1) * each)]
            columns = {
                "event_time": pa.array([1_790_000_000_000_000 + at for at in range(each)]).cast(pa.timestamp("us", "UTC")),
                "media_type": ["image/jpeg"] * each,
                "payload": pa.array(bodies, pa.binary()),
                "payload_sha256": [hashlib.sha256(body).hexdigest() for body in bodies],
            }
            core.landing.seal([envelope(run * each, each, stream="camera_frame", body=as_ipc(pa.record_batch(columns)))])
            core.run()
        return core

    return make


def payload_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "payload").rglob("*") if path.is_file())


def check(core: Core, seqs: list[int]) -> None:
    rows = sorted(core.rows(FRAMES), key=lambda row: row["seq"])
    assert [row["seq"] for row in rows] == seqs
    for row in rows:
        with (core.root / row["payload_shard"]).open("rb") as file:
            file.seek(row["payload_offset"])
            assert file.read(row["payload_length"]) == body_of(row["seq"])
        assert read_payload(lake_at(core.root), row["payload_shard"], 4, row["payload_length"], row["payload_row"]) == body_of(
            row["seq"]
        )


def whereabouts(root: Path, seqs: list[int]) -> set[str]:
    """The files in which the payload of one of these samples is found."""
    inside = ("payload", "streams", "chips", "objects")
    files = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] in inside]
    return {str(path.relative_to(root)) for path in files for seq in seqs if body_of(seq)[:32] in path.read_bytes()}


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 6])
@pytest.mark.parametrize("deleted", DELETIONS)
def test_payloads_of_deleted_rows_are_gone_after_maintenance_and_the_others_are_there(
    sixty: Callable[[int], Core], runs: int, deleted: str
) -> None:
    core = sixty(runs)
    before = payload_bytes(core.root)
    gone = list(DELETIONS[deleted])
    DeltaTable(core.root / FRAMES).delete(deleted)
    maintain(lake_at(core.root), NOTHING)
    assert payload_bytes(core.root) < 0.55 * before
    assert whereabouts(core.root, gone) == set()
    check(core, [seq for seq in range(60) if seq not in gone])
    assert orphans(core.root) == set()


@pytest.mark.slow
def test_payloads_of_rows_deleted_after_a_compaction_are_gone_too(sixty: Callable[[int], Core]) -> None:
    core = sixty(6)
    compact_all(lake_at(core.root))
    before = payload_bytes(core.root)
    DeltaTable(core.root / FRAMES).delete("seq % 2 = 0")
    maintain(lake_at(core.root), NOTHING)
    assert payload_bytes(core.root) < before
    assert whereabouts(core.root, list(range(0, 60, 2))) == set()
    check(core, list(range(1, 60, 2)))


def test_one_deleted_row_is_reason_enough(sixty: Callable[[int], Core]) -> None:
    core = sixty(1)
    DeltaTable(core.root / FRAMES).delete("seq = 17")
    maintain(lake_at(core.root), NOTHING)
    assert whereabouts(core.root, [17]) == set()
    check(core, [seq for seq in range(60) if seq != 17])


@pytest.mark.slow
def test_rows_that_another_tool_spread_over_other_files_keep_their_payloads(sixty: Callable[[int], Core]) -> None:
    core = sixty(3)
    DeltaTable(core.root / FRAMES).optimize.compact()
    DeltaTable(core.root / FRAMES).delete("seq % 3 = 0")
    core.landing.seal([])
    core.run()
    maintain(lake_at(core.root), NOTHING)
    assert whereabouts(core.root, list(range(0, 60, 3))) == set()
    check(core, [seq for seq in range(60) if seq % 3])


def test_a_stream_all_of_whose_rows_are_deleted_keeps_no_payload(sixty: Callable[[int], Core]) -> None:
    core = sixty(2)
    DeltaTable(core.root / FRAMES).delete()
    maintain(lake_at(core.root), NOTHING)
    assert payload_bytes(core.root) == 0
    check(core, [])


def test_where_nothing_was_deleted_nothing_is_written_again(sixty: Callable[[int], Core]) -> None:
    core = sixty(2)
    shards = {path: path.stat().st_mtime_ns for path in (core.root / "payload").rglob("*.parquet")}
    assert drop_unnamed(lake_at(core.root), FRAMES) is None
    assert drop_unnamed(lake_at(core.root), "streams/vehicle_telemetry") is None
    assert {path: path.stat().st_mtime_ns for path in (core.root / "payload").rglob("*.parquet")} == shards


def test_a_reader_of_the_version_before_still_finds_what_was_deleted_for_its_time(sixty: Callable[[int], Core]) -> None:
    core = sixty(1)
    pinned = DeltaTable(core.root / FRAMES).version()
    DeltaTable(core.root / FRAMES).delete("seq < 30")
    maintain(lake_at(core.root), Keep(grace_s=0))
    rows = DeltaTable(core.root / FRAMES, version=pinned).to_pyarrow_table().to_pylist()
    assert len(rows) == 60
    for row in rows:
        body = read_payload(
            lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"]
        )
        assert body == body_of(row["seq"])
    Vacuum(lake_at(core.root), NOTHING).sweep()
    assert whereabouts(core.root, list(range(30))) == set()
    check(core, list(range(30, 60)))


def test_a_rewrite_that_was_overtaken_changes_nothing_and_the_next_does_it(
    sixty: Callable[[int], Core], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.lake import payload_drop

    core = sixty(1)
    DeltaTable(core.root / FRAMES).delete("seq < 30")
    with monkeypatch.context() as patch:
        patch.setattr(payload_drop, "swap_files", lambda *_: False)
        assert drop_unnamed(lake_at(core.root), FRAMES) is None
    check(core, list(range(30, 60)))
    maintain(lake_at(core.root), NOTHING)
    assert whereabouts(core.root, list(range(30))) == set()
    assert orphans(core.root) == set()


@pytest.mark.slow
def test_maintenance_that_is_killed_while_payloads_are_dropped_loses_none(sixty: Callable[[int], Core], deaths: Deaths) -> None:
    core = sixty(1)
    DeltaTable(core.root / FRAMES).delete("seq % 2 = 0")

    def look(_name: str) -> None:
        check(core, list(range(1, 60, 2)))
        maintain(lake_at(core.root), NOTHING)
        check(core, list(range(1, 60, 2)))
        assert whereabouts(core.root, list(range(0, 60, 2))) == set()
        assert orphans(core.root) == set()

    names = deaths.at_each("maintenance", core.root, slice(0, None, 25), look)
    assert any("payload/camera_frame/drop-" in name for name in names)
