"""Make a model from the lake: build training sets, read an epoch of each back, train a small classifier, write it as ONNX.

The network is a bank of fixed 5 x 5 filters over the grey picture (differences at two scales, in both directions), the
largest and the mean response of each, and a logistic regression on those: few enough weights for a demo's few pictures, and
seconds on one core. All of it is in the ONNX file, from pixels in 0..1 to class probabilities.
"""

import importlib.util
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipelines.demo.site import MODEL, DemoSite
from pipelines.demo.view import DemoCommands
from pipelines.errors import RefusedError
from pipelines.open_lake import open_lake
from pipelines.training.open import open_set

HEIGHT = 96
WIDTH = 128
OPSET = 17
IR_VERSION = 8  # the oldest that opset 17 allows: devices carry older runtimes
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Features = NDArray[np.float32]

EPOCH_SEED = 1


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model as ONNX bytes, the class names in the order of its outputs, and how often it was right."""

    onnx: bytes
    labels: tuple[str, ...]
    samples: int
    train_accuracy: float
    test_accuracy: float


def train(samples: Iterable[tuple[bytes, str]], seed: int = 0) -> TrainedModel:
    """Train on (JPEG or PNG file, label) pairs; one in four is kept for the test.

    Raises:
        RefusedError: fewer than 8 pictures, or only one label.
    """
    pictures: list[NDArray[np.float32]] = []
    names: list[str] = []
    for body, label in samples:
        pictures.append(pixels(body))
        names.append(label)
    labels = tuple(sorted(set(names)))
    if len(names) < 8 or len(labels) < 2:
        raise RefusedError(f"{len(names)} pictures with labels {', '.join(labels) or 'none'}: give at least 8 with 2 labels")
    x = features(np.asarray(pictures, dtype=np.float32))
    y = np.array([labels.index(name) for name in names])
    held = np.random.default_rng(seed).permutation(len(y)) < len(y) // 4
    if len(set(y[~held])) < len(labels):
        held[:] = False  # a label so rare that the split would take its last picture
    scaler = StandardScaler().fit(x[~held])
    classifier = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2_000).fit(scaler.transform(x[~held]), y[~held])
    right = classifier.predict(scaler.transform(x)) == y
    weight, bias = _folded(classifier, scaler)
    return TrainedModel(
        onnx=_as_onnx(weight, bias, labels),
        labels=labels,
        samples=len(y),
        train_accuracy=float(right[~held].mean()),
        test_accuracy=float(right[held].mean()) if held.any() else float("nan"),
    )


def pixels(body: bytes) -> NDArray[np.float32]:
    """A picture file as the model's input [3, HEIGHT, WIDTH], 0..1."""
    with Image.open(io.BytesIO(body)) as image:
        image.draft("RGB", (WIDTH, HEIGHT))  # as the device does it
        small = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


def features(batch: NDArray[np.float32]) -> Features:
    """Compute the responses of the filters to pictures [n, 3, HEIGHT, WIDTH]: [n, 2 * filters]."""
    grey = np.einsum("nchw,c->nhw", batch, _LUMA)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (5, 5), axis=(1, 2))
    found = np.abs(np.einsum("nhwij,kij->nkhw", windows, _filters(), optimize=True))
    return np.concatenate([found.max(axis=(2, 3)), found.mean(axis=(2, 3))], axis=1).astype(np.float32)


def _filters() -> NDArray[np.float32]:
    line = np.array([-1, -1, 4, -1, -1]) / 4
    step = np.array([-1, -1, 0, 1, 1]) / 4
    smooth = np.array([1, 2, 3, 2, 1]) / 9
    spot = np.full((5, 5), -1 / 16)
    spot[1:4, 1:4] = 1 / 9
    bank: list[NDArray[np.float64]] = [
        np.outer(smooth, line),
        np.outer(line, smooth),
        np.outer(smooth, step),
        np.outer(step, smooth),
        spot,
    ]
    return np.asarray(bank, dtype=np.float32)


