"""Vacuum, retention and roll-ups: what is wanted stays, what is not goes, and a crash anywhere costs nothing."""

import hashlib
import os
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipelines.errors import RefusedError
from pipelines.ingest import run as ingest_run
from pipelines.ingest.loop import load_state
from pipelines.lake.compact import compact_all
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from pipelines.lake.rollup import read_rollup, roll_up_all
from pipelines.maintenance.maintain import maintain, only_maintenance
from pipelines.maintenance.vacuum import Keep, Vacuum
from tests.fakes.lake_files import files, orphans
from tests.faults.deaths import Deaths
from tests.plant.core import Core, MakeEnvelope, MakeFrames

PARTS = 2  # the test's workers share the steps
TELEMETRY, FRAMES = "streams/vehicle_telemetry", "streams/camera_frame"
NOTHING = Keep(0, 0, 0, 0, 0)


@pytest.fixture
def lake(core: Core, envelope: MakeEnvelope, frames: MakeFrames) -> Any:
    """Four runs with rows of two streams, the last of them crashed once, so that it left something behind."""
    for run in range(4):
        core.landing.seal([envelope(run * 10, 10), envelope(run * 3, 3, stream="camera_frame", body=frames(run * 3, 3))])
        core.run()
    return core


def check(core: Core, rows: int = 40) -> None:
    found = core.rows(TELEMETRY)
    assert len({(row["device"], row["epoch"], row["seq"]) for row in found}) == len(found) == rows
    assert not load_state(lake_at(core.root)).ledger.unbalanced()
    for row in core.rows(FRAMES):
        body = read_payload(
            lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"]
        )
        assert hashlib.sha256(body).hexdigest() == row["payload_sha256"]


def test_after_a_vacuum_there_is_no_orphan_and_every_row_and_payload_is_there(lake: Core) -> None:
    (lake.root / TELEMETRY / "000000000001-9.parquet").write_bytes(b"left by a crash")
    (lake.root / "payload" / "camera_frame" / "000000000001-9.parquet").write_bytes(b"left by a crash")
    (lake.root / TELEMETRY / ".x.parquet.1.tmp").write_bytes(b"half")
    compact_all(lake_at(lake.root))
    assert orphans(lake.root)
    done = Vacuum(lake_at(lake.root), NOTHING).sweep()
    assert orphans(lake.root) == set()
    assert done.files["orphans"] == 1
    assert done.files["payload_shards"] == 5
    check(lake)


def test_a_dry_run_deletes_nothing(lake: Core) -> None:
    compact_all(lake_at(lake.root))
    before = files(lake.root, "**/*")
    assert Vacuum(lake_at(lake.root), NOTHING, dry_run=True).sweep().bytes > 0
    assert files(lake.root, "**/*") == before


def test_what_an_older_version_needs_is_kept_for_its_time(lake: Core) -> None:
    pinned = DeltaTable(lake.root / FRAMES).version()
    compact_all(lake_at(lake.root))
    Vacuum(lake_at(lake.root), Keep(grace_s=0)).sweep()
    rows = pa.table(DeltaTable(lake.root / FRAMES, version=pinned).to_pyarrow_table()).to_pylist()
    assert len(rows) == 12
    for row in rows:
        read_payload(lake_at(lake.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])


def test_the_files_of_the_run_in_hand_are_left_alone(lake: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.landing.seal([envelope(40, 10)])
    loop = lake.loop()
    with monkeypatch.context() as patch:
        patch.setattr(ingest_run, "publish_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.step()
    Vacuum(lake_at(lake.root), NOTHING).sweep()
    lake.run()
    check(lake, 50)


def test_landed_segments_go_once_their_rows_are_old_and_the_next_runs_go_on(lake: Core, envelope: MakeEnvelope) -> None:
    kept = files(lake.root, "landing/**/*.arrows")
    Vacuum(lake_at(lake.root), Keep(grace_s=0)).sweep()
    assert files(lake.root, "landing/**/*.arrows") == kept
    assert Vacuum(lake_at(lake.root), NOTHING).sweep().files["segments"] == 4
    assert files(lake.root, "landing/**/*.arrows") == set()
    lake.landing.seal([envelope(40, 10)])
    lake.run()
    check(lake, 50)


def test_objects_that_no_row_names_go_after_their_time_and_the_others_stay(lake: Core) -> None:
    folder = lake.root / "objects"
    folder.mkdir(exist_ok=True)
    (folder / ("a" * 64)).write_bytes(b"nobody's")
    Vacuum(lake_at(lake.root), Keep(grace_s=0)).sweep()
    assert (folder / ("a" * 64)).exists()
    os.utime(folder / ("a" * 64), (1, 1))
    assert Vacuum(lake_at(lake.root), Keep(grace_s=0)).sweep().files["objects"] == 1


def test_two_maintenances_do_not_meet(lake: Core) -> None:
    with only_maintenance(lake_at(lake.root)), pytest.raises(RefusedError, match="at work already"):
        maintain(lake_at(lake.root), NOTHING)


def test_roll_ups_say_count_least_greatest_and_mean_of_each_minute_once(lake: Core, envelope: MakeEnvelope) -> None:
    assert roll_up_all(lake_at(lake.root))["vehicle_telemetry"] == 40
    assert roll_up_all(lake_at(lake.root))["vehicle_telemetry"] == 0
    lake.landing.seal([envelope(40, 10)])
    lake.run()
    assert roll_up_all(lake_at(lake.root))["vehicle_telemetry"] == 10
    (row,) = read_rollup(lake_at(lake.root), "vehicle_telemetry", columns=["speed_mps"]).to_pylist()
    speeds = [row["speed_mps"] for row in lake.rows(TELEMETRY)]
    assert (row["device"], row["count"], row["min"], row["max"]) == ("car-1", 50, min(speeds), max(speeds))
    assert row["mean"] == pytest.approx(sum(speeds) / 50)
    compact_all(lake_at(lake.root), 2)
    assert read_rollup(lake_at(lake.root), "vehicle_telemetry", devices=["car-1"], columns=["speed_mps"]).to_pylist() == [row]
    assert read_rollup(lake_at(lake.root), "camera_frame").num_rows == 0


def check_kept(core: Core) -> None:
    check(core)
    maintain(lake_at(core.root), NOTHING)
    check(core)
    assert orphans(core.root) == set()


@pytest.mark.slow
def test_maintenance_that_is_killed_loses_nothing_and_leaves_no_orphan(lake: Core, deaths: Deaths) -> None:
    deaths.at_each("maintenance", lake.root, slice(5, None, 40), lambda _name: check_kept(lake))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(PARTS))
def test_maintenance_that_is_killed_at_any_durable_step_loses_nothing_and_leaves_no_orphan(
    lake: Core, deaths: Deaths, first: int
) -> None:
    assert len(deaths.at_each("maintenance", lake.root, slice(first, None, PARTS), lambda _name: check_kept(lake))) > 100
