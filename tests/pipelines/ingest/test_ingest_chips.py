"""Slides become chips in runs of their own: they hold no stream up, break nothing, and are cut again when asked."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import tifffile

from catchment.runtime.clock import SystemClock
from pipelines.config import ChipsConfig, CoreConfig, RunConfig
from pipelines.contracts.odcs import to_odcs
from pipelines.imaging import work
from pipelines.imaging.store import ChipPlace, SlideRef
from pipelines.ingest.chips.loop import ChipLoop, ChipThread, commit_tables
from pipelines.ingest.chips.requests import open_requests, read_cut_plan, read_last_cut
from pipelines.ingest.loop import NoReceipts, RunLoop
from pipelines.ingest.quarantine import Request, write_request
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from pipelines.runners.engine import Engine
from schemas.contract import ChipSpec, builtin_contract
from schemas.ids import DeviceId, Digest, SampleKey, StreamName
from tests.fakes.run_core import RunCore
from tests.plant.core import AsIpc, Core, MakeEnvelope, cut_all
from tests.plant.slides import half_white, landed, tiff_slide

ROOT = Path(__file__).resolve().parents[3]
SLIDES, CHIPS, TELEMETRY, QUARANTINE = "streams/slide", "streams/slide_chips", "streams/vehicle_telemetry", "quarantine"
DIES_AT_BAND = """
import os, signal, sys
from pathlib import Path
from pipelines.imaging import work

def note(text):
    words = text.split()
    if words[0] == "band" and int(words[1]) * 2 >= int(words[3]):
        os.kill(os.getpid(), signal.SIGKILL)

work.cut_slide(work.decode_task(Path(sys.argv[1]).read_bytes()), note)
"""


def tiff(folder: Path, shape: tuple[int, ...] = (300, 400, 3), seed: int = 1, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    path = folder / f"{seed}.tif"
    tifffile.imwrite(path, pixels, **{"tile": (64, 64), "photometric": "rgb", **options})
    return path.read_bytes()


@pytest.fixture
def slides(envelope: MakeEnvelope, as_ipc: AsIpc) -> Callable[..., Any]:
    """A row of the landing with slides in it."""

    def make(bodies: Sequence[bytes], first: int = 0) -> Any:
        batch = pa.record_batch(
            {
                "event_time": pa.array([1_790_000_000_000_000] * len(bodies)).cast(pa.timestamp("us", "UTC")),
                "media_type": ["image/tiff"] * len(bodies),
                "payload": pa.array(bodies, pa.binary()),
                "payload_sha256": [hashlib.sha256(body).hexdigest() for body in bodies],
            }
        )
        return envelope(first, len(bodies), stream="slide", body=as_ipc(batch))

    return make


def with_specs(core: Core, *specs: ChipSpec, **chips: Any) -> CoreConfig:
    """The core's configuration with a contract for slides that has these specs, and other limits."""
    contract = msgspec.structs.replace(builtin_contract("slide"), version="9.0.0", chips=specs)
    folder = core.root.parent / "contracts"
    folder.mkdir(exist_ok=True)
    (folder / "slide.odcs.yaml").write_text(to_odcs(contract))
    return msgspec.structs.replace(core.config, contracts=str(folder), chips=ChipsConfig(**chips))


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def chips_of(core: Core) -> dict[int, int]:
    found = [row["seq"] for row in core.rows(CHIPS)]
    return {seq: found.count(seq) for seq in sorted(set(found))}


def test_a_run_commits_its_rows_before_any_of_its_slides_is_cut(
    core: Core, envelope: MakeEnvelope, slides: Callable[..., Any], tmp_path: Path
) -> None:
    core.landing.seal([envelope(0, 10), slides([tiff(tmp_path)])])
    loop = core.loop()
    assert loop.step()
    assert (len(core.rows(TELEMETRY)), len(core.rows(SLIDES)), core.rows(CHIPS)) == (10, 1, [])
    assert set(core.mailbox.messages), "the receipt has gone out"
    cut_all(core.config, loop)
    assert chips_of(core) == {0: 4}
    assert open_requests(lake_at(core.root)) == []


