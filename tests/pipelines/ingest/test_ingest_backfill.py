"""Raw landing run once more: the same keys, new values, as a new version of the table; the old version as it was."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipelines.clock import SystemClock
from pipelines.config import CoreConfig
from pipelines.errors import NotFoundError, RefusedError
from pipelines.ingest.backfill import backfill, segments_of
from pipelines.lake.compact import compact_all
from pipelines.runners.engine import Engine
from pipelines.upkeep.vacuum import Keep, Vacuum

STREAM = "streams/vehicle_telemetry"
POLICY = "id: driving\nstreams: [vehicle_telemetry]\nrules:\n  - tag: fast\n    when: speed_mps > 5\n"


def again(core: Any, text: str) -> Any:
    return backfill(core.config, segments_of(text), Engine(), SystemClock())


def tagged(rows: list[dict[str, Any]]) -> set[int]:
    return {row["seq"] for row in rows if row["tags"]}


@pytest.fixture
def lake(core: Any, envelope: Any, tmp_path: Path) -> Any:
    """Three runs before there was a policy."""
    for run in range(3):
        core.landing.seal([envelope(run * 10, 10), envelope(run * 10 + 5, 10)])
        core.run()
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "driving.yaml").write_text(POLICY)
    core.config = CoreConfig(lake=str(core.root), policies=str(tmp_path / "policies"))
    return core


def test_a_range_of_landing_becomes_a_new_version_of_the_table_with_the_same_keys(lake: Any) -> None:
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


def test_runs_compaction_and_vacuum_go_on_after_a_backfill(lake: Any, envelope: Any) -> None:
    again(lake, "1-3")
    lake.landing.seal([envelope(30, 10)])
    loop = lake.run()
    compact_all(lake.root, 2)
    Vacuum(lake.root, Keep(0, 0, 0, 0)).sweep()
    rows = lake.rows(STREAM)
    assert sorted(row["seq"] for row in rows) == list(range(40))
    assert tagged(rows) == {seq for seq in range(40) if seq > 5}
    assert not loop.ledger.unbalanced()


def test_the_payloads_of_frames_stay_where_they_are(core: Any, envelope: Any, as_ipc: Any) -> None:
    import hashlib

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


def test_a_range_that_is_not_there_or_not_run_is_refused(lake: Any) -> None:
    with pytest.raises(RefusedError, match="has not been run yet"):
        again(lake, "b0:2-9")
    with pytest.raises(RefusedError, match="counted from 1"):
        segments_of("9-2")
    Vacuum(lake.root, Keep(0, 0, 0, 0)).sweep()
    with pytest.raises(NotFoundError, match="no longer in landing"):
        again(lake, "b0:2-3")
