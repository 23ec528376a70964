"""Sets that are made of earlier sets: pinned by their number, with payloads out of their shards."""

import hashlib
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipelines.errors import ConfigError, NotFoundError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.runners.engine import Engine
from pipelines.training.array_rules import WindowRule
from pipelines.training.build import BuildOptions, build_set, wish_of_spec
from pipelines.training.building.versions import Terms, build_version
from pipelines.training.manifest import Manifest
from pipelines.training.open import open_set
from pipelines.training.shards import ShardLimits
from pipelines.training.spec_file import parse_spec
from tests.pipelines.training.conftest import SHARD

SPLIT = "split: {shares: {train: 0.5, test: 0.5}}"


def build(root: Path, sources: str, more: str = "") -> Manifest:
    text = f"id: next\nsources: [{sources}]\n{SPLIT}\n{more}"
    return build_version(lake_at(root), wish_of_spec(parse_spec(text)), Terms(Engine()))


@pytest.fixture
def earlier(lake: Path) -> Manifest:
    options = BuildOptions({"train": 0.5, "test": 0.5}, limits=ShardLimits(max_rows=50))
    return build_set(lake_at(lake), "frames", ("camera_frame",), options=options)


def test_a_set_is_a_source_of_the_next_with_its_payloads(lake: Path, earlier: Manifest) -> None:
    """Its payloads are there though the stream's are gone."""
    (lake / SHARD).unlink()
    made = build(lake, "{set: frames, splits: [train], where: brightness > 10}")
    before = open_set(lake / "sets/frames/1", "train").to_arrow(["device", "seq", "brightness", "stream"]).to_pylist()
    wanted = {(row["device"], row["seq"]) for row in before if row["brightness"] > 10}
    found = set()
    for split in ("train", "test"):
        samples = open_set(lake / "sets/next/1", split)
        samples.verify()
        for sample in samples:
            found.add((sample["device"], sample["seq"]))
            assert sample["stream"] == "camera_frame"
            assert sample.payload is not None
            assert hashlib.sha256(sample.payload).hexdigest() == sample["payload_sha256"]
    assert found == wanted
    assert len(wanted) == made.rows > 0
    assert [(each.stream, each.delta_version, each.rows) for each in made.sources] == [("sets/frames", 1, made.rows)]
    assert made.sources[0].version_words == "version 1"
    assert made.spec is not None
    assert made.spec["sources"][0]["version"] == 1, "pinned"
    assert "sets/frames" in (lake / "sets/next/1/card.html").read_text()


def test_a_pinned_version_gives_the_same_set_when_there_are_newer_ones(lake: Path, earlier: Manifest) -> None:
    first = build(lake, "{set: frames, version: 1}")
    DeltaTable(lake / "streams/camera_frame").delete("device = 'cam-3'")
    build_set(lake_at(lake), "frames", ("camera_frame",), options=BuildOptions({"train": 0.5, "test": 0.5}))
    again = build(lake, "{set: frames, version: 1}")
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in first.shards]
    assert first.rows == earlier.rows
    newest = build(lake, "{set: frames}")
    assert newest.sources[0].delta_version == 2
    assert newest.rows < earlier.rows


def test_a_set_and_a_stream_together(lake: Path, earlier: Manifest) -> None:
    made = build(lake, "{set: frames}, {stream: vehicle_telemetry, where: speed > 130}", "payload: false")
    assert [each.stream for each in made.sources] == ["sets/frames", "vehicle_telemetry"]
    assert made.rows == earlier.rows + made.sources[1].rows


def test_derived_columns_and_labels_of_a_set_are_there_to_be_used(lake: Path, earlier: Manifest) -> None:
    assert earlier.rows
    spec = "derive: [{name: bright, value: brightness > 30}]\nlabel: {column: label, other: keep}"
    text = f"id: derived\nsources: [{{set: frames}}]\n{SPLIT}\n{spec}".replace(
        "label: {column: label", "label: {name: kind, column: label"
    )
    build_version(lake_at(lake), wish_of_spec(parse_spec(text)), Terms(Engine()))
    made = build(lake, "{set: derived, where: bright AND kind = 'class-1'}")
    rows = open_set(lake / "sets/next/1", "train").to_arrow(["bright", "kind"]).to_pylist()
    assert made.rows > 0
    assert all(row == {"bright": True, "kind": "class-1"} for row in rows)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("{set: frames, stream: camera_frame}", "either a stream or a set"),
        ("{version: 1}", "either a stream or a set"),
        ("{stream: camera_frame, splits: [train]}", "a stream has no splits"),
        ("{set: frames}, {set: frames}", "named twice"),
        ("{set: ../frames}", "set"),
    ],
)
def test_a_source_that_says_too_much_or_too_little_is_refused_with_its_line(sources: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(f"id: next\nsources: [{sources}]\n")


def test_sets_that_cannot_be_a_source_are_refused(lake: Path, driven: Path, earlier: Manifest) -> None:
    with pytest.raises(NotFoundError, match="no set"):
        build(lake, "{set: absent}")
    with pytest.raises(NotFoundError, match="frames/9"):
        build(lake, "{set: frames, version: 9}")
    with pytest.raises(RefusedError, match="no split validation; it has train, test"):
        build(lake, "{set: frames, splits: [validation]}")
    build_set(lake_at(driven), "windows", ("telemetry",), options=BuildOptions(arrays=WindowRule(2.0, 1.0, 20, ("speed",))))
    with pytest.raises(RefusedError, match="holds arrays"):
        build(driven, "{set: windows}")
    assert earlier.rows
