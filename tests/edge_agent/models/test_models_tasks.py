"""What models of every task say of a sample: boxes, masks, numbers and vectors, equal to what the runtime gives by hand."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from edge_agent.errors import ConfigError, ModelError
from edge_agent.models.answers import encode_mask
from edge_agent.models.config import ModelConfig, PictureRequest
from edge_agent.models.device_models import check_models
from edge_agent.models.inference import LoadedModel
from edge_agent.models.model_process import ModelProcess
from edge_agent.models.running import RunningModel
from edge_agent.models.stream_models import ModelOfStream, ModelsOfStream
from edge_agent.sources.api import SampleBatch
from schemas.errors import SchemaError
from schemas.model import ImageInput, ModelSpec, decode_details, encode_details, model_spec
from schemas.model_tasks import Classify, Detect, Embed, ModelTask, Regress, RowInput, Segment, prediction_columns
from tests.fakes import task_models
from tests.fakes.model_repository import tiny_model
from tests.fakes.task_models import SIDE

LETTERBOX = ImageInput(SIDE, SIDE, fit="letterbox")
RFB = ImageInput(320, 240, scale=1 / 128, mean=(127 / 128,) * 3)
FACES = Detect("boxes-scores", "boxes", "scores", "corners", "shares", has_background=True, min_score=0.05, max_overlap=0.3)


def load(tmp_path: Path, body: bytes, spec: ModelSpec) -> LoadedModel:
    path = tmp_path / "model.onnx"
    path.write_bytes(body)
    return LoadedModel(path, spec)


def spec_of(task: ModelTask, image: ImageInput | None = None, rows: RowInput | None = None) -> ModelSpec:
    return model_spec("made", 1, image, rows, task)


def noise(width: int, height: int, seed: int = 3) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def boxes_of(model: LoadedModel, payload: bytes) -> list[dict[str, Any]]:
    (answer,) = model.look_at(PictureRequest(payload), lambda _note: None)
    found: list[dict[str, Any]] = answer["predicted_boxes"]
    return found


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two boxes as corners."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, high)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (area - shared) if area > shared else 1.0


def suppressed(rows: list[tuple[float, int, list[float]]], most: float) -> list[tuple[float, int, list[float]]]:
    """Non-maximum suppression in the plainest way: score, label, corners."""
    kept: list[tuple[float, int, list[float]]] = []
    for row in sorted(rows, key=lambda row: -row[0]):
        if all(row[1] != other[1] or iou(row[2], other[2]) <= most for other in kept):
            kept.append(row)
    return kept


def assert_same(found: list[dict[str, Any]], by_hand: list[tuple[float, int, list[float]]], names: Sequence[str]) -> None:
    assert len(found) == len(by_hand) > 0
    for box, (score, label, corners) in zip(found, by_hand, strict=True):
        assert box["score"] == pytest.approx(score, abs=1e-4)
        assert box["label"] == names[label]
        mine = [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]]
        assert iou(mine, corners) >= 0.99


@pytest.mark.parametrize("size", [(128, 96), (40, 100), (64, 64)])
@pytest.mark.parametrize("objectness", [False, True])
def test_boxes_of_a_yolo_shaped_model_equal_those_by_hand(tmp_path: Path, size: tuple[int, int], objectness: bool) -> None:
    body, payload = task_models.yolo_model(objectness=objectness), noise(*size)
    task = Detect("yolo-objectness" if objectness else "yolo", min_score=0.3, max_overlap=0.5)
    model = load(tmp_path, body, spec_of(task, LETTERBOX))

    ratio = min(SIDE / size[0], SIDE / size[1])
    inner = (round(size[0] * ratio), round(size[1] * ratio))
    left, top = (SIDE - inner[0]) // 2, (SIDE - inner[1]) // 2
    canvas = Image.new("RGB", (SIDE, SIDE), (114, 114, 114))
    canvas.paste(Image.open(io.BytesIO(payload)).resize(inner, Image.Resampling.BILINEAR), (left, top))
    tensor = (np.asarray(canvas, np.float32) / 255).transpose(2, 0, 1)[None]
    (raw,) = onnxruntime.InferenceSession(body).run(None, {"x": tensor})
    rows = []
    for row in raw[0] if objectness else raw[0].T:
        x, y, wide, high = map(float, row[:4])
        scores = [float(score) * (float(row[4]) if objectness else 1.0) for score in row[4 + objectness :]]
        label = int(np.argmax(scores))
        corners = [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]
        corners = [
            min(max((value - pad) * most / across, 0.0), most)
            for value, pad, across, most in zip(corners, [left, top] * 2, [*inner] * 2, [*size] * 2, strict=True)
        ]
        if scores[label] >= task.min_score and corners[2] > corners[0] and corners[3] > corners[1]:
            rows.append((scores[label], label, corners))
    assert_same(boxes_of(model, payload), suppressed(rows, task.max_overlap), ["0", "1"])


def test_boxes_of_the_shared_face_detector_equal_those_by_hand(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "models/version-RFB-320.onnx"
    model = load(tmp_path, path.read_bytes(), spec_of(FACES, RFB))
    session, compared = onnxruntime.InferenceSession(str(path)), 0
    for picture in sorted((shared_data / "factory/bsdata/images").glob("*.jpg"))[:4]:
        image = Image.open(picture).convert("RGB")
        tensor = (np.asarray(image.resize((320, 240), Image.Resampling.BILINEAR), np.float32) - 127) / 128
        scores, corners = session.run(["scores", "boxes"], {session.get_inputs()[0].name: tensor.transpose(2, 0, 1)[None]})
        sides = np.array([image.width, image.height] * 2)
        rows = [
            (float(score), 1, [float(value) for value in (np.clip(box, 0, 1) * sides)])
            for score, box in zip(scores[0][:, 1], corners[0], strict=True)
            if score >= FACES.min_score
        ]
        found, by_hand = boxes_of(model, picture.read_bytes()), suppressed(rows, FACES.max_overlap)
        compared += len(by_hand)
        if by_hand:
            assert_same(found, by_hand, ["0", "1"])
        else:
            assert found == []
    assert compared > 0


def test_boxes_whose_overlaps_are_removed_already_are_read_as_rows(tmp_path: Path) -> None:
    body = task_models.rows_model(np.array([[8, 8, 40, 24, 0.9, 1], [9, 9, 41, 25, 0.8, 1], [0, 0, 4, 4, 0.1, 0]]))
    found = boxes_of(load(tmp_path, body, spec_of(Detect("rows", form="corners"), LETTERBOX)), noise(128, 128))
    assert [(box["x"], box["y"], box["width"], box["height"], box["label"]) for box in found] == [
        (16.0, 16.0, 64.0, 32.0, "1"),
        (18.0, 18.0, 64.0, 32.0, "1"),
    ]


def test_a_picture_with_nothing_on_it_has_an_empty_list_and_no_label(tmp_path: Path) -> None:
    model = load(tmp_path, task_models.yolo_model(), spec_of(Detect("yolo", min_score=1.0), LETTERBOX))
    (answer,) = model.look_at(PictureRequest(noise(64, 64)), lambda _note: None)
    assert answer == {"predicted_label": None, "predicted_score": None, "predicted_boxes": []}


def test_a_layout_that_the_output_does_not_have_is_an_error_of_the_model(tmp_path: Path) -> None:
    model = load(tmp_path, task_models.yolo_model(), spec_of(Detect("rows"), LETTERBOX))
    with pytest.raises(ModelError, match=r"shape \[6, 64\]; the layout has rows of six numbers"):
        boxes_of(model, noise(64, 64))


def test_a_mask_is_runs_of_labels_row_by_row(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), np.uint8)
    pixels[1, 2:] = pixels[2, :1] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    model = load(tmp_path, task_models.mask_model(), spec_of(Segment(), ImageInput(4, 4, "grey")))
    (answer,) = model.look_at(PictureRequest(out.getvalue()), lambda _note: None)
    assert answer == {"predicted_label": "1", "predicted_mask": [4, 4, 0, 6, 1, 3, 0, 7]}


def test_a_mask_of_noise_is_refused_and_not_stored() -> None:
    mask = np.arange(400 * 400).reshape(400, 400) % 2
    with pytest.raises(ModelError, match="160,000 runs"):
        encode_mask(mask)


def test_numbers_vectors_and_rows(tmp_path: Path) -> None:
    rows = RowInput(("speed", "rpm", "on"), mean=(1, 0, 0), std=(2, 1, 1), fill=(0, 5, 0))
    model = load(tmp_path, task_models.number_model(3, 2), spec_of(Regress(), rows=rows))
    assert model.look_at_rows([(3.0, 1.0, 1.0), (1.0, None, 0.0)]) == [
        {"predicted_value": 3.0, "predicted_values": [3.0, 6.0]},
        {"predicted_value": 5.0, "predicted_values": [5.0, 10.0]},
    ]
    vector = load(tmp_path, task_models.number_model(3, 2), spec_of(Embed(), rows=RowInput(("a", "b", "c"))))
    ((answer,),) = [vector.look_at_rows([(1.0, 1.0, 1.0)])]
    assert answer["predicted_embedding"] == pytest.approx([1 / 5**0.5, 2 / 5**0.5])
    absent = load(tmp_path, task_models.number_model(1, 1), spec_of(Regress(), rows=RowInput(("a",))))
    with pytest.raises(ModelError, match="not finite"):
        absent.look_at_rows([(None,)])


# -- what travels ---------------------------------------------------------------------------------------------------------


def test_a_plain_classifier_is_described_as_before_and_others_so_that_old_agents_refuse_them() -> None:
    plain = spec_of(Classify(), ImageInput(4, 4))
    assert encode_details(plain) == b'{"name":"made","version":1,"input":{"width":4,"height":4}}'
    for spec in (
        spec_of(FACES, RFB),
        spec_of(Classify(), ImageInput(4, 4, fit="letterbox")),
        spec_of(Regress(), rows=RowInput(("a",))),
    ):
        body = encode_details(spec)
        assert b'"input"' not in body
        assert decode_details(body) == spec


def test_a_description_with_two_inputs_or_none_is_malformed() -> None:
    with pytest.raises(SchemaError, match="one input"):
        ModelSpec("made", 1)
    with pytest.raises(SchemaError, match="one input"):
        ModelSpec("made", 1, ImageInput(4, 4), rows=RowInput(("a",)))
    with pytest.raises(SchemaError, match="belongs into `picture`"):
        ModelSpec("made", 1, ImageInput(4, 4), task=Regress())


# -- several models -------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Any]:
    made: list[RunningModel] = []

    def build(name: str, body: bytes, spec: ModelSpec, prefix: str = "", after: str = "") -> ModelOfStream:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(body)
        config = ModelConfig(name, "root.json", ("camera_frame",), prefix=prefix, after=after)
        import threading

        model = RunningModel(threading.Event(), prefix)
        process = ModelProcess(path, spec, config)
        process.start()
        model.use(process)
        made.append(model)
        return ModelOfStream(config, model)

    yield build
    for model in made:
        model.use(None)


def test_a_classifier_looks_at_the_boxes_of_a_detector(running: Any) -> None:
    body = task_models.rows_model(np.array([[0, 0, 32, 32, 0.9, 0], [32, 32, 64, 64, 0.8, 0]]))
    plain = model_spec("kind", 4, ImageInput(4, 4, "grey", "flat"), None, Classify())
    models = ModelsOfStream(
        [
            running("boxes", body, spec_of(Detect("rows", form="corners"), ImageInput(SIDE, SIDE))),
            running("kind", tiny_model(), plain, "kind_", "boxes"),
        ],
        {*prediction_columns(FACES), *(f"kind_{name}" for name in prediction_columns(FACES))},
    )
    picture = Image.new("L", (128, 128), 0)
    picture.paste(250, (64, 64, 128, 128))
    out = io.BytesIO()
    picture.save(out, "PNG")
    batch = SampleBatch([1], {}, [out.getvalue()])
    (found,) = models.predict(batch, models.wanted_rows(batch))
    assert [(box["x"], box["label"]) for box in found["kind_predicted_boxes"]] == [(0.0, "0"), (64.0, "1")]  # type: ignore[union-attr,index]
    assert [box["label"] for box in found["predicted_boxes"]] == ["0", "0"]  # type: ignore[union-attr,index]
    assert (found["kind_model_version"], found["model_version"]) == (4, 1)
    assert set(models.columns()) == set(found)


def test_rows_of_telemetry_are_asked_about_together(running: Any) -> None:
    spec = spec_of(Regress(), rows=RowInput(("speed_mps", "rpm")))
    models = ModelsOfStream([running("load", task_models.number_model(2, 1), spec)], {"predicted_value", "model_name"})
    batch = SampleBatch(list(range(1_000)), {"speed_mps": [float(n) for n in range(1_000)], "rpm": [1] * 1_000})
    rows = models.wanted_rows(batch)
    assert models.rows_at_once(batch) == len(rows) == 1_000
    assert [answer["predicted_value"] for answer in models.predict(batch, rows)] == [n + 1.0 for n in range(1_000)]
    assert models.columns() == ("model_name", "predicted_value")


def config_of(name: str, **more: Any) -> ModelConfig:
    return ModelConfig(name, "root.json", ("camera_frame",), **more)


@pytest.mark.parametrize(
    ("configs", "complaint"),
    [
        ([config_of("a"), config_of("a")], "a is there twice"),
        ([config_of("a"), config_of("b")], "b: it and a fill the same columns"),
        ([config_of("a"), config_of("b", prefix="b_", after="c")], "after 'c' is no other model"),
        ([config_of("a", after="b"), config_of("b", prefix="b_", after="a")], "each is after another"),
    ],
)
def test_models_that_do_not_fit_together_are_refused_before_anything_starts(configs: list[ModelConfig], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_models(configs)