def _folded(classifier: LogisticRegression, scaler: StandardScaler) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scaling and regression as one matrix [features, classes] and one bias [classes]."""
    weight, bias = classifier.coef_, classifier.intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps one row, the soft maximum wants two
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([np.zeros(1), bias])
    folded = weight / scaler.scale_
    return folded.T.astype(np.float32), (bias - folded @ scaler.mean_).astype(np.float32)


def _as_onnx(weight: NDArray[np.float32], bias: NDArray[np.float32], labels: tuple[str, ...]) -> bytes:
    bank = _filters()[:, None] * _LUMA[None, :, None, None]  # the grey picture and the filters are one convolution
    nodes = [
        helper.make_node("Conv", ["input", "bank"], ["response"]),
        helper.make_node("Abs", ["response"], ["strength"]),
        helper.make_node("GlobalMaxPool", ["strength"], ["largest"]),
        helper.make_node("GlobalAveragePool", ["strength"], ["mean"]),
        helper.make_node("Concat", ["largest", "mean"], ["pooled"], axis=1),
        helper.make_node("Flatten", ["pooled"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "catchment-demo",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(labels)])],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in (("bank", bank), ("weight", weight), ("bias", bias))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, {"labels": ",".join(labels)})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def build_and_read(commands: DemoCommands, site: DemoSite, name: str, stream: str, where: str) -> tuple[Path, int]:
    """Build a set and read a shuffled epoch of every split of it.

    Returns:
        The set's folder, and the samples read.
    """
    output = commands.run(
        "catchment", "set", "build", name, "--from", stream, "--where", where, "--split", "train=0.8,test=0.2",
        "--group", "device,epoch,seq", "--json", "-c", str(site.core_config),
    )  # fmt: skip
    folder = _built(site, output)
    return folder, read_epoch(folder)


# Frames of the vehicle, each with the nearest telemetry; windows of telemetry with the frame of that moment.
SCENES = """\
id: scenes
description: Frames of the vehicle with its speed and turning at that moment.
sources: [{stream: camera_frame, where: "camera = 'front'"}]
joins: [{stream: vehicle_telemetry, columns: [speed_mps, yaw_rate_dps], tolerance: 200 ms, age: telemetry_age_s}]
where: speed_mps IS NOT NULL
derive: [{name: motion, value: "CASE WHEN abs(yaw_rate_dps) > 8 THEN 'turning' ELSE 'straight' END"}]
label: {column: motion, name: motion_class}
split: {shares: {train: 0.75, test: 0.25}, group: [device], block: 2 s, stratify: [motion_class]}
"""
WINDOWS = (
    "--from", "vehicle_telemetry", "--from", "camera_frame", "--where", "device = 'vehicle-7'", "--format", "zarr",
    "--window", "2s", "--stride", "1s", "--rate", "20", "--columns", "speed_mps,steering_deg,yaw_rate_dps,width",
    "--group", "device", "--block", "4s", "--split", "train=0.75,test=0.25",
)  # fmt: skip
WINDOWS_NAME = "drive-windows"
_BATCH = 16


@dataclass(frozen=True, slots=True)
class VehicleSets:
    """The sets of the vehicle's streams: `scenes` of frames with telemetry, `windows` of arrays; and the samples read of each."""

    scenes: Path
    scene_samples: int
    windows: Path
    window_samples: int


def build_vehicle_sets(commands: DemoCommands, site: DemoSite) -> VehicleSets:
    """Build frames joined with telemetry, stratified by what the vehicle did, and windows of both streams as Zarr arrays."""
    spec = site.folder / "scenes.yaml"
    spec.write_text(SCENES)
    core = ("--json", "-c", str(site.core_config))
    scenes = _built(site, commands.run("catchment", "set", "build", str(spec), "--allow-missing", *core))
    windows = _built(site, commands.run("catchment", "set", "build", WINDOWS_NAME, *WINDOWS, *core))
    return VehicleSets(scenes, read_epoch(scenes), windows, read_epoch(windows))


