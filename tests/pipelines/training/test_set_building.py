"""Builds in parts and on workers: the same bytes as in one piece, after any death, and with bounded memory."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import PayloadWriter
from pipelines.lake.payload_batch import PayloadRefs
from pipelines.lake.view import View
from pipelines.runners.engine import Engine
from pipelines.runners.run import local_cluster
from pipelines.training.build import BuildOptions, build_set, wish_of_spec
from pipelines.training.building.part_files import PartBody, PartSummary, SortedPart
from pipelines.training.building.shard_plan import plan_shards
from pipelines.training.building.versions import Terms, build_version
from pipelines.training.grouping import GroupTable
from pipelines.training.manifest import Manifest
from pipelines.training.open import open_set
from pipelines.training.shards import Progress, ShardLimits
from pipelines.training.spec_file import parse_spec
from pipelines.training.split import shard_bounds
from tests.pipelines.training.conftest import drive

ROOT = Path(__file__).resolve().parents[3]
SPEC = """
id: drives
sources: [{stream: telemetry, where: speed >= 0}, {stream: more}]
joins: [{stream: positions, columns: [lat], tolerance: 2 s, age: age_s}]
derive: [{name: pace, value: "CASE WHEN speed > 150 THEN 'fast' ELSE 'slow' END"}]
label: {column: event, classes: {idle: calm, turn: busy, brake: busy}}
caps: [{per: [device, pace], rows: 220}]
sample: {share: 0.9, rows: 1500}
split: {shares: {train: 0.6, test: 0.4}, group: [device], block: 4 s, gap: 100 ms, stratify: [label]}
balance: {splits: [train], undersample: true, weights: weight}
shards: {max_rows: 300}
seed: 3
"""


def files_of(manifest: Manifest) -> list[tuple[str, int, str]]:
    return [(file.path, file.rows, file.sha256) for file in manifest.files]


@pytest.fixture
def roads(tmp_path: Path) -> Path:
    """Two streams in several files and row groups, and one to join."""
    root = tmp_path / "roads"
    for car in range(5):
        times = [number / 10 for number in range(300)]
        stream = "telemetry" if car < 3 else "more"
        events = [["idle", "turn", "brake"][int(at) % 3] for at in times]
        rows = drive(f"car-{car}", times, speed=[car * 50.0 + at for at in times], event=list(events))
        write_deltalake(root / f"streams/{stream}", rows, mode="append")
        positions = drive(f"car-{car}", [at * 1.0 for at in range(0, 30, 3)], lat=[car + at / 100 for at in range(10)])
        write_deltalake(root / "streams/positions", positions, mode="append")
    return root


def build(root: Path, text: str = SPEC, part_rows: int = 1_000_000) -> Manifest:
    terms = Terms(Engine(), reassign=True, part_rows=part_rows)
    return build_version(lake_at(root), wish_of_spec(parse_spec(text)), terms)


@pytest.mark.parametrize("order", ["shuffled", "time"])
def test_a_set_is_the_same_in_one_part_and_in_many(roads: Path, order: str) -> None:
    whole, parted = (build(roads, f"{SPEC}order: {order}\n", part_rows=rows) for rows in (1_000_000, 1))
    assert files_of(whole) == files_of(parted)
    assert (whole.left_out, whole.notes, whole.coverage, whole.sources) == (
        parted.left_out, parted.notes, parted.coverage, parted.sources
    )  # fmt: skip
    assert len(whole.shards) > 3
    assert max(shard.rows for shard in whole.shards) == 300


def build_frames(lake: Path, engine: Engine) -> Manifest:
    options = BuildOptions({"train": 0.5, "test": 0.5}, limits=ShardLimits(max_rows=20), reassign=True, engine=engine)
    return build_set(lake_at(lake), "frames", ("camera_frame",), options=options)


def test_a_set_is_the_same_on_dask_workers(lake: Path) -> None:
    here = build_frames(lake, Engine())
    with local_cluster(2) as address:
        there = build_frames(lake, Engine("dask", (f"--dask_client_address={address}",)))
    assert len(here.shards) > 8, "more than are done without a graph"
    assert files_of(here) == files_of(there)


@pytest.mark.slow
def test_a_set_is_the_same_on_prism(lake: Path, prism: str) -> None:
    here = build_frames(lake, Engine())
    there = build_frames(lake, Engine("prism", (f"--prism_location={prism}",)))
    assert len(here.shards) > 8, "more than are done without a graph"
    assert files_of(here) == files_of(there)


KILLED = """
import sys
from pathlib import Path
from pipelines.lake.lake import lake_at
from pipelines.runners.engine import Engine
from pipelines.training.building.versions import Terms, build_version
from pipelines.training.build import wish_of_spec
from pipelines.training.spec_file import parse_spec

