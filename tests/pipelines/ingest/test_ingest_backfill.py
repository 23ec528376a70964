"""Raw landing run once more: the same keys, new values, as a new version of the table; the old version as it was."""

import hashlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from catchment.runtime.clock import SystemClock
from pipelines.config import CoreConfig
from pipelines.errors import NotFoundError, RefusedError
from pipelines.ingest import backfill as module
from pipelines.ingest.backfill import backfill, segments_of
from pipelines.lake.commit import live_sizes, swap_files
from pipelines.lake.compact import compact_all
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import lake_at
from pipelines.lake.rollup import read_rollup, roll_up_all
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep, Vacuum
from pipelines.runners.engine import Engine
from tests.plant.core import AsIpc, Core, MakeEnvelope

STREAM = "streams/vehicle_telemetry"
START_US = 1_790_000_000_000_000
HOUR_US = 3_600_000_000
POLICY = "id: driving\nstreams: [vehicle_telemetry]\nrules:\n  - tag: fast\n    when: speed_mps > 5\n"


def again(core: Core, text: str) -> Any:
    return backfill(core.config, segments_of(text), Engine(), SystemClock())


def tagged(rows: list[dict[str, Any]]) -> set[int]:
    return {row["seq"] for row in rows if row["tags"]}


@pytest.fixture
def lake(core: Core, envelope: MakeEnvelope, tmp_path: Path) -> Any:
    """Three runs before there was a policy."""
    for run in range(3):
        core.landing.seal([envelope(run * 10, 10), envelope(run * 10 + 5, 10)])
        core.run()
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "driving.yaml").write_text(POLICY)
    core.config = CoreConfig(lake=str(core.root), policies=str(tmp_path / "policies"))
    return core


def test_a_range_of_landing_becomes_a_new_version_of_the_table_with_the_same_keys(lake: Core) -> None:
    before, version = lake.rows(STREAM), DeltaTable(lake.root / STREAM).version()
    (done,) = again(lake, "b0:2-3")
    after = lake.rows(STREAM)
    assert sorted(row["seq"] for row in after) == list(range(35)) == sorted(row["seq"] for row in before)
    assert tagged(after) == {seq for seq in range(10, 35) if seq % 40 > 5}
    assert {(row["seq"], row["run"], row["received_at"]) for row in after} == {
        (row["seq"], row["run"], row["received_at"]) for row in before
    }
    assert (done.rows, done.version) == (25, version + 1)
    pinned = pa.table(DeltaTable(lake.root / STREAM, version=version).to_pyarrow_table()).to_pylist()
    assert tagged(pinned) == set()
    assert not (lake.root / "runs" / "backfill" / "b0-2-3").exists()


def test_runs_compaction_and_vacuum_go_on_after_a_backfill(lake: Core, envelope: MakeEnvelope) -> None:
    again(lake, "1-3")
    lake.landing.seal([envelope(30, 10)])
    loop = lake.run()
    compact_all(lake_at(lake.root), 2)
    Vacuum(lake_at(lake.root), Keep(0, 0, 0, 0, 0)).sweep()
    rows = lake.rows(STREAM)
    assert sorted(row["seq"] for row in rows) == list(range(40))
    assert tagged(rows) == {seq for seq in range(40) if seq > 5}
    assert not loop.ledger.unbalanced()


