"""Building a set: what is in it, that nothing leaks between splits, that it never changes, that any tool opens it."""

import hashlib
import json
import os
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.index import SplitIndex
from pipelines.training.manifest import SplitRule, load_manifest
from pipelines.training.open import TrainingSet, open_set
from pipelines.training.order import state_from_bytes
from pipelines.training.select import select_rows
from pipelines.training.set_files import FolderFiles
from pipelines.training.shards import ShardLimits
from pipelines.training.split import plan_splits
from tests.pipelines.training.conftest import key_columns, tag_columns
from tests.plant.present import present

HALVES = {"train": 0.5, "test": 0.5}


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic_s(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


def built(lake: Path, where: str = "", streams: tuple[str, ...] = ("camera_frame",), **options: Any) -> Path:
    options = {"split": HALVES, **options}
    manifest = build_set(lake_at(lake), "frames", streams, where, seed=4, options=BuildOptions(**options), clock=FixedClock())
    return lake / "sets/frames" / str(manifest.version)


def keys_of(split: TrainingSet) -> list[tuple[str, int]]:
    rows = split.to_arrow(["device", "seq"])
    return list(zip(rows["device"].to_pylist(), rows["seq"].to_pylist(), strict=True))


def test_every_selected_row_with_a_payload_is_in_exactly_one_split(lake: Path) -> None:
    folder = built(lake)
    keys = keys_of(open_set(folder)) + keys_of(open_set(folder, "test"))
    assert len(keys) == len(set(keys)) == 239
    assert [(part.reason, part.rows) for part in load_manifest(folder / "manifest.json").left_out] == [("no payload", 1)]


def test_no_device_stands_on_both_sides(lake: Path) -> None:
    folder = built(lake)
    sides = [{device for device, _ in keys_of(open_set(folder, split))} for split in HALVES]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


@given(st.integers(0, 2**32), st.lists(st.one_of(st.none(), st.text(max_size=8)), min_size=1, max_size=50))
def test_rows_of_one_group_always_meet_in_one_split(seed: int, groups: list[str | None]) -> None:
    rule = SplitRule(("g",), (("train", 0.7), ("test", 0.3)), method="stratified")
    splits = plan_splits(pa.table({"g": pa.array(groups, pa.string())}), rule, seed).splits.tolist()
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))


def test_the_payload_and_columns_of_each_sample_belong_together(lake: Path) -> None:
    split = open_set(built(lake))
    assert len(split) > 0
    for sample in split:
        assert hashlib.sha256(present(sample.payload)).hexdigest() == sample["payload_sha256"] == sample.columns["payload_sha256"]
        assert set(sample.columns) == {column.name for column in split.manifest.columns}


def test_an_expression_selects_by_columns_and_tags(lake: Path) -> None:
    folder = built(lake, "has('dark') AND brightness >= 10")
    tables = [open_set(folder, split).to_arrow(["tags", "brightness"]) for split in HALVES]
    rows = pa.concat_tables(tables)
    assert len(rows) == sum(1 for i in range(240) if i != 3 and i % 7 in (1, 2))
    assert set(rows["brightness"].to_pylist()) == {10.0, 20.0}


def test_the_manifest_explains_where_the_set_came_from(lake: Path) -> None:
    manifest = load_manifest(built(lake, "has('dark')") / "manifest.json")
    assert manifest.policies == ("night@abc123",)
    assert [(source.stream, source.delta_version) for source in manifest.sources] == [("camera_frame", 0)]
    assert sum(count.rows for count in manifest.tags) == manifest.rows
    assert manifest.created_ms == FixedClock().now_ms()
    assert manifest.where == "has('dark')"


def test_a_pinned_version_gives_the_same_set_after_the_stream_has_grown(lake: Path) -> None:
    first = load_manifest(built(lake) / "manifest.json")
    write_deltalake(
        lake / "streams/camera_frame", DeltaTable(lake / "streams/camera_frame").to_pyarrow_table().slice(0, 9), mode="append"
    )
    again = load_manifest(built(lake, versions={"camera_frame": 0}) / "manifest.json")
    newer = load_manifest(built(lake) / "manifest.json")
    assert [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in again.shards]
    assert newer.rows > first.rows


