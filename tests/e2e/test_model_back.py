"""A real model signed, pushed and run: its answers come back as columns of the samples, and a forged one never runs."""

import json
import shutil
from pathlib import Path

import pytest

from tests.plant.programs import Plant

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(300)]

DIGITS = "0,1,2,3,4,5,6,7,8,9"


@pytest.fixture
def device(plant: Plant, shared_data: Path) -> Path:
    """A core with a signed repository, and a device with a watched folder; the folder."""
    plant.core("model", "init")
    watched = plant.folder / "watched"
    watched.mkdir()
    root = plant.lake / "models/metadata/1.root.json"
    options = {"path": watched, "settle_ms": 100}
    more = f'[model]\nname = "digits"\nroot = "{root}"\nstreams = ["camera_frame"]'
    plant.write_agent("edge-a", [{"kind": "directory", "stream": "camera_frame", "options": options}], more)
    plant.core("model", "publish", "digits", str(shared_data / "models/mnist.onnx"), "--labels", DIGITS, "--softmax")
    plant.start_core()
    plant.start_agent("edge-a", until_settled=False)
    return watched


def rollout_state(plant: Plant, name: str) -> str:
    """What `catchment rollout status` says of one rollout, as text."""
    listed = json.loads(plant.core("rollout", "status", "--json"))
    return json.dumps([item for item in listed["rollouts"] if item["rollout"] == name])


def feed(shared_data: Path, watched: Path, start: int, count: int) -> None:
    for picture in sorted((shared_data / "factory/bsdata/images").glob("*.jpg"))[start : start + count]:
        shutil.copy(picture, watched / f"{start}-{picture.name}")


def predicted(plant: Plant, prefix: str) -> list[tuple[str, int, str, float]]:
    rows = plant.rows("streams/camera_frame")
    if rows.is_empty():
        return []
    rows = rows.filter(rows["file_name"].str.starts_with(prefix) & rows["predicted_label"].is_not_null())
    return list(rows.select("model_name", "model_version", "predicted_label", "predicted_score").iter_rows())


def test_a_signed_model_runs_on_the_device_and_a_forged_one_does_not(plant: Plant, device: Path, shared_data: Path) -> None:
    plant.core("rollout", "start", "digits", "--cohort", "edge-a")
    plant.eventually(lambda: '"on_probation": ["edge-a"]' in rollout_state(plant, "digits-1"), "version 1 on probation")
    feed(shared_data, device, 0, 6)
    first = plant.eventually(lambda: len(found := predicted(plant, "0-")) == 6 and found, "six predictions")
    assert {(name, version) for name, version, _, _ in first} == {("digits", 1)}
    assert all(label in DIGITS.split(",") and 0 < score <= 1 for _, _, label, score in first)

    plant.core("model", "publish", "digits", str(shared_data / "models/mnist.onnx"), "--labels", DIGITS, "--softmax")
    forged = next((plant.lake / "models/targets/digits").glob("*2.onnx"))
    body = bytearray(forged.read_bytes())
    body[len(body) // 2] ^= 1
    forged.write_bytes(body)
    plant.core("rollout", "start", "digits", "--cohort", "edge-a")
    plant.eventually(lambda: '"blocked": ["edge-a"]' in rollout_state(plant, "digits-2"), "version 2 blocked")
    feed(shared_data, device, 6, 3)
    second = plant.eventually(lambda: len(found := predicted(plant, "6-")) == 3 and found, "three more predictions")
    assert {(name, version) for name, version, _, _ in second} == {("digits", 1)}
