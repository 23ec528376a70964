# ruff: noqa: F401, F811  # fixtures of a neighbour
"""A lake in a bucket is kept short, private and free of what was deleted, as one in a folder is."""

from typing import Any

import pytest
from deltalake import DeltaTable

from pipelines.lake.delta_log import LogKind, log_files, read_removed
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from pipelines.lake.rollup import read_rollup
from pipelines.maintenance.archive import archived_run
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep
from tests.fakes.inventory import every_file, referenced
from tests.pipelines.ingest.test_ingest_on_s3 import RemoteCore, core, make_core, s3
from tests.plant.core import MakeEnvelope, MakeFrames

TELEMETRY, FRAMES = "streams/vehicle_telemetry", "streams/camera_frame"
NOTHING = Keep(0, 0, 0, 0, 0)


@pytest.fixture
def filled(core: RemoteCore, envelope: MakeEnvelope, frames: MakeFrames) -> RemoteCore:
    """Three runs with rows of two streams."""
    core.pull = lambda: None  # type: ignore[method-assign]  # payloads stay in the bucket
    for run in range(3):
        core.landing.seal([envelope(run * 10, 10), envelope(run * 4, 4, stream="camera_frame", body=frames(run * 4, 4))])
        core.run()
    return core


def opened(core: RemoteCore, name: str) -> DeltaTable:
    return DeltaTable(core.remote.where(name), storage_options=core.remote.table_options())


def payload_bytes(core: RemoteCore) -> int:
    return sum(file.bytes for file in core.remote.listed("payload"))


def entries(core: RemoteCore, name: str) -> int:
    return sum(file.kind is LogKind.ENTRY for file in log_files(lake_at(core.root), name))


def check(core: RemoteCore, seqs: list[int]) -> None:
    rows = sorted(core.rows(FRAMES), key=lambda row: row["seq"])
    assert [row["seq"] for row in rows] == seqs
    for row in rows:
        read_payload(lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])


@pytest.mark.slow
def test_in_a_bucket_too_deleted_payloads_go_logs_are_short_and_runs_archived(
    filled: RemoteCore, envelope: MakeEnvelope, frames: MakeFrames
) -> None:
    before = payload_bytes(filled)
    opened(filled, FRAMES).delete("seq % 2 = 0")
    maintain(lake_at(filled.root), Keep(grace_s=0))
    assert read_removed(lake_at(filled.root), FRAMES).num_rows > 0
    check(filled, list(range(1, 12, 2)))
    maintain(lake_at(filled.root), NOTHING)
    check(filled, list(range(1, 12, 2)))
    assert payload_bytes(filled) < before
    assert archived_run(lake_at(filled.root)) == 3
    for name in (TELEMETRY, FRAMES, "commits"):
        assert entries(filled, name) == 1
    assert set(read_rollup(lake_at(filled.root), "vehicle_telemetry").column("column").to_pylist()) == {"speed_mps"}
    assert every_file(filled.root) == referenced(filled.root)
    filled.landing.seal([envelope(30, 10), envelope(12, 4, stream="camera_frame", body=frames(12, 4))])
    loop = filled.run()
    assert loop.ledger.run == 4
    check(filled, [*range(1, 12, 2), *range(12, 16)])
    here = {path.relative_to(filled.root).parts[0] for path in filled.root.rglob("*") if path.is_file()}
    assert here <= {"runs", "cache", "landing", "status", "policies", "remote.json"}
