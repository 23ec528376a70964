# ruff: noqa: F401, F811  # fixtures of a neighbour
"""Upkeep and retags of a lake in a bucket, killed at their puts, deletes and commits: the same rows, and no orphan afterwards."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import obstore
import pytest

from pipelines.config import RunConfig
from pipelines.lake.layout import SETS
from pipelines.lake.payload import read_payload
from pipelines.lake.remote import Remote, bind
from pipelines.lake.storage import store
from pipelines.training.build import BuildOptions, build_set
from tests.fakes.inventory import every_file, referenced
from tests.fakes.s3_server import S3
from tests.pipelines.ingest.test_ingest_on_s3 import RemoteCore, core, make_core, s3
from tests.pipelines.lake.conftest import frames
from tests.pipelines.lake.dies_in_bucket import retag, upkeep
from tests.pipelines.lake.test_lake_orphans import slide

SCRIPT = Path(__file__).with_name("dies_in_bucket.py")
ROOT = Path(__file__).resolve().parents[3]
TELEMETRY, FRAMES, CHIPS = "streams/vehicle_telemetry", "streams/camera_frame", "streams/slide_chips"
THOROUGH = bool(os.environ.get("CATCHMENT_THOROUGH"))


@pytest.fixture
def filled(core: RemoteCore, envelope: Any, frames: Any, slide: Any) -> RemoteCore:
    """Two runs with rows of three streams, one of them cut into chips; and what a crash before has left."""
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
        core.remote.put(f"{name}/000000000001-9.parquet", core.remote.get(_a_file(core, FRAMES))[0])
    core.remote.put(f"{SETS}/views/7/train-00000.parquet", b"its builder died")
    core.remote.put(f"{SETS}/views/.numbers/7", b"taken")
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
        read_payload(core.root, row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])
    for row in chips:
        assert core.remote.size(f"{row['zarr_path']}/zarr.json")


def check_whole(core: RemoteCore, *, tagged: bool = False) -> None:
    check(core, tagged=tagged)
    assert every_file(core.root) == referenced(core.root)
    stays = {"remote.json", "runs/maintain.lock"}
    here = {str(path.relative_to(core.root)) for path in core.root.rglob("*") if path.is_file()}
    assert {name for name in here - stays if not name.startswith("policies/.retag-")} == {
        name for name in here if name.startswith("runs/0") and (core.remote.size(name) is not None)
    }


@pytest.mark.slow
def test_a_vacuum_of_a_bucket_leaves_what_is_referred_to_and_nothing_else_there_and_here(filled: RemoteCore) -> None:
    built = build_set(filled.root, "views", ("camera_frame",), options=BuildOptions(split={"train": 1.0}))
    here = filled.root / "streams/camera_frame/000000000001-0.parquet"
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_bytes(b"fetched by a run that another machine took over")
    (filled.root / ".work/retag-x/streams").mkdir(parents=True)
    (filled.root / ".work/retag-x/streams/a.parquet").write_bytes(b"of a retag that was killed")
    (filled.root / SETS / "views" / "7").mkdir()
    (filled.root / SETS / "views" / "7" / "manifest.json").write_bytes(b"never shared")
    upkeep(filled.root)
    assert every_file(filled.root) == referenced(filled.root)
    check(filled)
    assert not here.exists()
    assert not (filled.root / ".work").exists() or not list((filled.root / ".work").iterdir())
    assert [path.name for path in sorted((filled.root / SETS / "views").iterdir()) if path.name.isdecimal()] == [
        str(built.version)
    ]


def sampled(steps: int, count: int) -> list[int]:
    every = list(range(1, steps + 1))
    return every if THOROUGH else every[steps // (2 * count) :: max(1, steps // count)][:count]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("what", "count"), [("upkeep", 3), ("retag", 2)])
def test_what_is_killed_at_a_put_a_delete_or_a_commit_is_done_again_with_the_same_rows_and_no_orphan(
    filled: RemoteCore, what: str, count: int
) -> None:
    whole = dies_at(copied(filled, f"{what}-whole"), what, 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout.split()[-1])
    assert steps > {"upkeep": 60, "retag": 6}[what]
    for step in sampled(steps, count):
        lake = copied(filled, f"{what}-{step}")
        died = dies_at(lake, what, step)
        assert died.returncode == 137, (step, died.stderr)
        check(lake)
        {"upkeep": upkeep, "retag": retag}[what](lake.root)
        check(lake, tagged=what == "retag")
        upkeep(lake.root)
        check_whole(lake, tagged=what == "retag")
    sys.stdout.write(f"{what}: {steps} steps\n")
