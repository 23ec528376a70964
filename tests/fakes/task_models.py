"""Small ONNX models of every task, made by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIDE = 64
CELLS = 64


def make(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, np.ndarray],
    shape: Sequence[int | None],
    outputs: Mapping[str, Sequence[int | None]],
    notes: Mapping[str, str] | None = None,
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(each)) for name, each in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(notes or {}))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def yolo_model(labels: int = 2, *, objectness: bool = False) -> bytes:
    """A detector as Ultralytics exports it: 64 boxes of a 64 x 64 px picture, from one convolution of random weights."""
    rows = 4 + objectness + labels
    rng = np.random.default_rng(7)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("Sigmoid", ["r"], ["s"]),
        helper.make_node("Mul", ["s", "sizes"], ["y"] if not objectness else ["m"]),
    ]
    sizes = np.array([SIDE, SIDE, SIDE / 2, SIDE / 2, *[1.0] * (rows - 4)], np.float32).reshape(1, rows, 1)
    constants: dict[str, np.ndarray] = {
        "w": rng.normal(0, 0.08, (rows, 3, 8, 8)).astype(np.float32),
        "b": rng.normal(0, 0.2, rows).astype(np.float32),
        "flat": np.array([1, rows, CELLS], np.int64),
        "sizes": sizes,
    }
    shape = [1, rows, CELLS]
    if objectness:
        nodes.append(helper.make_node("Transpose", ["m"], ["y"], perm=[0, 2, 1]))
        shape = [1, CELLS, rows]
    notes = {
        "description": "Ultralytics YOLO model",
        "stride": "32",
        "task": "detect",
        "batch": "1",
        "imgsz": "[64, 64]",
        "names": str({index: f"kind {index}" for index in range(labels)}),
        "args": "{'nms': False}",
    }
    return make(nodes, constants, [1, 3, SIDE, SIDE], {"y": shape}, notes)


def mask_model() -> bytes:
    """Two labels: the second where a 4 x 4 px grey picture is bright."""
    nodes = [helper.make_node("Sub", ["one", "x"], ["dark"]), helper.make_node("Concat", ["dark", "x"], ["y"], axis=1)]
    return make(nodes, {"one": np.array(1.0, np.float32)}, [1, 1, 4, 4], {"y": [1, 2, 4, 4]})


def number_model(inputs: int, outputs: int) -> bytes:
    """Sums of the inputs, each times the number of the output; any number of rows."""
    weights = np.outer(np.ones(inputs), np.arange(1, outputs + 1)).astype(np.float32)
    return make([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights}, [None, inputs], {"y": [None, outputs]})


def rows_model(rows: np.ndarray) -> bytes:
    """A detector that gives the same rows for every picture: corners, score and label index."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "zero"], ["z"]),
        helper.make_node("Add", ["rows", "z"], ["y"]),
    ]
    constants: dict[str, np.ndarray] = {"rows": rows[None].astype(np.float32), "zero": np.array(0, np.float32)}
    return make(nodes, constants, [1, 3, SIDE, SIDE], {"y": [1, *rows.shape]})


def dense_model(layers: int, width: int = 512) -> bytes:
    """A classifier of 64 x 64 px grey pictures; each layer multiplies a matrix of 64 x 512 by one of 512 x 512."""
    rng = np.random.default_rng(5)
    constants: dict[str, np.ndarray] = {
        "flat": np.array([SIDE, SIDE], np.int64),
        "first": rng.normal(0, 0.1, (SIDE, width)).astype(np.float32),
        "w": rng.normal(0, 0.05, (width, width)).astype(np.float32),
        "all": np.array([1, -1], np.int64),
        "zero": np.array([0], np.int64),
        "ten": np.array([10], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["r"]), helper.make_node("MatMul", ["r", "first"], ["t0"])]
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"t{layer}", "w"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer + 1}"]))
    nodes.append(helper.make_node("Reshape", [f"t{layers}", "all"], ["row"]))
    nodes.append(helper.make_node("Slice", ["row", "zero", "ten", "one"], ["y"]))
    return make(nodes, constants, [1, SIDE, SIDE, 1], {"y": [1, 10]})
