"""What is tried of a model before it is signed: that a device can read its answers as scores of classes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipelines.errors import RefusedError
from pipelines.rollout.golden import GoldenTrial, check_scores, try_model
from tests.fakes.model_repository import IMAGE, LABELS, tiny_model


def model_of(shape: tuple[int, ...]) -> bytes:
    """A model that answers every 4 x 4 px picture with numbers of this shape."""
    answers = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["none"]),
        helper.make_node("Add", ["none", "answers"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))],
        [numpy_helper.from_array(answers, "answers"), numpy_helper.from_array(np.zeros((), np.float32), "zero")],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())


@pytest.mark.parametrize("shape", [(1, 10), (10,), (1, 10, 1, 1)])
def test_one_score_for_each_class_may_stand_in_any_layout(shape: tuple[int, ...]) -> None:
    assert len(try_model(model_of(shape), IMAGE).golden) == 10


@pytest.mark.parametrize("shape", [(1, 442, 2), (1, 8, 8), (2, 3)])
def test_a_detector_s_answers_are_no_classification(shape: tuple[int, ...]) -> None:
    with pytest.raises(RefusedError, match=r"which is no classification"):
        try_model(model_of(shape), IMAGE)


@pytest.mark.parametrize("answers", [(-3.2, 8.1), (0.2, 1.4), (-0.1, 0.5)])
def test_logits_are_refused_unless_a_softmax_follows(answers: tuple[float, ...]) -> None:
    with pytest.raises(RefusedError, match=r"if these are logits, publish it with --softmax"):
        check_scores(GoldenTrial(IMAGE, answers), LABELS, softmax=False)
    check_scores(GoldenTrial(IMAGE, answers), LABELS, softmax=True)


def test_scores_that_rounding_puts_above_1_are_scores() -> None:
    check_scores(GoldenTrial(IMAGE, (1.0000002, -1e-7)), LABELS, softmax=False)


def test_each_answer_needs_a_label_where_there_are_labels() -> None:
    with pytest.raises(RefusedError, match=r"answers with 2 numbers, and there are 3 labels"):
        check_scores(try_model(tiny_model(), IMAGE), ("a", "b", "c"), softmax=False)
    check_scores(try_model(tiny_model(), IMAGE), (), softmax=False)