def test_the_payloads_of_frames_stay_where_they_are(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    body = b"frame" * 100
    batch = pa.record_batch(
        {
            "event_time": pa.array([1_790_000_000_000_000]).cast(pa.timestamp("us", "UTC")),
            "media_type": ["image/jpeg"],
            "payload": pa.array([body], pa.binary()),
            "payload_sha256": [hashlib.sha256(body).hexdigest()],
        }
    )
    core.landing.seal([envelope(0, 1, stream="camera_frame", body=as_ipc(batch))])
    core.run()
    (before,) = core.rows("streams/camera_frame")
    again(core, "1-1")
    (after,) = core.rows("streams/camera_frame")
    assert after == before


@pytest.mark.parametrize("is_linked_before", [False, True], ids=["new", "left by an earlier version"])
def test_large_payloads_of_a_backfill_are_found_though_no_link_is_followed(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, is_linked_before: bool
) -> None:
    body = b"large picture" * 100
    digest = hashlib.sha256(body).hexdigest()
    (core.root / "objects").mkdir()
    (core.root / "objects" / digest).write_bytes(body)
    batch = pa.record_batch(
        {
            "event_time": pa.array([1_790_000_000_000_000]).cast(pa.timestamp("us", "UTC")),
            "media_type": ["image/jpeg"],
            "payload": pa.array([None], pa.binary()),
            "payload_sha256": [digest],
        }
    )
    core.landing.seal([envelope(0, 1, stream="camera_frame", body=as_ipc(batch))])
    core.run()
    (before,) = core.rows("streams/camera_frame")
    if is_linked_before:
        small = core.root / "runs/backfill/b0-1-1"
        small.mkdir(parents=True)
        (small / "objects").symlink_to(core.root / "objects")
    (done,) = again(core, "1-1")
    assert done.rows == 1
    assert core.rows("streams/camera_frame") == [before]
    assert before["payload_shard"] == f"objects/{digest}"
    assert [path.name for path in (core.root / "objects").iterdir()] == [digest]
    assert core.rows("quarantine") == []


def test_a_range_that_is_not_there_or_not_run_is_refused(lake: Core) -> None:
    with pytest.raises(RefusedError, match="has not been run yet"):
        again(lake, "b0:2-9")
    with pytest.raises(RefusedError, match="counted from 1"):
        segments_of("9-2")
    Vacuum(lake_at(lake.root), Keep(0, 0, 0, 0, 0)).sweep()
    with pytest.raises(NotFoundError, match="no longer in landing"):
        again(lake, "b0:2-3")


@pytest.fixture
def wrong(core: Core, envelope: MakeEnvelope) -> Any:
    """Two runs an hour apart whose speeds came out a hundred times too high and are rolled up, and one that is not yet."""
    for first in (0, 10):
        times = pa.array(START_US + np.arange(10) * 1_000 + first // 10 * HOUR_US).cast(pa.timestamp("us", "UTC"))
        core.landing.seal([envelope(first, 10, event_time=times)])
        core.run()
    for path in sorted(live_sizes(DeltaTable(core.root / STREAM))):
        rows = pq.read_table(core.root / STREAM / path, partitioning=None)
        place = rows.schema.get_field_index("speed_mps")
        rows = rows.set_column(place, rows.schema.field(place), pc.multiply(rows["speed_mps"], 100.0))
        new = write_table_file(lake_at(core.root), STREAM, f"wrong-{path}", rows)
        assert swap_files(lake_at(core.root), STREAM, [path], [new], {}, changes_rows=True)
    roll_up_all(lake_at(core.root))
    core.landing.seal([envelope(20, 10)])
    core.run()
    assert curve(core) == [(10, 0.0, 900.0), (10, 1_000.0, 1_900.0)]
    return core


def curve(core: Core) -> list[tuple[int, float, float]]:
    rows = read_rollup(lake_at(core.root), "vehicle_telemetry", columns=["speed_mps"]).to_pylist()
    return [(row["count"], row["min"], row["max"]) for row in rows]


def test_roll_ups_of_the_minutes_of_a_backfill_are_made_anew_and_no_others(wrong: Core) -> None:
    again(wrong, "1-1")
    assert curve(wrong) == [(10, 0.0, 9.0), (10, 1_000.0, 1_900.0)]
    roll_up_all(lake_at(wrong.root))
    assert curve(wrong) == [(20, 0.0, 29.0), (10, 1_000.0, 1_900.0)]
    again(wrong, "2-3")
    assert curve(wrong) == [(20, 0.0, 29.0), (10, 10.0, 19.0)]
    assert list((wrong.root / "runs" / "stale").iterdir()) == []


def test_a_backfill_that_dies_after_its_commit_has_its_roll_ups_made_anew_by_the_next_maintenance(wrong: Core) -> None:
    with patch.object(module, "roll_up_again", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        again(wrong, "1-2")
    assert curve(wrong) == [(10, 0.0, 900.0), (10, 1_000.0, 1_900.0)]
    Vacuum(lake_at(wrong.root), Keep(0, 0, 0, 0, 0)).sweep()
    maintain(lake_at(wrong.root), Keep())
    assert curve(wrong) == [(20, 0.0, 29.0), (10, 10.0, 19.0)]
    assert list((wrong.root / "runs" / "stale").iterdir()) == []
