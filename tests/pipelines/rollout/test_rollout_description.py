"""A description comes from the file: Ultralytics' notes, MLflow's signature. What no device could load is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipelines.errors import ConfigError, NotFoundError, RefusedError
from pipelines.rollout.description import ModelAbout, find_model, prepare_model, read_about
from pipelines.rollout.onnx_file import read_onnx_file
from schemas.model import ImageInput
from schemas.model_tasks import Classify, Detect, Regress, RowInput
from tests.fakes import bad_models, task_models
from tests.fakes.model_repository import tiny_model

DEVICE = {"memory_mib": 192, "answer_ms": 5_000}


def written(tmp_path: Path, body: bytes) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(body)
    return str(path)


def mlflow_folder(folder: Path, body: bytes, signature: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(body)
    (folder / "MLmodel").write_text(
        "artifact_path: model\nflavors:\n  onnx:\n    data: model.onnx\n    onnx_version: 1.16.0\n"
        f"signature:\n  inputs: '{signature}'\n  outputs: null\n"
    )
    return folder


NUMBERS = '[{"type": "double", "name": "speed", "required": true}, {"type": "long", "name": "rpm", "required": true}]'


def test_what_is_read_of_a_file_is_what_the_onnx_package_reads() -> None:
    for body in (tiny_model(padding=100), task_models.yolo_model(), bad_models.endless_model(), bad_models.hungry_model()):
        found, known = read_onnx_file(body), onnx.load_from_string(body)
        assert found.opsets == {each.domain: each.version for each in known.opset_import}
        assert {("", node.op_type) for node in known.graph.node} <= found.operators
        assert found.notes == {each.key: each.value for each in known.metadata_props}
        assert not found.has_external_data
    assert ("", "Cos") in read_onnx_file(bad_models.endless_model()).operators  # in the body of a loop


@pytest.mark.parametrize("body", [b"", b"no model", b"\xff" * 64, tiny_model()[:-40], b"\x3a\x00"])
def test_what_is_no_model_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedError, match="no ONNX model"):
        read_onnx_file(body)


def test_graphs_nested_without_end_are_refused() -> None:
    body = b""
    for _ in range(60):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            body = tag + _varint(len(body)) + body
    with pytest.raises(RefusedError, match="nested deeper"):
        read_onnx_file(b"\x42\x02\x10\x11" + b"\x3a" + _varint(len(body)) + body)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_an_ultralytics_export_needs_no_further_word(tmp_path: Path) -> None:
    found = find_model(written(tmp_path, task_models.yolo_model()))
    assert found.about == ModelAbout(
        Detect("yolo"), ImageInput(64, 64, fit="letterbox"), labels=("kind 0", "kind 1"), softmax=False
    )
    assert (found.needs.opsets, found.needs.ops) == ({"": 17}, ())
    prepared = prepare_model(written(tmp_path, found.onnx), ModelAbout(), lambda image, _shape: image, **DEVICE)
    assert prepared.task == Detect("yolo")
    assert len(prepared.golden) == 6 * 64
    assert prepared.needs.peak_mib > 10


def test_the_caller_knows_better_than_the_file(tmp_path: Path) -> None:
    about = tmp_path / "about.json"
    about.write_text('{"task": {"type": "detect", "layout": "yolo", "min_score": 0.6}, "labels": ["a", "b"]}')
    found = find_model(written(tmp_path, task_models.yolo_model()), read_about(about))
    assert found.about.task == Detect("yolo", min_score=0.6)
    assert found.about.labels == ("a", "b")
    assert found.about.picture == ImageInput(64, 64, fit="letterbox")


@pytest.mark.parametrize("text", ["", "[]", '{"task": {"type": "guess"}}', '{"lables": []}', '{"rows": {"columns": []}}'])
def test_a_malformed_description_is_an_error_of_the_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(ConfigError, match=r"about\.json"):
        read_about(tmp_path / "about.json")


def test_an_mlflow_model_brings_its_columns_by_folder_and_by_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = task_models.number_model(2, 1)
    folder = mlflow_folder(tmp_path / "mlruns/0/abc123/artifacts/model", body, NUMBERS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    for where in (str(folder), "runs:/abc123/model"):
        found = find_model(where, ModelAbout(task=Regress()))
        assert found.about.rows == RowInput(("speed", "rpm"))
        prepared = prepare_model(where, ModelAbout(task=Regress()), lambda image, _shape: image, **DEVICE)
        assert prepared.image is None
        assert prepared.golden
    with pytest.raises(NotFoundError, match="set MLFLOW_TRACKING_URI"):
        find_model("runs:/abc124/model")
    with pytest.raises(ConfigError, match="is not runs:/RUN/PATH"):
        find_model("runs:/abc123/../../../etc")


def test_a_tensor_of_an_mlflow_signature_is_a_picture(tmp_path: Path) -> None:
    signature = json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3, 64, 64]}}])
    found = find_model(str(mlflow_folder(tmp_path / "model", task_models.number_model(2, 1), signature)))
    assert found.about.picture == ImageInput(64, 64)


def test_an_mlflow_folder_without_onnx_or_with_a_path_is_refused(tmp_path: Path) -> None:
    folder = mlflow_folder(tmp_path / "model", b"", "[]")
    (folder / "MLmodel").write_text("flavors:\n  sklearn: {}\n")
    with pytest.raises(RefusedError, match="no ONNX model"):
        find_model(str(folder))
    (folder / "MLmodel").write_text("flavors:\n  onnx:\n    data: ../../secret.onnx\n")
    with pytest.raises(RefusedError, match="not a plain name"):
        find_model(str(folder))


def test_weights_in_other_files_and_foreign_operators_are_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny_model())
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(RefusedError, match="weights lie in other files"):
        find_model(written(tmp_path, model.SerializeToString()))
    model = onnx.load_from_string(tiny_model())
    model.graph.node.append(helper.make_node("Anything", ["y"], ["z"], domain="my.company"))
    with pytest.raises(RefusedError, match=r"operators of my\.company"):
        find_model(written(tmp_path, model.SerializeToString()))


def test_a_face_detector_is_no_classifier_and_says_how_to_publish_it(tmp_path: Path, shared_data: Path) -> None:
    path = str(shared_data / "models/version-RFB-320.onnx")
    image = ImageInput(320, 240, scale=1 / 128, mean=(127 / 128,) * 3)
    with pytest.raises(RefusedError, match=r"no classification.*--task"):
        prepare_model(path, ModelAbout(task=Classify()), lambda _image, _shape: image, **DEVICE)
    with pytest.raises(RefusedError, match="is not the layout 'yolo'"):
        prepare_model(path, ModelAbout(task=Detect("yolo")), lambda _image, _shape: image, **DEVICE)
    task = Detect("boxes-scores", "boxes", "scores", "corners", "shares", has_background=True)
    prepared = prepare_model(path, ModelAbout(task=task, labels=("none", "face")), lambda _image, _shape: image, **DEVICE)
    assert len(prepared.golden) <= 4_096
    assert np.isfinite(prepared.golden).all()
