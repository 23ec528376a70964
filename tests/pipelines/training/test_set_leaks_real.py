"""Leaks of a real dashcam clip (221 frames, 25 a second) by three ways to split it."""

import csv
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner

from pipelines.commands.training_set_care import set_app
from pipelines.inspect.image import image_facts

START = datetime(2026, 1, 1, tzinfo=UTC)
pytestmark = pytest.mark.slow
HASH = 7  # its place among the facts of a picture


@pytest.fixture(scope="module")
def clip(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_data / "vehicle/dashcam"
    with (folder / "frames.csv").open() as file:
        frames = list(csv.DictReader(file))
    bodies = [(folder / "frames" / Path(frame["file"]).name).read_bytes() for frame in frames]
    root = tmp_path_factory.mktemp("clip")
    rows = pa.table({
        "device": ["dashcam"] * len(frames),
        "epoch": pa.array([1] * len(frames), pa.int64()),
        "seq": pa.array(range(len(frames)), pa.int64()),
        "event_time": pa.array([START + timedelta(seconds=float(each["t_s"])) for each in frames], pa.timestamp("us", "UTC")),
        "image_phash": [str(image_facts(body)[HASH]) for body in bodies],
        "payload_sha256": [hashlib.sha256(body).hexdigest() for body in bodies],
    })  # fmt: skip
    write_deltalake(root / "streams/camera_frame", rows)
    return root


def leaked(root: Path, spec: str, folder: Path, bits: int = 6) -> tuple[int, dict[str, int]]:
    """Rows of the test split, and how many of them leak, by kind."""
    path = folder / "spec.yaml"
    path.write_text("id: clip\nsources: [{stream: camera_frame}]\n" + spec)
    where = ["--lake", str(root)]
    done = CliRunner().invoke(set_app, ["build", str(path), "--reassign", "--json", *where], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    words = ["check", "clip", "--near", "1s", "--bits", str(bits), "--json", *where]
    report = json.loads(CliRunner().invoke(set_app, words, catch_exceptions=False).stdout)
    shown = json.loads(CliRunner().invoke(set_app, ["show", "clip", "--json", *where]).stdout)
    rows = sum(shard["rows"] for shard in shown["shards"] if shard["split"] == "test")
    return rows, {each["kind"]: each["rows"] for each in report["leaks"] if each["split"] == "test"}


def test_frames_split_one_by_one_nearly_all_have_a_neighbour_in_train(clip: Path, tmp_path: Path) -> None:
    rows, found = leaked(clip, "split: {shares: {train: 0.5, test: 0.5}, group: [seq]}", tmp_path)
    assert found["neighbour within 1 s"] >= rows - 1


def test_blocks_of_time_with_a_gap_leave_no_neighbour(clip: Path, tmp_path: Path) -> None:
    split = "split: {shares: {train: 0.5, test: 0.5}, group: [device], block: 3 s, gap: 1.1 s}"
    rows, found = leaked(clip, split, tmp_path)
    assert rows > 0
    assert found["neighbour within 1 s"] == 0


def test_groups_of_near_duplicates_leave_no_alike_frame_on_both_sides(clip: Path, tmp_path: Path) -> None:
    split = "split: {shares: {train: 0.5, test: 0.5}, group: [seq]}"
    rows, found = leaked(clip, split, tmp_path, bits=3)
    assert found["near-duplicate within 3 bits"] > rows // 2
    rows, found = leaked(clip, "near_duplicates: {bits: 3, within: ''}\n" + split, tmp_path, bits=3)
    assert rows > 50
    assert found["near-duplicate within 3 bits"] == 0
