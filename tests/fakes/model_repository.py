"""A real TUF repository in a folder, tiny ONNX models, and a way to it without a broker."""

import io
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edge_agent.documents.gate import DocumentInbox
from edge_agent.models.config import ModelConfig
from edge_agent.models.device_models import DeviceModels
from edge_agent.sources.api import SampleBatch
from edge_agent.uplink.downlink import ModelRequest
from pipelines.rollout.golden import try_model
from pipelines.rollout.keys import KeyFolder, KeyPlan
from pipelines.rollout.repository import ModelRepository, PublishedModel
from pipelines.rollout.server import PieceAnswer, answer
from schemas.model import ImageInput
from schemas.rollout import Desired, DesiredModels, encode_desired

IMAGE = ImageInput(4, 4, "grey", "flat")
LABELS = ("dark", "bright")


def tiny_model(bias: float = 0.0, padding: int = 0) -> bytes:
    """An ONNX model that says how bright a 4 x 4 px picture is; `padding` floats make it larger."""
    weights = np.stack([np.full(16, -1 / 16), np.full(16, 1 / 16)], axis=1).astype(np.float32)
    offset = np.array([1.0 + bias, -bias], dtype=np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    initializers = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(offset, "b")]
    if padding:
        filler = np.random.default_rng(padding).random(padding, dtype=np.float32)
        initializers.append(numpy_helper.from_array(filler, "filler"))
        nodes.append(helper.make_node("Identity", ["filler"], ["unused"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class Clock:
    """A clock moved by hand; starts at the machine's time, because TUF looks at that."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now_ms(self) -> int:
        return int((datetime.now(UTC).timestamp() + self.ahead_s) * 1000)

    def monotonic_s(self) -> float:
        return 1000.0 + self.ahead_s

    def sleep(self, seconds: float) -> None:
        self.ahead_s += seconds


@cache
def golden_of(body: bytes) -> tuple[float, ...]:
    """What a model answers on its golden input, tried once: each trial starts a process with the runtime in it."""
    return try_model(body, IMAGE).golden


class Core:
    """The core's side: repository and model server's answers; `tamper` may change any answer on its way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "models"
        self.clock = Clock()
        self.keys = KeyFolder(folder / "keys")
        self.repository = ModelRepository(self.folder, self.keys, self.clock)
        self.root = self.repository.init(KeyPlan())
        self.tamper: Callable[[str, PieceAnswer], PieceAnswer | None] = lambda _request, found: found
        self.requests: list[str] = []

    def publish(self, onnx_bytes: bytes | None = None, *, golden: tuple[float, ...] | None = None) -> PublishedModel:
        """The next version of the model `bright`."""
        body = tiny_model() if onnx_bytes is None else onnx_bytes
        answers = golden_of(body) if golden is None else golden
        return self.repository.publish("bright", body, IMAGE, labels=LABELS, golden=answers)

    def reply(self, body: bytes) -> PieceAnswer | None:
        """What the server says to a request."""
        self.requests.append(body.decode())
        return self.tamper(body.decode(), answer(self.folder, body))


class Device:
    """The device's side, with the core at hand."""

    def __init__(
        self,
        core: Core,
        state: Path,
        *,
        root: Path | None = None,
        orders: DocumentInbox[DesiredModels] | None = None,
        clock: Clock | None = None,
        **config: object,
    ) -> None:
        self.core = core
        self.clock = clock or Clock()
        self.config = ModelConfig("bright", str(root or core.root), ("camera_frame",), **config)  # type: ignore[arg-type]
        self.models = DeviceModels([self.config], state, self._send, self.clock, orders, piece_timeout_s=0.2)
        self.updater = self.models.updaters["bright"]

    def _send(self, request: ModelRequest) -> None:
        found = self.core.reply(request.body)
        if found is not None:
            # As from the network: never within the call that asked.
            threading.Thread(target=self.updater.on_piece, args=(request.correlation, found.user_properties, found.body)).start()

    def want(self, model: PublishedModel, rollout: str = "r") -> str:
        """Hand in a desired state and let the updater work until it has made up its mind; the state it reports."""
        desired = Desired(rollout, model.spec.name, model.spec.version, model.target, 1)
        self.updater.on_desired(encode_desired(desired))
        self.settle()
        return self.updater.report()[0].state

    def close(self) -> None:
        """Stop in order."""
        self.models.close()

    def settle(self) -> None:
        """One round, to the end of the install it starts."""
        self.updater.run_once(wait_s=0.0)
        worker = self.updater.worker
        if worker is not None:
            worker.join(120)

    @property
    def version(self) -> int:
        """The running version."""
        return self.updater.report()[0].version


def picture(level: int, size: int = 20) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), level).save(out, "PNG")
    return out.getvalue()


def frames(*payloads: bytes | Path | None) -> SampleBatch:
    return SampleBatch(list(range(len(payloads))), {"camera": ["c"] * len(payloads)}, list(payloads))