print("ready", flush=True)
wish = wish_of_spec(parse_spec(Path(sys.argv[2]).read_text()))
build_version(lake_at(Path(sys.argv[1])), wish, Terms(Engine(), reassign=True, part_rows=1))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_build_that_is_killed_anywhere_goes_on_to_the_same_bytes(roads: Path, tmp_path: Path) -> None:
    text = SPEC.replace("max_rows: 300", "max_rows: 40")
    (tmp_path / "spec.yaml").write_text(text)
    wanted = files_of(build(roads, text, part_rows=1))
    home = roads / "sets/drives"
    seen: set[str] = set()
    for number in range(6):
        command = [sys.executable, "-c", KILLED, str(roads), str(tmp_path / "spec.yaml")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            while process.poll() is None and len(list(home.glob(".build-*/*.json"))) < 4 * number:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        seen |= {path.name for path in home.glob(".build-*/*")}
    assert any(name.startswith("part-") for name in seen)
    assert any(name.startswith("shard-") for name in seen)
    done = build(roads, text, part_rows=1)
    assert files_of(done) == wanted
    assert list(home.glob(".build-*")) == []


def test_finished_work_of_a_killed_build_is_not_done_again(roads: Path) -> None:
    class StopError(BaseException):
        pass

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    wish, terms = wish_of_spec(parse_spec(SPEC)), Terms(Engine(), part_rows=1)
    with pytest.raises(KeyboardInterrupt):
        build_version(lake_at(roads), wish, terms, notice=stop)
    (work,) = (roads / "sets/drives").glob(".build-*")
    before = {path: path.stat().st_mtime_ns for path in work.glob("part-*.rows.arrow")}
    with pytest.raises(KeyboardInterrupt):
        build_version(lake_at(roads), wish, terms, notice=stop)
    assert {path: path.stat().st_mtime_ns for path in work.glob("part-*.rows.arrow")} == before
    assert len(before) == 5


def test_work_that_follows_from_other_rows_is_removed_by_the_next_build(roads: Path) -> None:
    left = roads / "sets/drives/.build-rows-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "part-000000.json").write_text("{}")
    build(roads)
    assert [path.name for path in (roads / "sets/drives").iterdir()] == ["1"]


def grown(root: Path, device: str) -> None:
    """A device appears with as many rows as cam-0 has."""
    table = DeltaTable(root / "streams/camera_frame")
    rows = table.to_pyarrow_table().filter(pc.field("device") == "cam-0")
    at = rows.schema.get_field_index("device")
    write_deltalake(table, rows.set_column(at, "device", pa.array([device] * len(rows), pa.string())), mode="append")


@pytest.mark.parametrize("with_payload", [True, False])
def test_a_new_version_shares_the_shards_that_it_holds_unchanged(lake: Path, with_payload: bool) -> None:
    options = BuildOptions({"train": 0.5, "test": 0.5}, limits=ShardLimits(max_rows=30), with_payload=with_payload)
    first = build_set(lake_at(lake), "frames", ("camera_frame",), options=options)
    grown(lake, "cam-99")
    second = build_set(lake_at(lake), "frames", ("camera_frame",), options=options)
    home = lake / "sets/frames"
    old = {shard.sha256: home / "1" / shard.path for shard in first.shards}
    same = [shard for shard in second.shards if shard.sha256 in old]
    assert len(same) >= len(first.shards) - 2
    assert all((home / "2" / shard.path).samefile(old[shard.sha256]) for shard in same)
    assert any("are those of the version before" in note for note in second.notes)
    fresh = build_set(lake_at(lake), "anew", ("camera_frame",), options=options)
    assert {(tag.split, tag.tag): tag.rows for tag in second.tags}.keys() == {(tag.split, tag.tag) for tag in fresh.tags}
    assert second.rows == first.rows + (19 if with_payload else 20) == fresh.rows
    for split in ("train", "test"):
        samples = open_set(home / "2", split)
        assert samples.verify() > 0
        for sample in samples:
            assert not sample.payload or hashlib.sha256(sample.payload).hexdigest() == sample["payload_sha256"]
    keys = [key for split in ("train", "test") for key in open_set(home / "2", split).to_arrow(["device", "seq"]).to_pylist()]
    assert len({(key["device"], key["seq"]) for key in keys}) == second.rows


def test_a_shard_of_which_a_row_changed_is_written_again(lake: Path) -> None:
    options = BuildOptions({"train": 0.5, "test": 0.5}, limits=ShardLimits(max_rows=30))
    first = build_set(lake_at(lake), "frames", ("camera_frame",), options=options)
    DeltaTable(lake / "streams/camera_frame").update(predicate="device = 'cam-3' AND seq = 7", updates={"brightness": "99.0"})
    second = build_set(lake_at(lake), "frames", ("camera_frame",), options=options)
    values = [
        row["brightness"]
        for split in ("train", "test")
        for row in open_set(lake / "sets/frames/2", split).to_arrow(["device", "seq", "brightness"]).to_pylist()
        if (row["device"], row["seq"]) == ("cam-3", 7)
    ]
    assert values == [99.0]
    kept = {shard.sha256 for shard in first.shards} & {shard.sha256 for shard in second.shards}
    assert 0 < len(kept) < len(first.shards)
    assert second.rows == first.rows


def test_progress_counts_the_rows_of_both_graphs(roads: Path) -> None:
    class Kept(Progress):
        def __init__(self) -> None:
            self.stages: dict[str, list[int]] = {}

        def stage(self, name: str) -> None:
            self.stages[name] = []

        def total(self, rows: int) -> None:
            list(self.stages.values())[-1].append(rows)

        def wrote(self, rows: int) -> None:
            list(self.stages.values())[-1].append(-rows)

    kept = Kept()
    manifest = build_version(lake_at(roads), wish_of_spec(parse_spec(SPEC)), Terms(Engine(), part_rows=1), progress=kept)
    assert {name: sum(counts) for name, counts in kept.stages.items()} == {"rows selected": 0, "samples written": 0}
    assert [counts[0] for counts in kept.stages.values()] == [1_500, manifest.rows]


def test_an_error_of_a_worker_keeps_its_family(roads: Path) -> None:
    for path in (roads / "streams/more").glob("*.parquet"):
        path.write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(CorruptLakeError, match="cannot be read"):
        build(roads)
    with pytest.raises(RefusedError, match="classes are not listed under label: brake, turn"):
        build(roads, SPEC.replace("turn: busy, brake: busy", "x: y").replace(", {stream: more}", ""))
    assert not (roads / "sets/drives").exists()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_shards_of_many_parts_are_cut_as_those_of_all_rows_at_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    work = tmp_path_factory.mktemp("parts")
    limits = ShardLimits(max_rows=data.draw(st.integers(1, 8)), max_bytes=data.draw(st.integers(1, 30)))
    keys = [sorted(part) for part in data.draw(st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4))]
    lengths = [data.draw(st.lists(st.integers(0, 12), min_size=len(part), max_size=len(part))) for part in keys]
    groups = [data.draw(st.lists(st.integers(0, 1), min_size=len(part), max_size=len(part))) for part in keys]
    parts = []
    none = np.zeros(0, np.int64)
    for number, (key, length, group) in enumerate(zip(keys, lengths, groups, strict=True)):
        part = SortedPart(work, number)
        names = GroupTable(pa.array(["a", "b"]), np.zeros(2, np.int64), none, none, none, (), 0)
        order, of_row = np.array([key], np.int64), np.array(group, np.int64)
        body = PartBody(pa.table({"k": pa.array(key, pa.int64())}), order, of_row, np.array(length, np.int64), names)
        part.write(body, PartSummary(number, len(key), len(key), {}, {}, (), 0, (), 0, (), ()))
        part.assign(np.array([0, 1], np.int64))
        parts.append(part)
    merged = sorted(
        (key, number, at, length, group)
        for number, part in enumerate(zip(keys, lengths, groups, strict=True))
        for at, (key, length, group) in enumerate(zip(*part, strict=True))
    )
    for split, found in enumerate(plan_shards(parts, 2, limits, has_payload=True)):
        own = [row[3] for row in merged if row[4] == split]
        wanted = shard_bounds(np.array(own, np.int64), limits.max_rows, limits.max_bytes)
        assert list(found.rows) == [high - low for low, high in wanted]
        assert found.ends[-1].tolist() == [len(part) for part in keys]