@pytest.mark.slow
def test_other_streams_commit_while_a_slide_is_being_cut(
    core: Core, envelope: MakeEnvelope, slides: Callable[..., Any], tmp_path: Path
) -> None:
    core.config = with_specs(core, ChipSpec("dense", 256, 252))
    core.landing.seal([slides([tiff(tmp_path, (700, 700, 3))])])
    loop = core.loop()
    loop.step()
    with ChipThread(ChipLoop(core.config, SystemClock(), lambda: loop.ledger.run)):
        while not list((core.root / "chips").glob("slide/dense/*.parquet")):
            time.sleep(0.02)
        for number in range(3):
            core.landing.seal([envelope(number * 10, 10)])
            assert loop.step()
        assert read_cut_plan(lake_at(core.root), 1) is not None, "the slide is still being cut"
        assert len(core.rows(TELEMETRY)) == 30


@pytest.mark.slow
def test_a_slide_that_ends_its_process_is_a_rejection_and_the_others_are_cut(
    core: Core, slides: Callable[..., Any], tmp_path: Path
) -> None:
    core.config = with_specs(core, ChipSpec("s64", 64), worker_memory_bytes=512 * 1024**2)
    zeros = np.zeros((12_000, 21_000), np.uint8)  # one strip that a decoder takes at once
    tifffile.imwrite(tmp_path / "z.tif", zeros, rowsperstrip=12_000, compression="zlib", predictor=True)
    bodies = [tiff(tmp_path, seed=1), (tmp_path / "z.tif").read_bytes(), tiff(tmp_path, seed=2)]
    core.landing.seal([slides(bodies)])
    core.run()
    assert set(chips_of(core)) == {0, 2}
    (refused,) = core.rows(QUARANTINE)
    assert (refused["stage"], refused["stream"], refused["seq"], refused["count"]) == ("chips", "slide", 1, 0)
    assert refused["reason"].startswith("s64: ")
    assert len(core.rows(SLIDES)) == 3


