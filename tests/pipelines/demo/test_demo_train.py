import numpy as np
import onnxruntime
import pytest

from pipelines.demo import drawn
from pipelines.demo.learn import features, pixels, train
from pipelines.errors import RefusedError


def pictures(seed: int, count: int) -> list[tuple[bytes, str]]:
    frames = [drawn.strip_frame(seed, index) for index in range(count)]
    return [(drawn.jpeg(frame.pixels), frame.label) for frame in frames]


def test_the_model_finds_defects_on_frames_it_never_saw() -> None:
    model = train(pictures(1, 120))
    session = onnxruntime.InferenceSession(model.onnx, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["labels"] == "defect,good"
    fresh = pictures(2, 100)
    labels = [model.labels[int(np.argmax(session.run(None, {"input": pixels(body)[None]})[0]))] for body, _ in fresh]
    assert sum(one == label for one, (_, label) in zip(labels, fresh, strict=True)) >= 85


def test_the_file_computes_what_was_trained() -> None:
    batch = np.stack([pixels(body) for body, _ in pictures(3, 4)])
    found = features(batch)
    assert found.shape == (4, 10)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("samples", [[], pictures(1, 3), [(body, "good") for body, _ in pictures(1, 20)]])
def test_too_few_pictures_or_labels_are_refused(samples: list[tuple[bytes, str]]) -> None:
    with pytest.raises(RefusedError, match="at least 8 with 2 labels"):
        train(samples)
