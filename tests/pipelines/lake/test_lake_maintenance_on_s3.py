# ruff: noqa: F401, F811  # fixtures of a neighbour
"""Maintenance and retags of a lake in a bucket, killed at puts, deletes and commits: the same rows, and no orphan afterwards."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import obstore
import pytest

from pipelines.config import RunConfig
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import SETS
from pipelines.lake.payload import read_payload
from pipelines.lake.remote import Remote, bind, store
from pipelines.training.build import BuildOptions, build_set
from tests.fakes.inventory import every_file, referenced
from tests.fakes.s3_server import S3
from tests.pipelines.ingest.test_ingest_on_s3 import RemoteCore, core, make_core, s3
from tests.pipelines.lake.dies_in_bucket import maintenance, retag
from tests.pipelines.lake.test_lake_orphans import slide
from tests.plant.core import MakeEnvelope, MakeFrames
from tests.plant.present import present

SCRIPT = Path(__file__).with_name("dies_in_bucket.py")
ROOT = Path(__file__).resolve().parents[3]
TELEMETRY, FRAMES, CHIPS = "streams/vehicle_telemetry", "streams/camera_frame", "streams/slide_chips"


@pytest.fixture
def filled(core: RemoteCore, envelope: MakeEnvelope, frames: MakeFrames, slide: Any) -> RemoteCore:
    """Two runs with rows of three streams, one of them cut into chips; a set; and what crashes before have left."""
    core.pull = lambda: None  # type: ignore[method-assign]  # payloads stay in the bucket
    core.config = msgspec.structs.replace(core.config, run=RunConfig(max_segments=1))
    for run in range(2):
        pictures = envelope(run * 3, 3, stream="camera_frame", body=frames(run * 3, 3))
        core.landing.seal([envelope(run * 10, 10), pictures, slide(run)])
    core.run()
    for name in (
        "payload/camera_frame",
        "chips/slide/s256",
        "streams/camera_frame",
        "chips/slide/s256/000000000001-7.zarr/c/0/0/0",
    ):
        core.remote.put(f"{name}/000000000001-9.parquet", present(core.remote.get(_a_file(core, FRAMES)))[0])
    core.remote.put(f"{SETS}/views/7/train-00000.parquet", b"its builder died")
    core.remote.put(f"{SETS}/views/.numbers/7", b"taken")
    build_set(lake_at(core.root), "views", ("camera_frame",), options=BuildOptions(split={"train": 1.0}))
    return core


def _a_file(core: RemoteCore, table: str) -> str:
    return next(file.name for file in core.remote.listed(table) if file.name.endswith(".parquet"))


def copied(core: RemoteCore, name: str) -> RemoteCore:
    """The same lake under another prefix, with a working copy that has seen nothing of it."""
    config = core.remote.config
    there = msgspec.structs.replace(config, url=f"{config.url}-{name}", claim_s=1)
    for page in obstore.list(store(config)):
        for one in page:
            obstore.put(store(there), one["path"], bytes(obstore.get(store(config), one["path"]).bytes()))
    root = core.root.parent / name
    root.mkdir()
    return RemoteCore(root, type(core.landing)(root), core.mailbox, Remote(there))


def dies_at(core: RemoteCore, what: str, step: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(core.root), str(step), what]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})


def check(core: RemoteCore, *, tagged: bool = False) -> None:
    rows = core.rows(TELEMETRY)
    assert sorted(row["seq"] for row in rows) == list(range(20))
    if tagged:
        assert {row["seq"] for row in rows if row["tags"] == ["fast"]} == set(range(6, 20))
    chips = core.rows(CHIPS)
    assert (len(core.rows(FRAMES)), len(chips)) == (6, 2)
    for row in [*core.rows(FRAMES), *chips]:
        read_payload(lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])
    for row in chips:
        assert core.remote.size(f"{row['zarr_path']}/zarr.json")


def check_whole(core: RemoteCore, *, tagged: bool = False) -> None:
    check(core, tagged=tagged)
    assert every_file(core.root) == referenced(core.root)
    here = {str(path.relative_to(core.root)) for path in core.root.rglob("*") if path.is_file()}
    locks = {name for name in here if name == "runs/maintain.lock" or name.startswith("policies/.retag-")}
    assert {name for name in here - locks - {"remote.json"} if core.remote.size(name) is None} == set()
    assert {name.split("/")[0] for name in here - locks - {"remote.json"}} <= {"runs", "sets"}


def leave_here(root: Path) -> list[Path]:
    """What killed processes leave in a working copy."""
    left = {
        "streams/camera_frame/000000000001-0.parquet": "fetched by a run that another machine took over",
        ".work/retag-x/streams/a.parquet": "of a retag that was killed",
        f"{SETS}/views/7/manifest.json": "never shared",
        "payload/camera_frame/.000000000001-0.parquet.7-7.tmp": "half fetched",
    }
    for name, body in left.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(body)
    return [root / name for name in left]


@pytest.mark.slow
def test_maintenance_and_a_retag_killed_in_a_bucket_are_done_again_with_the_same_rows_and_no_orphan_there_nor_here(
    filled: RemoteCore,
) -> None:
    assert every_file(filled.root) - referenced(filled.root)
    left = leave_here(filled.root)
    for what, step in (("retag", 5), ("maintenance", 45)):
        died = dies_at(filled, what, step)
        assert died.returncode == -signal.SIGKILL, (what, died.stderr)
        check(filled)
    retag(filled.root)
    maintenance(filled.root)
    check_whole(filled, tagged=True)
    assert not [path for path in left if path.exists()]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CATCHMENT_THOROUGH"), reason="some 200 kills, an hour; CATCHMENT_THOROUGH=1 does them")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("what", "fewest"), [("maintenance", 60), ("retag", 6)])
def test_what_is_killed_at_any_put_delete_or_commit_is_done_again_with_the_same_rows_and_no_orphan(
    filled: RemoteCore, what: str, fewest: int
) -> None:
    whole = dies_at(copied(filled, f"{what}-whole"), what, 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout.split()[-1])
    assert steps > fewest
    for step in range(1, steps + 1):
        lake = copied(filled, f"{what}-{step}")
        died = dies_at(lake, what, step)
        assert died.returncode == -signal.SIGKILL, (step, died.stderr)
        check(lake)
        {"maintenance": maintenance, "retag": retag}[what](lake.root)
        check(lake, tagged=what == "retag")
        maintenance(lake.root)
        check_whole(lake, tagged=what == "retag")