def test_a_band_that_takes_too_long_refuses_its_slide_by_that_reason(
    core: Core, slides: Callable[..., Any], tmp_path: Path
) -> None:
    core.config = with_specs(core, ChipSpec("s64", 64), band_timeout_s=1e-4)
    core.landing.seal([slides([tiff(tmp_path)])])
    core.run()
    (refused,) = core.rows(QUARANTINE)
    assert "took longer than 0.0001 s" in refused["reason"]
    assert [path for path in (core.root / "chips").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_a_raised_limit_helps_a_refused_slide_once_it_is_replayed(core: Core, slides: Callable[..., Any], tmp_path: Path) -> None:
    core.config = msgspec.structs.replace(core.config, run=RunConfig(max_image_pixels=1_000))
    core.landing.seal([slides([tiff(tmp_path)])])
    core.run()
    (refused,) = core.rows(QUARANTINE)
    assert "above the limit of 1000 pixels" in refused["reason"]
    core.config = msgspec.structs.replace(core.config, run=RunConfig())
    write_request(lake_at(core.root), Request("replay", (refused["id"],), 7))
    loop = core.run()
    assert chips_of(core) == {0: 4}
    assert [row["id"] for row in core.rows("quarantine_closed")] == [refused["id"]]
    assert not loop.ledger.unbalanced()


@pytest.mark.slow
def test_a_corrected_contract_replaces_the_plan_that_a_failed_try_has_left(
    core: Core, slides: Callable[..., Any], tmp_path: Path
) -> None:
    core.config = with_specs(core, ChipSpec("mistaken", 64))
    core.landing.seal([slides([tiff(tmp_path)])])
    loop = core.loop()
    loop.step()
    with pytest.raises(KeyboardInterrupt):
        cut_all(core.config, loop, killed)
    assert read_cut_plan(lake_at(core.root), 1) is not None
    core.config = with_specs(core, ChipSpec("right", 256))
    core.run()
    assert {row["spec"] for row in core.rows(CHIPS)} == {"right"}
    assert chips_of(core) == {0: 4}


@pytest.mark.slow
def test_a_cut_that_is_killed_between_its_commits_ends_the_same_at_the_next_try(
    core: Core, slides: Callable[..., Any], tmp_path: Path
) -> None:
    def killed_after_the_tables(*cut: Any) -> None:
        commit_tables(*cut)
        raise KeyboardInterrupt

    core.landing.seal([slides([tiff(tmp_path), b"no picture"])])
    loop = core.loop()
    loop.step()
    with pytest.raises(KeyboardInterrupt):
        cut_all(core.config, loop, killed_after_the_tables)
    core.run()
    assert chips_of(core) == {0: 4}
    assert [row["seq"] for row in core.rows(QUARANTINE)] == [1]
    assert read_last_cut(lake_at(core.root)).cut == 1
    assert read_cut_plan(lake_at(core.root), 1) is None


def test_a_slide_whose_bytes_are_gone_is_a_rejection_that_names_them(
    core: Core, slides: Callable[..., Any], tmp_path: Path
) -> None:
    core.landing.seal([slides([tiff(tmp_path)])])
    loop = core.loop()
    loop.step()
    (row,) = core.rows(SLIDES)
    (core.root / row["payload_shard"]).unlink()
    cut_all(core.config, loop)
    (refused,) = core.rows(QUARANTINE)
    assert f"there is no {row['payload_shard']}" in refused["reason"]


@pytest.mark.slow
def test_a_compaction_between_run_and_cut_loses_no_slide(core: Core, slides: Callable[..., Any], tmp_path: Path) -> None:
    from pipelines.lake.compact import compact_all

    for seq in range(2):
        core.landing.seal([slides([tiff(tmp_path, seed=seq)], seq)])
        loop = core.loop()
        while loop.step():
            pass
    before = {row["payload_shard"] for row in core.rows(SLIDES)}
    compact_all(lake_at(core.root), 2)
    for shard in before - {row["payload_shard"] for row in core.rows(SLIDES)}:
        (core.root / shard).unlink(missing_ok=True)
    cut_all(core.config, loop)
    assert chips_of(core) == {0: 4, 1: 4}


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 128])
def test_a_slide_that_is_killed_at_half_decodes_at_most_55_of_100_tiles_at_the_next_try(tmp_path: Path, overlap: int) -> None:
    body = tiff(tmp_path, (5120, 1280, 3), tile=(256, 256), compression="zlib")
    (tmp_path / "objects").mkdir()
    shard = f"objects/{hashlib.sha256(body).hexdigest()}"
    (tmp_path / shard).write_bytes(body)
    key = SampleKey(DeviceId("scanner-1"), StreamName("slide"), 3, 0)
    slide = SlideRef(key, Digest(shard[-64:]), shard, 0, len(body), ChipSpec("s256", 256, overlap))
    task = work.SlideTask(lake_at(tmp_path), ChipPlace("slide", "s256", 1, 0), slide, 10**9)
    (tmp_path / "task").write_bytes(work.encode_task(task))
    command = [sys.executable, "-W", "ignore", "-c", DIES_AT_BAND, str(tmp_path / "task")]
    killed = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    done = work.cut_slide(task)
    tiles = 100
    assert done.rejection is None
    assert 0.4 * tiles <= done.tiles_decoded <= 0.55 * tiles


@pytest.mark.slow
def test_chips_refer_to_pictures_that_are_there(core: Core, slides: Callable[..., Any], tmp_path: Path) -> None:
    core.landing.seal([slides([tiff(tmp_path), tiff(tmp_path, seed=2)])])
    core.run()
    for row in core.rows(CHIPS):
        body = read_payload(
            lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"]
        )
        assert hashlib.sha256(body).hexdigest() == row["payload_sha256"]
        assert row["run"] == 1


def test_the_run_loop_of_a_command_leaves_slides_to_the_loop_that_is_at_work(
    core: Core, slides: Callable[..., Any], tmp_path: Path
) -> None:
    core.landing.seal([slides([tiff(tmp_path)])])
    loop = RunLoop(core.config, NoReceipts(), SystemClock(), Engine())
    while loop.step():
        pass
    assert len(open_requests(lake_at(core.root))) == 1