MEASURED = """
import json, sys
from pathlib import Path
from pipelines.lake.lake import lake_at
from pipelines.training.build import BuildOptions, build_set

manifest = build_set(lake_at(Path(sys.argv[1])), "wide", ("rows",), options=BuildOptions({"train": 0.5, "test": 0.5}))
status = Path("/proc/self/status").read_text().splitlines()
print(json.dumps([manifest.rows, next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for files in (2, 8):
        root = tmp_path / str(files)
        for number in range(files):
            count = 500_000
            write_deltalake(root / "streams/rows", pa.table({
                "device": pa.array(np.char.add("d-", (np.arange(count) % 50).astype(str))),
                "epoch": pa.array(np.ones(count, np.int64)),
                "seq": pa.array(np.arange(count) + number * count),
                "value": pa.array(np.arange(count) * 1.0),
            }), mode="append")  # fmt: skip
        done = subprocess.run([sys.executable, "-c", MEASURED, str(root)], cwd=ROOT, check=True, capture_output=True)
        rows, peak_mib = json.loads(done.stdout)
        assert rows == files * 500_000
        peaks.append(peak_mib)
    assert peaks[1] < peaks[0] + 400, peaks


def test_two_blocks_of_payloads_are_held_whatever_a_shard_holds(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[int] = []
    read, append = View.payloads, PayloadWriter.append

    def reading(view: View, refs: PayloadRefs) -> pa.Array:
        events.append(int(refs.lengths.sum()))
        return read(view, refs)

    def appending(writer: PayloadWriter, rows: pa.Table) -> None:
        append(writer, rows)
        events.append(-pc.sum(pc.binary_length(rows.column("payload"))).as_py())

    monkeypatch.setattr(View, "payloads", reading)
    monkeypatch.setattr(PayloadWriter, "append", appending)
    options = BuildOptions({"train": 1.0}, limits=ShardLimits(block_bytes=4_000))
    manifest = build_set(lake_at(lake), "frames", ("camera_frame",), options=options)
    held = np.cumsum(events)
    assert len(manifest.shards) == 1
    assert max(events) <= 4_000 < manifest.bytes // 10
    assert held.max() <= 3 * 4_000, "one is written, one is ready, one is being read"
    assert held[-1] == 0
