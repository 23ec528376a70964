"""What this device's ONNX runtime loads: tiny models of each operator set, tried from the newest on. In a limited process.

The models are written by hand, field by field of `onnx.proto`: a device has no package that makes them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edge_agent.errors import ConfigError
from edge_agent.models.device_class import RuntimeProbe

try:
    import numpy as np
    import onnxruntime
except ImportError as error:  # pragma: no cover  # the bare install
    raise ConfigError(f"a model is configured, but {error.name} is missing; install catchment[infer]") from error

_NEWEST = {"": 40, "ai.onnx.ml": 12}
_OLDEST = 1
_IR_VERSION = 8
_FLOAT = 1
_RUNS = 15
_SIDE = 215  # 215 cubed are 10 million multiplications


def open_probe(_options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Answer each request with what the runtime loads: the target of the process."""
    return lambda _request: msgspec.msgpack.encode(_probe())


def _probe() -> RuntimeProbe:
    plain = _newest("", lambda number: one_node("Identity", "", {"": number}))
    learning = _newest("ai.onnx.ml", lambda number: one_node("Binarizer", "ai.onnx.ml", {"": plain, "ai.onnx.ml": number}))
    opsets = {"": plain, "ai.onnx.ml": learning}
    has_contrib = _session(one_node("Gelu", "com.microsoft", {"": plain, "com.microsoft": 1})) is not None
    session, taken = _session(one_node("MatMul", "", {"": plain}, inputs=2)), []
    matrix = np.ones((_SIDE, _SIDE), np.float32)
    for _ in range(_RUNS if session is not None else 0):
        began = time.perf_counter()
        session.run(None, {"x": matrix, "x1": matrix})
        taken.append(time.perf_counter() - began)
    return RuntimeProbe(opsets, has_contrib, statistics.median(taken) * 1_000 if taken else 0.0)


def _newest(domain: str, model: Callable[[int], bytes]) -> int:
    return next((number for number in range(_NEWEST[domain], _OLDEST - 1, -1) if _session(model(number)) is not None), 0)


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  # the runtime's exceptions share no base; what does not load is what is asked
        return None


def one_node(operator: str, domain: str, opsets: dict[str, int], inputs: int = 1) -> bytes:
    """A model of one node, from floats of two dimensions to such."""
    names = ["x", *(f"x{index}" for index in range(1, inputs))]
    node = b"".join(_text(1, name) for name in names) + _text(2, "y") + _text(4, operator)
    node += _text(7, domain) if domain else b""
    graph = _field(1, node) + _text(2, "g")
    graph += b"".join(_field(11, _value(name)) for name in names) + _field(12, _value("y"))
    sets = b"".join(_field(8, (_text(1, name) if name else b"") + _number(2, number)) for name, number in opsets.items())
    return _number(1, _IR_VERSION) + _field(7, graph) + sets


def _value(name: str) -> bytes:
    sizes = b"".join(_field(1, _text(2, size)) for size in ("n", "m"))
    return _text(1, name) + _field(2, _field(1, _number(1, _FLOAT) + _field(2, sizes)))


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
