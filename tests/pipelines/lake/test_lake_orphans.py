"""After a vacuum a lake holds what something refers to, and not one file more: folder and working copy, every kind of orphan."""

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from deltalake import DeltaTable

from pipelines.bridge.rows import LandingRow
from pipelines.lake.claims import held_alone
from pipelines.lake.compact import compact_all
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import retag_lock_path
from pipelines.lake.payload import read_payload
from pipelines.maintenance.vacuum import Keep, Vacuum
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.open import open_set
from tests.fakes.inventory import every_file, referenced
from tests.faults.deaths import Deaths
from tests.plant.core import AsIpc, Core, MakeEnvelope, MakeFrames, cut_all

ROOT = Path(__file__).resolve().parents[3]
STEPS = range(10, 130, 5) if os.environ.get("CATCHMENT_THOROUGH") else (60,)
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from pipelines.lake.lake import lake_at
from pipelines.training import build
from pipelines.training.building import versions

versions.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
build.build_set(lake_at(Path(sys.argv[1])), "views", ("camera_frame",), options=build.BuildOptions(split={"train": 1.0}))
"""
NOTHING = Keep(0, 0, 0, 0, 0)
SPEC = "chips/slide/s256"  # of the built-in contract
ROWS = "streams/slide_chips/cut-000000000001-0.parquet"


def picture(folder: Path, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
    tifffile.imwrite(folder / f"{seed}.tif", pixels, tile=(16, 16), photometric="rgb")
    return (folder / f"{seed}.tif").read_bytes()


@pytest.fixture
def slide(envelope: MakeEnvelope, as_ipc: AsIpc, tmp_path: Path) -> Any:
    def make(seq: int) -> Any:
        body = picture(tmp_path, seq)
        batch = pa.record_batch(
            {
                "event_time": pa.array([1_790_000_000_000_000]).cast(pa.timestamp("us", "UTC")),
                "media_type": ["image/tiff"],
                "payload": pa.array([body], pa.binary()),
                "payload_sha256": [hashlib.sha256(body).hexdigest()],
            }
        )
        return envelope(seq, 1, stream="slide", body=as_ipc(batch))

    return make


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pristine") / "lake"


@pytest.fixture
def lake(core: Core, envelope: MakeEnvelope, frames: MakeFrames, slide: Callable[[int], LandingRow], kept: Path) -> Any:
    """Two runs with rows of three streams, one of them cut into chips; made once, then copied."""
    if kept.exists():
        shutil.copytree(kept, core.root, dirs_exist_ok=True)
        core.landing.numbers = itertools.count(3)
        return core
    for run in range(2):
        refused = envelope(run, 1, body=b"garbage", device="car-2")
        pictures = envelope(run * 3, 3, stream="camera_frame", body=frames(run * 3, 3))
        core.landing.seal([envelope(run * 10, 10), pictures, slide(run), refused])
        core.run()
    shutil.copytree(core.root, kept)
    return core


def check(core: Core) -> None:
    assert sorted(row["seq"] for row in core.rows("streams/vehicle_telemetry")) == list(range(20))
    chips = core.rows("streams/slide_chips")
    assert len(chips) == 2
    for row in [*core.rows("streams/camera_frame"), *chips]:
        read_payload(lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])
    for row in chips:
        import zarr

        array: Any = zarr.open_array(str(core.root / row["zarr_path"]), mode="r")
        assert array[row["chip_index"]].any()


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def leave(root: Path, name: str, body: bytes = b"left by a crash") -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return name


def leave_all_kinds(root: Path) -> list[str]:
    """What kills leave, by place and by name; the run numbers are of runs that are committed."""
    left = [
        leave(root, f"{SPEC}/000000000001-7-00000.parquet"),
        leave(root, f"{SPEC}/000000000001-7.zarr/zarr.json"),
        leave(root, f"{SPEC}/000000000001-7.zarr/c/0/0/0/0"),
        leave(root, f"{SPEC}/cut-000000000001-0.zarr/zarr.0123456789abcdef.partial"),
        leave(root, f"{SPEC}/.000000000001-0-00000.parquet.77.tmp"),
        leave(root, "chips/.done/000000000001/0.json"),
        leave(root, "chips/.done/cut-000000000001/0.json"),
        leave(root, f"{SPEC}/cut-000000000001-7-00000.parquet"),
        leave(root, "payload/camera_frame/000000000001-9.parquet"),
        leave(root, "payload/camera_frame/.000000000001-9.parquet.77.tmp"),
        leave(
            root,
            "streams/slide_chips/000000000001-7.parquet",
            (root / "streams/slide_chips/cut-000000000001-0.parquet").read_bytes(),
        ),
        leave(root, "streams/camera_frame/.retag-0-1.parquet.77.tmp"),
        leave(root, "streams/camera_frame/_delta_log/_commit_0f0e.json.tmp"),
        leave(root, "streams/camera_frame/_delta_log/_last_checkpoint#1"),
        leave(root, "quarantine/000000000001-9.parquet"),
        leave(root, "quality/vehicle_telemetry/.x.parquet.77.tmp"),
        leave(root, "runs/.000000000001.json.77-1234.new"),
        leave(root, "runs/pins/.abc.json.77.tmp"),
        leave(root, "runs/backfill/b0-1-1/streams/vehicle_telemetry/000000000001-0.parquet"),
        leave(root, "sets/views/.build-77/train-00000.parquet"),
        leave(root, "landing/b0/.000000000001.arrows.77.tmp"),
        leave(root, "landing/.replay/000000000001.arrows.open"),
        leave(root, "lineage/a/b/c/.event.json.77.tmp"),
        leave(root, "status/.run-loop.json.77.tmp"),
        leave(root, ".tmp/run-77-x/beam-pipeline-tempabc/thing"),
    ]
    (root / "runs/backfill/b0-1-1/objects").symlink_to(root / "objects")
    return left


def test_after_a_vacuum_the_lake_holds_what_is_referred_to_and_nothing_else(lake: Core) -> None:
    built = build_set(lake_at(lake.root), "views", ("camera_frame",), options=BuildOptions(split={"train": 1.0}))
    whole = leave(lake.root, "objects/" + "a" * 64)
    left = leave_all_kinds(lake.root)
    compact_all(lake_at(lake.root), 2)
    assert {*left, whole} <= every_file(lake.root) - referenced(lake.root)
    would = Vacuum(lake_at(lake.root), NOTHING, dry_run=True).sweep()
    assert set(left) <= every_file(lake.root)
    assert Vacuum(lake_at(lake.root), NOTHING).sweep() == would
    assert every_file(lake.root) == referenced(lake.root)
    for folder in ("runs/backfill", SPEC + "/000000000001-7.zarr", "sets/views/.build-77", ".tmp/run-77-x"):
        assert not [path for path in (lake.root / folder).rglob("*") if path.is_dir()], folder
    check(lake)
    assert len(open_set(lake.root / "sets" / "views" / str(built.version))) == 6
    assert Vacuum(lake_at(lake.root), NOTHING).sweep().files == {}


def test_what_is_young_is_left_alone_whoever_may_be_writing_it(lake: Core) -> None:
    left = {name for name in leave_all_kinds(lake.root) if not name.startswith(".tmp/")}  # whose owner is known to be dead
    Vacuum(lake_at(lake.root), Keep(0, 0, 0, grace_s=3_600)).sweep()
    assert left <= every_file(lake.root)
    store = lake.root / SPEC / "000000000001-7.zarr"
    os.utime(store / "zarr.json", (1, 1))  # a store is as old as its newest file
    Vacuum(lake_at(lake.root), Keep(0, 0, 0, grace_s=3_600)).sweep()
    assert (store / "zarr.json").exists()


@pytest.mark.slow
def test_what_a_run_leaves_that_is_killed_while_it_cuts_chips_is_gone_after_the_run_and_a_vacuum(
    core: Core, slide: Callable[[int], LandingRow], deaths: Deaths
) -> None:
    core.landing.seal([slide(0)])
    for step in STEPS:  # the next one finds what the ones before have left
        deaths.kill("run", core.root, step)
    core.run()
    Vacuum(lake_at(core.root), NOTHING).sweep()
    assert every_file(core.root) == referenced(core.root)
    assert len(core.rows("streams/slide_chips")) == 1


@pytest.mark.slow
def test_what_a_build_of_a_set_leaves_that_is_killed_is_gone_after_a_vacuum(lake: Core) -> None:
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED_BUILD, str(lake.root)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -signal.SIGKILL
    (draft,) = (lake.root / "sets/views").iterdir()
    assert [path for path in draft.rglob("*") if path.is_file()]
    Vacuum(lake_at(lake.root), NOTHING).sweep()
    assert every_file(lake.root) == referenced(lake.root)
    check(lake)


@pytest.mark.slow
def test_chips_of_older_versions_are_kept_for_their_time_and_those_of_the_cut_in_hand_in_any_case(
    lake: Core, slide: Callable[[int], LandingRow]
) -> None:
    pinned = DeltaTable(lake.root / "streams/slide_chips").version()
    compact_all(lake_at(lake.root), 2)
    lake.landing.seal([slide(2)])
    loop = lake.loop()
    loop.step()
    with pytest.raises(KeyboardInterrupt):
        cut_all(lake.config, loop, _killed)
    Vacuum(lake_at(lake.root), Keep(168, 0, 0, 0)).sweep()
    rows = pa.table(DeltaTable(lake.root / "streams/slide_chips", version=pinned).to_pyarrow_table()).to_pylist()
    assert len(rows) == 2
    Vacuum(lake_at(lake.root), NOTHING).sweep()
    lake.run()
    assert len(lake.rows("streams/slide_chips")) == 3
    Vacuum(lake_at(lake.root), NOTHING).sweep()
    assert every_file(lake.root) == referenced(lake.root)


def test_a_table_that_is_being_tagged_anew_waits_for_the_next_vacuum(lake: Core) -> None:
    """Second names of old files are as old as those: no grace covers them."""
    kept = lake.root / "streams/vehicle_telemetry/kept-0.parquet"
    shutil.copy2(next(kept.parent.glob("0*.parquet")), kept)
    with held_alone(retag_lock_path(lake.root, "vehicle_telemetry")):
        Vacuum(lake_at(lake.root), NOTHING).sweep()
    assert kept.exists()
    Vacuum(lake_at(lake.root), NOTHING).sweep()
    assert not kept.exists()