@pytest.mark.slow
def test_committed_slides_are_cut_by_a_new_spec_once_however_often_it_is_requested(
    core: Core, slides: Callable[..., Any], tmp_path: Path, run_core: RunCore
) -> None:
    core.config = with_specs(core, ChipSpec("s256", 256))
    core.landing.seal([slides([tiff(tmp_path), tiff(tmp_path, seed=2), b"no picture"])])
    core.run()
    with_specs(core, ChipSpec("s256", 256), ChipSpec("s128", 128))
    (tmp_path / "core.toml").write_text(f'lake = "{core.root}"\ncontracts = "contracts"\n')
    command = ("chips", "cut", "-c", str(tmp_path / "core.toml"), "--spec", "s128", "--where", "seq > 0", "--json")
    results = [run_core(*command) for _ in range(2)]
    assert [result.code for result in results] == [0, 0], results
    first, second = (json.loads(result.out.splitlines()[-1])[0] for result in results)
    assert first == {"slides": 2, "cut": 1, "cut_before": 0, "not_cut": 1}
    assert second == {"slides": 2, "cut": 0, "cut_before": 1, "not_cut": 1}
    assert "slides" in results[0].err, "the progress bar"
    specs = [(row["seq"], row["spec"]) for row in core.rows(CHIPS)]
    assert {pair: specs.count(pair) for pair in specs} == {(0, "s256"): 4, (1, "s256"): 4, (1, "s128"): 12}
    assert run_core(*command[:-4], "--spec", "s9").code == 2


@pytest.mark.slow
def test_a_spec_that_says_something_else_under_its_name_has_its_slides_cut_again_and_their_old_chips_dropped(
    core: Core, slides: Callable[..., Any], tmp_path: Path, run_core: RunCore
) -> None:
    core.config = with_specs(core, ChipSpec("tiles", 256), ChipSpec("other", 256))
    core.landing.seal([slides([tiff(tmp_path), tiff(tmp_path, seed=2)])])
    core.run()
    with_specs(core, ChipSpec("tiles", 128), ChipSpec("other", 256))
    (tmp_path / "core.toml").write_text(f'lake = "{core.root}"\ncontracts = "contracts"\n')
    command = ("chips", "cut", "-c", str(tmp_path / "core.toml"), "--where", "seq = 1", "--json")
    first, second = (run_core(*command) for _ in range(2))
    assert "1 slides have chips of an earlier form of tiles; they are cut again" in first.err
    assert json.loads(first.out.splitlines()[-1])[0] == {"slides": 1, "cut": 1, "cut_before": 1, "not_cut": 0}
    assert json.loads(second.out.splitlines()[-1])[0] == {"slides": 1, "cut": 0, "cut_before": 2, "not_cut": 0}
    specs = [(row["seq"], row["spec"]) for row in core.rows(CHIPS)]
    counts = {pair: specs.count(pair) for pair in specs}
    assert counts == {(0, "tiles"): 4, (0, "other"): 4, (1, "other"): 4, (1, "tiles"): 12}


def test_a_chip_above_the_specs_background_keeps_its_row_and_has_no_picture(core: Core, tmp_path: Path) -> None:
    core.config = with_specs(core, ChipSpec("s32", 32, max_background=0.5))
    core.landing.seal([landed([tiff_slide(half_white(96))])])
    core.run()
    rows = sorted(core.rows(CHIPS), key=lambda row: row["chip_index"])
    assert [row["payload_shard"] is None for row in rows] == [True] * 3 + [False] * 6
    assert [row["background"] for row in rows] == [1.0] * 3 + [0.5] * 3 + [0.0] * 3
    for row in rows[3:]:
        body = read_payload(
            lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"]
        )
        assert hashlib.sha256(body).hexdigest() == row["payload_sha256"]
    assert {row["payload_row"] for row in rows[:3]} == {None}