TISSUE = """\
id: tissue
description: Chips of the slide that hold tissue.
sources: [{stream: slide_chips, where: "has('tissue')"}]
columns: [x, y, tissue, focus, slide_mpp]
split: {shares: {train: 1.0}, group: [source_sha256]}
"""
_PART_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CutSlide:
    """A slide with chips in the lake: its name and size, and how long after the file was complete its row and its chips came."""

    name: str
    megapixels: float
    bytes: int
    parts: int
    chips: int
    tagged: int
    row_s: float
    chips_s: float


def cut_slide(site: DemoSite) -> CutSlide | None:
    """The slide, once it has chips; None before."""
    if not (site.lake / "streams/slide_chips/_delta_log").is_dir():
        return None
    lake = open_lake(site.lake)
    tags = lake.rows("slide_chips", columns=["tags"]).column("tags").to_pylist()
    if not tags:
        return None  # the table is there a moment before its rows
    row = lake.rows("slide").to_pylist()[0]
    began_s = row["event_time"].timestamp()
    row_s, chips_s = (lake.table(name).history(1)[0]["timestamp"] / 1_000 - began_s for name in ("slide", "slide_chips"))
    return CutSlide(
        name=f"{row['device']}/{row['epoch']}/{row['seq']}",
        megapixels=row["width"] * row["height"] / 1e6,
        bytes=row["payload_length"],
        parts=-(-row["payload_length"] // _PART_BYTES),
        chips=len(tags),
        tagged=sum("tissue" in each for each in tags),
        row_s=row_s,
        chips_s=chips_s,
    )


def build_tissue_set(commands: DemoCommands, site: DemoSite) -> tuple[Path, int]:
    """Build a set of the chips with tissue, and read an epoch of it: the set's folder, and the samples read."""
    spec = site.folder / "tissue.yaml"
    spec.write_text(TISSUE)
    folder = _built(site, commands.run("catchment", "set", "build", str(spec), "--json", "-c", str(site.core_config)))
    read = [sample.payload for sample in open_set(folder, "train").shuffled(EPOCH_SEED)]
    return folder, sum(payload is not None and len(payload) > 0 for payload in read)


def _built(site: DemoSite, output: str) -> Path:
    document = json.loads(output.strip().splitlines()[-1])
    return site.lake / "sets" / str(document["name"]) / str(document["version"])


def read_epoch(folder: Path) -> int:
    """Read a shuffled epoch of both splits; the samples read."""
    read = 0
    for split in ("train", "test"):
        for sample in open_set(folder, split).shuffled(EPOCH_SEED):
            read += 1 if sample.payload is None or len(sample.payload) else 0
    return read


def torch_epoch(folder: Path) -> int | None:
    """Load an epoch of the train split as PyTorch tensors; the samples, or None where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    loaded = 0
    for batch in open_set(folder, "train").torch(batch_size=_BATCH, seed=EPOCH_SEED):
        loaded += len(batch["index"])
    return loaded


def train_on(folder: Path) -> TrainedModel:
    """Train on both splits; `train` keeps a part for its own test.

    Raises:
        RefusedError: too few pictures or labels.
    """

    def labelled() -> Iterator[tuple[bytes, str]]:
        for split in ("train", "test"):
            for sample in open_set(folder, split).shuffled(EPOCH_SEED):
                if sample.payload is not None and sample["label"] is not None:
                    yield sample.payload, sample["label"]

    return train(labelled())


def publish(commands: DemoCommands, site: DemoSite, model: TrainedModel) -> Path:
    """Sign the model and roll it out to all devices that run models of its name.

    Returns:
        The ONNX file.
    """
    path = site.folder / f"{MODEL}.onnx"
    path.write_bytes(model.onnx)
    core = ("-c", str(site.core_config))
    commands.run("catchment", "model", "publish", MODEL, str(path), "--labels", ",".join(model.labels), *core)
    commands.run("catchment", "rollout", "start", MODEL, "--cohort", "all", "--waves", "none", *core)
    return path
