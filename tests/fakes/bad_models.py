"""Small ONNX models that are well signed and harm the device: at load, or only on a dark picture."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

_FLOATS = 100_000_000  # 400 MB
_FOREVER = (1 << 62) - 1


def _model(nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())


def _first_two() -> list[NodeProto]:
    return [helper.make_node("Slice", ["x", "zero", "two", "one"], ["first"])]


_SLICE = {"zero": np.array([0], np.int64), "one": np.array([1], np.int64), "two": np.array([2], np.int64)}


def hungry_model() -> bytes:
    """Takes 400 MB when it is loaded."""
    nodes = [
        *_first_two(),
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many", "zero"], ["sum"], keepdims=1),
        helper.make_node("Add", ["first", "sum"], ["y"]),
    ]
    return _model(nodes, {**_SLICE, "size": np.array([_FLOATS], np.int64)})


def hoarding_model() -> bytes:
    """Takes 400 MB when it is loaded, and never gives them back."""
    nodes = [
        *_first_two(),
        helper.make_node("ConstantOfShape", ["size"], ["many"]),
        helper.make_node("ReduceSum", ["many", "zero"], ["sum"], keepdims=1),
        helper.make_node("Add", ["first", "sum"], ["large"]),
        *_loop("large", "looped", "forever"),
        helper.make_node("ReduceMax", ["many"], ["most"], keepdims=0),
        helper.make_node("Add", ["looped", "most"], ["y"]),
    ]
    forever = np.array(_FOREVER, np.int64)
    return _model(nodes, {**_SLICE, "size": np.array([_FLOATS], np.int64), "forever": forever})


def endless_model() -> bytes:
    """Never answers anything."""
    return _model([*_first_two(), *_loop("first", "y", "forever")], {**_SLICE, "forever": np.array(_FOREVER, np.int64)})


def slow_model(seconds: float) -> bytes:
    """Takes about so many seconds for a picture on one core of a server, at least."""
    trips = np.array(int(seconds * 1_000_000), np.int64)
    return _model([*_first_two(), *_loop("first", "y", "trips")], {**_SLICE, "trips": trips})


def _loop(given: str, result: str, trips: str) -> list[NodeProto]:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Cos", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [None, 2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, 2]),
        ],
    )
    return [helper.make_node("Loop", [trips, "", given], [result], body=body)]


def moody_model(mood: str) -> bytes:
    """Answers the golden input and bright pictures; on a dark one it fails, hangs, or takes memory without end.

    Args:
        mood: "fails", "hangs" or "eats".
    """
    nodes = [
        *_first_two(),
        helper.make_node("ReduceSum", ["x"], ["light"], keepdims=0),
        helper.make_node("Less", ["light", "limit"], ["is_dark"]),
        helper.make_node("Where", ["is_dark", "bad", "good"], ["chosen"]),
    ]
    constants: dict[str, np.ndarray] = {**_SLICE, "limit": np.array(1.0, np.float32), "good": np.array(1, np.int64)}
    if mood == "fails":
        nodes += [
            helper.make_node("Gather", ["table", "chosen"], ["offset"]),
            helper.make_node("Add", ["first", "offset"], ["y"]),
        ]
        constants |= {"bad": np.array(100, np.int64), "table": np.zeros(2, np.float32)}
    elif mood == "hangs":
        nodes += _loop("first", "y", "chosen")
        constants |= {"bad": np.array(_FOREVER, np.int64)}
    else:
        nodes += [
            helper.make_node("Unsqueeze", ["chosen", "zero"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["many"]),
            helper.make_node("ReduceSum", ["many", "zero"], ["sum"], keepdims=1),
            helper.make_node("Add", ["first", "sum"], ["y"]),
        ]
        constants |= {"bad": np.array(_FLOATS, np.int64)}
    return _model(nodes, constants)


def check(body: bytes) -> None:
    """Make sure that a model is well formed."""
    onnx.checker.check_model(onnx.load_from_string(body))