def test_a_new_build_is_a_new_version_and_leaves_the_old_one_as_it_was(lake: Path) -> None:
    first = built(lake)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    second = built(lake)
    assert (first.name, second.name) == ("1", "2")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    assert all(path.stat().st_mode & 0o222 == 0 for path in first.iterdir())


def test_a_build_that_fails_leaves_nothing(lake: Path) -> None:
    (lake / "payload/camera_frame/000000000001-0.parquet").unlink()
    with pytest.raises(CorruptLakeError):
        built(lake)
    assert not (lake / "sets/frames").exists()


def test_duckdb_pyarrow_and_polars_read_a_set_without_our_code(lake: Path) -> None:
    folder = built(lake, limits=ShardLimits(max_rows=50))
    split = open_set(folder)
    glob = str(folder / "train-*.parquet")
    digests = [row[0] for row in duckdb.execute(f"select sha256(payload) from '{glob}' order by device, seq").fetchall()]
    expected = split.to_arrow(["device", "seq", "payload_sha256"]).sort_by([("device", "ascending"), ("seq", "ascending")])
    assert digests == expected["payload_sha256"].to_pylist()
    assert pl.scan_parquet(glob).select(pl.len()).collect().item() == len(split)
    tables = [pq.read_table(path) for path in sorted(folder.glob("train-*.parquet"))]
    assert len(tables) > 1
    assert pa.concat_tables(tables)["payload"].to_pylist() == [sample.payload for sample in split]
    with pa.memory_map(str(folder / "train.index.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().num_rows == len(split)
    assert json.loads((folder / "manifest.json").read_bytes())["name"] == "frames"


def test_a_tabular_set_reads_as_arrow_numpy_and_samples(lake: Path) -> None:
    split = open_set(built(lake, "speed > 100", ("vehicle_telemetry",), columns=("speed",)))
    assert not split.manifest.has_payload
    assert split[0].payload is None
    speeds = split.to_numpy(["speed"])["speed"]
    assert speeds.min() > 100
    assert [sample["speed"] for sample in split] == speeds.tolist()
    assert duckdb.execute(f"select count(*) from '{split.folder}/train-*.parquet'").fetchall() == [(len(split),)]


def test_streams_with_different_columns_stand_in_one_set(lake: Path) -> None:
    split = open_set(built(lake, "", ("camera_frame", "vehicle_telemetry"), with_payload=False))
    assert set(pc.unique(split.to_arrow(["stream"])["stream"]).to_pylist()) == {"camera_frame", "vehicle_telemetry"}


def test_a_number_column_with_nulls_becomes_nan(lake: Path) -> None:
    lanes = open_set(built(lake)).to_numpy(["lane"])["lane"]
    assert lanes.dtype == np.float64
    assert np.isnan(lanes).any()


def test_an_epoch_stopped_anywhere_goes_on_without_loss_or_repeat(lake: Path) -> None:
    split = open_set(built(lake))
    epoch = split.shuffled(1, epoch=2)
    first = [sample.index for sample in islice(epoch, 7)]
    state = state_from_bytes(epoch.state().to_bytes())
    assert state.position == 7
    rest = [sample.index for rank in range(3) for sample in split.resume(state, rank=rank, world=3, tail="uneven")]
    assert Counter(first + rest) == Counter(range(len(split)))
    assert first == [sample.index for sample in islice(split.shuffled(1, epoch=2), 7)]
    assert [s.index for s in epoch] == [s.index for s in split.resume(state)]


def test_a_state_of_another_set_is_refused(lake: Path) -> None:
    state = open_set(built(lake)).shuffled(1).state()
    with pytest.raises(RefusedError, match="another set"):
        open_set(built(lake, "brightness > 0")).resume(state)


def test_only_the_manifest_is_read_on_opening(lake: Path) -> None:
    folder = built(lake)
    for path in folder.iterdir():
        if path.name != "manifest.json":
            path.unlink()
    assert len(open_set(f"file://{folder}")) > 0


def test_rot_is_found_on_demand_and_a_cut_file_at_once(lake: Path) -> None:
    folder = built(lake)
    split = open_set(folder)
    assert split.verify() > 0
    shard = folder / split.manifest.shards[0].path
    body = bytearray(shard.read_bytes())
    body[len(body) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(body)
    with pytest.raises(CorruptLakeError, match="not the file"):
        split.verify()
    shard.write_bytes(body[:-1])
    with pytest.raises(CorruptLakeError, match="bytes where"):
        _ = open_set(folder)[0]


def test_a_set_travels_to_another_process(lake: Path) -> None:
    split = open_set(built(lake))
    expected = split[1].payload
    assert pickle.loads(pickle.dumps(split))[1].payload == expected


def test_slices_negative_indexes_and_the_ends_behave_like_a_list(lake: Path) -> None:
    split = open_set(built(lake))
    assert split[-1].payload == split[len(split) - 1].payload
    assert [sample.index for sample in split[2:5]] == [2, 3, 4]
    with pytest.raises(IndexError):
        _ = split[len(split)]


def test_what_cannot_be_built_or_opened_is_refused_with_the_way_out(lake: Path) -> None:
    with pytest.raises(RefusedError, match="no row"):
        built(lake, "brightness > 1000")
    with pytest.raises(RefusedError, match="sum to 1"):
        built(lake, split={"train": 0.5})
    with pytest.raises(RefusedError, match="no column nothing"):
        built(lake, columns=("nothing",))
    with pytest.raises(RefusedError, match="to group by"):
        built(lake, group=("nothing",))
    with pytest.raises(RefusedError, match="no payload"):
        built(lake, "", ("vehicle_telemetry",), with_payload=True)
    with pytest.raises(NotFoundError, match="no such stream"):
        built(lake, "", ("absent",))
    with pytest.raises(RefusedError, match="set name"):
        build_set(lake_at(lake), "../up", ("camera_frame",))
    with pytest.raises(NotFoundError, match="no training set"):
        open_set(lake / "sets/none/1")
    with pytest.raises(NotFoundError, match="no split"):
        open_set(built(lake), "holdout")
    with pytest.raises(RefusedError, match="file://"):
        open_set("gs://bucket/set")


def test_the_card_shows_pictures_and_escapes_what_came_from_outside(lake: Path) -> None:
    card = (built(lake, "label != '<script>'") / "card.html").read_text()
    assert "data:image/jpeg;base64," in card
    assert "<script>" not in card
    assert "&lt;script&gt;" in card


def test_a_set_has_a_readable_summary(lake: Path) -> None:
    split = open_set(built(lake))
    assert "frames 1 train" in repr(split)
    assert "<table>" in split._repr_html_()


def sides_of(folder: Path) -> dict[str, str]:
    return {device: split for split in HALVES for device, _ in keys_of(open_set(folder, split))}


def grow(lake: Path, devices: list[str]) -> None:
    """New devices appear in the stream, each with the rows that cam-0 has."""
    rows = DeltaTable(lake / "streams/camera_frame").to_pyarrow_table().filter(pc.field("device") == "cam-0")
    for device in devices:
        renamed = rows.set_column(rows.schema.get_field_index("device"), "device", pa.array([device] * len(rows), pa.string()))
        write_deltalake(lake / "streams/camera_frame", renamed, mode="append")


def test_a_device_keeps_its_side_in_every_later_version(lake: Path) -> None:
    first = sides_of(built(lake))
    grow(lake, [f"cam-{number}" for number in range(50, 60)])
    second = sides_of(built(lake))
    assert {device: side for device, side in second.items() if device in first} == first
    assert len(second) == len(first) + 10
    notes = load_manifest(lake / "sets/frames/2/manifest.json").notes
    assert notes[0] == "12 groups keep the split of version 1, 10 groups are new"


def test_a_version_of_the_release_before_is_continued_from_its_rows(lake: Path) -> None:
    folder = built(lake)
    path = folder / "manifest.json"
    old = json.loads(path.read_text())
    for key in ("groups", "coverage", "line", "notes"):
        del old[key]
    for key in ("stratify", "block_s", "gap_s", "method"):
        del old["split"][key]
    path.chmod(0o644)
    path.write_text(json.dumps(old))
    grow(lake, ["cam-77"])
    second = sides_of(built(lake))
    assert {device: side for device, side in second.items() if device != "cam-77"} == sides_of(folder)


def test_other_groups_are_refused_unless_all_are_placed_again(lake: Path) -> None:
    built(lake)
    with pytest.raises(RefusedError, match="is split by device into train, test, this build by label into train, test"):
        built(lake, group=("label",))
    manifest = load_manifest(built(lake, group=("label",), reassign=True) / "manifest.json")
    assert (manifest.version, manifest.line) == (2, 2)
    assert "all groups were placed again (--reassign): a new line begins" in manifest.notes


def test_a_class_that_no_grouping_can_spread_stops_the_build_before_anything_is_written(lake: Path) -> None:
    with pytest.raises(RefusedError, match=r"^classes are missing: .*(train|test) has no device=cam-"):
        built(lake, stratify=("device",))
    assert not (lake / "sets/frames").exists()
    assert load_manifest(built(lake, stratify=("device",), allow_missing=True) / "manifest.json").rows == 239


def test_the_groups_stand_beside_the_shards_and_are_checked(lake: Path) -> None:
    folder = built(lake)
    groups = pq.read_table(folder / "groups.parquet")
    assert sorted(groups["group"].to_pylist()) == sorted(f"{len(name)}:{name}" for name in (f"cam-{d}" for d in range(12)))
    (folder / "groups.parquet").chmod(0o644)
    (folder / "groups.parquet").write_bytes(b"x")
    with pytest.raises(CorruptLakeError, match=r"groups\.parquet"):
        open_set(folder).verify()


@pytest.mark.parametrize(("where", "chosen"), [
    ("list_contains(labels, 'car')", [0, 2]),
    ("place.lat > 48.2", [1, 2]),
    ("list_contains(tags, 'dark')", [0]),
    ("has('dark')", [0]),
    ("list_length(scores) = 2 AND list_get(scores, 2) > 0.5", [1]),
])  # fmt: skip
def test_a_selection_takes_whatever_columns_policies_take(tmp_path: Path, where: str, chosen: list[int]) -> None:
    place = pa.struct([("lat", pa.float64()), ("lon", pa.float64())])
    rows = pa.table({
        **key_columns([("cam", at) for at in range(3)]),
        "labels": pa.array([["car", "dog"], ["dog"], ["car"]], pa.list_(pa.string())),
        "place": pa.array([(48.1, 11.0), (48.3, 11.0), (48.4, 11.0)], place),
        "scores": pa.array([[0.1, 0.2], [0.3, 0.9], [0.9]], pa.list_(pa.float32())),
        **tag_columns([["dark"], [], []]),
    })  # fmt: skip
    write_deltalake(tmp_path / "streams/odd", rows)
    assert select_rows(lake_at(tmp_path), ("odd",), where).rows["seq"].to_pylist() == chosen


def test_a_sample_that_crosses_a_process_takes_its_own_columns_and_no_manifest(lake: Path) -> None:
    sample = open_set(built(lake))[3]
    body = pickle.dumps(sample)
    assert len(body) < len(sample.payload) + 2_000
    assert b"manifest" not in body
    twin = pickle.loads(body)
    assert (twin.index, twin.payload, twin.columns, twin["device"]) == (3, sample.payload, sample.columns, sample["device"])


def rot(folder: Path, index: int) -> None:
    """Flip one bit in the middle of a payload of the train split."""
    offset, length = SplitIndex(FolderFiles(folder), load_manifest(folder / "manifest.json"), "train").place(index)
    path = folder / "train-00000.parquet"
    body = bytearray(path.read_bytes())
    body[offset + length // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(body)


def test_a_rotten_payload_is_named_at_its_first_read_not_handed_over(lake: Path) -> None:
    folder = built(lake)
    index = next(at for at, sample in enumerate(open_set(folder)) if sample.payload)
    rot(folder, index)
    for check in ("first", "always"):
        with pytest.raises(CorruptLakeError, match=rf"the payload of sample {index} \(sample cam-\d+/5/\d+ of camera_frame\)"):
            open_set(folder, check=check)[index]
    assert open_set(folder, check="never")[index].payload
    assert open_set(folder)[index + 1].payload


def test_a_payload_is_compared_once_unless_always_is_configured(lake: Path) -> None:
    folder = built(lake)
    split, strict = open_set(folder), open_set(folder, check="always")
    for samples in (split, strict):
        assert all(sample.index >= 0 for sample in samples)
    rot(folder, 5)
    assert split[5].payload != strict.to_arrow(["payload"])["payload"][0].as_py()
    with pytest.raises(CorruptLakeError, match="its sha256 is another"):
        strict[5]


def test_a_set_is_not_built_from_a_rotten_payload(lake: Path) -> None:
    path = lake / "payload/camera_frame/000000000001-0.parquet"
    rows = DeltaTable(lake / "streams/camera_frame").to_pyarrow_table().slice(1, 1).to_pylist()[0]
    body = bytearray(path.read_bytes())
    body[rows["payload_offset"] + 40] ^= 1
    path.write_bytes(body)
    with pytest.raises(CorruptLakeError, match=r"sample cam-0/5/1 of camera_frame: the payload in the lake is not the one"):
        built(lake)


def test_an_epoch_is_read_again_from_its_beginning_once_it_ended(lake: Path) -> None:
    epoch = open_set(built(lake)).shuffled(1)
    first = [sample.index for sample in epoch]
    assert first
    assert [sample.index for sample in epoch] == first


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_have_one_length_and_the_policy_says_how(lake: Path, world: int) -> None:
    split = open_set(built(lake))
    count = len(split)

    def read(tail: str) -> list[list[int]]:
        return [[sample.index for sample in split.shuffled(1, rank=rank, world=world, tail=tail)] for rank in range(world)]

    padded, dropped, uneven = (read(tail) for tail in ("pad", "drop", "uneven"))
    assert {len(part) for part in padded} == {-(-count // world)}
    assert {len(part) for part in dropped} == {count // world}
    assert sorted(index for part in uneven for index in part) == list(range(count))
    assert set().union(*padded) == set(range(count))
    assert len(set().union(*dropped)) == count // world * world
    assert [len(split.shuffled(1, rank=rank, world=world)) for rank in range(world)] == [len(part) for part in padded]


@pytest.mark.slow
def test_every_shard_is_opened_once_however_many_there_are(tmp_path: Path, lake: Path) -> None:
    split = open_set(built(lake, split={"train": 1.0}, limits=ShardLimits(max_rows=1)))
    for epoch in range(2):
        assert sum(1 for _ in split.shuffled(1, epoch)) == 239
        opened = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
        shards = [path for path in opened if path.startswith(f"{split.folder}/train-")]
        assert len(set(shards)) == len(shards) == 239


def test_many_samples_at_once_are_those_that_come_one_by_one(lake: Path) -> None:
    split = open_set(built(lake))
    wanted = [5, 0, len(split) - 1, -1, 5]
    assert [(s.index, s.payload) for s in split.__getitems__(wanted)] == [(split[i].index, split[i].payload) for i in wanted]
    with pytest.raises(IndexError):
        split.__getitems__([0, len(split)])


def test_an_offset_that_lies_is_found_by_the_hash_and_read_another_way(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another tool has rewritten holds its values elsewhere; the sha256 tells, and pyarrow finds them."""
    split = open_set(built(lake))
    index = next(at for at, sample in enumerate(split) if sample.payload)
    payload, place = split[index].payload, SplitIndex.place

    def lie(rows: SplitIndex, at: int) -> tuple[int, int]:
        offset, length = place(rows, at)
        return offset + (at == index), length

    monkeypatch.setattr(SplitIndex, "place", lie)
    assert open_set(split.folder)[index].payload == payload
