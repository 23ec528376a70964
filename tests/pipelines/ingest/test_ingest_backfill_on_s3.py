# ruff: noqa: F401, F811  # fixtures of a neighbour
"""Raw landing in a bucket run once more, on a machine that has nothing of the lake: the rows that a folder would have."""

import hashlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pyarrow as pa
import pytest

from catchment.runtime.clock import SystemClock
from pipelines.config import CoreConfig, RunConfig
from pipelines.ingest import backfill as module
from pipelines.ingest.backfill import backfill, segments_of
from pipelines.lake.lake import lake_at
from pipelines.lake.rollup import roll_up_all
from pipelines.runners.engine import Engine
from tests.pipelines.ingest.test_ingest_on_s3 import RemoteCore, core, make_core, s3
from tests.pipelines.ingest.test_ingest_on_s3_commands import configured, names, run_command
from tests.plant.core import AsIpc, Core, MakeEnvelope

TELEMETRY, FRAMES, ROLLUP = "streams/vehicle_telemetry", "streams/camera_frame", "rollups/vehicle_telemetry"
POLICY = "id: driving\nstreams: [vehicle_telemetry]\nrules:\n  - tag: fast\n    when: speed_mps > 5\n"
PICTURE = b"large" * 1_000


def land(core: Core | RemoteCore, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    """Two segments, a run each: telemetry, and a picture that travelled as parts."""
    frame = pa.record_batch(
        {
            "event_time": pa.array([1_790_000_000_000_000]).cast(pa.timestamp("us", "UTC")),
            "media_type": ["image/jpeg"],
            "payload": pa.array([None], pa.binary()),
            "payload_sha256": [hashlib.sha256(PICTURE).hexdigest()],
        }
    )
    core.config = msgspec.structs.replace(core.config, run=RunConfig(max_segments=1))
    core.landing.seal([envelope(0, 10), envelope(0, 1, stream="camera_frame", body=as_ipc(frame))])
    core.landing.seal([envelope(5, 15)])
    core.run()


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["device"], row["epoch"], row["seq"]))


@pytest.fixture
def policies(tmp_path: Path) -> str:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "driving.yaml").write_text(POLICY)
    return str(tmp_path / "policies")


@pytest.mark.slow
def test_a_backfill_in_a_bucket_gives_the_rows_that_it_gives_in_a_folder(
    core: RemoteCore, core_on_disk: Core, envelope: MakeEnvelope, as_ipc: AsIpc, policies: str, tmp_path: Path
) -> None:
    digest = hashlib.sha256(PICTURE).hexdigest()
    folder = tmp_path / "folder"
    core_on_disk = type(core_on_disk)(
        folder, type(core_on_disk.landing)(folder), type(core_on_disk.mailbox)(), CoreConfig(str(folder))
    )
    (folder / "objects").mkdir(parents=True)
    (folder / "objects" / digest).write_bytes(PICTURE)
    core.remote.put(f"objects/{digest}", PICTURE)
    for one in (core, core_on_disk):
        land(one, envelope, as_ipc)
    received = {row["seq"]: row["received_at"] for row in core.rows(TELEMETRY)}
    backfill(msgspec.structs.replace(core_on_disk.config, policies=policies), segments_of("1-2"), Engine(), SystemClock())
    config = configured(core, tmp_path)
    Path(config).write_text(f'policies = "{policies}"\n{Path(config).read_text()}')
    output = run_command("run", "--from-landing", "b0:1-2", "-c", config)
    assert "vehicle_telemetry" in output
    assert "camera_frame" in output
    rows = plain(core.rows(TELEMETRY))
    assert {row["seq"] for row in rows if row["tags"]} == set(range(6, 20))
    assert {row["seq"]: row["received_at"] for row in rows} == received
    assert rows == plain(core_on_disk.rows(TELEMETRY))
    (frame,) = core.rows(FRAMES)
    assert [frame] == core_on_disk.rows(FRAMES)
    assert frame["payload_shard"] == f"objects/{digest}"
    left = [path for path in (tmp_path / "elsewhere").rglob("*") if path.suffix in {".parquet", ".arrows", ".tmp"}]
    assert left == []
    core.landing.seal([envelope(20, 5)])
    core.run()
    assert sorted(row["seq"] for row in core.rows(TELEMETRY)) == list(range(25))


@pytest.mark.slow
def test_a_backfill_that_dies_before_its_commit_leaves_the_bucket_as_it_was_and_is_done_again(
    core: RemoteCore, envelope: MakeEnvelope, as_ipc: AsIpc, policies: str
) -> None:
    core.remote.put(f"objects/{hashlib.sha256(PICTURE).hexdigest()}", PICTURE)
    land(core, envelope, as_ipc)
    roll_up_all(lake_at(core.root))
    before = plain(core.rows(TELEMETRY))
    config = msgspec.structs.replace(core.config, policies=policies)
    with patch.object(module, "swap_files", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        backfill(config, segments_of("b0:1-2"), Engine(), SystemClock())
    assert plain(core.rows(TELEMETRY)) == before
    assert names(core, "runs/stale", ".json")
    backfill(config, segments_of("b0:1-2"), Engine(), SystemClock())
    assert {row["seq"] for row in core.rows(TELEMETRY) if row["tags"]} == set(range(6, 20))
    assert names(core, "runs/stale", ".json") == set()
    assert sum(row["count"] for row in core.rows(ROLLUP) if row["column"] == "speed_mps") == 20
