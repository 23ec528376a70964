"""From the lake to a model: training sets are built, an epoch of each is read back, and a classifier is trained."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.demo.commands import DemoCommands
from pipelines.demo.site import MODEL, DemoSite
from pipelines.demo.train import TrainedModel, train
from pipelines.training.open import open_set

EPOCH_SEED = 1


def build_and_read(commands: DemoCommands, site: DemoSite, name: str, stream: str, where: str) -> tuple[Path, int]:
    """Build a set and read a shuffled epoch of every split of it.

    Returns:
        The set's folder, and the samples read.
    """
    output = commands.run(
        "catchment", "set", "build", name, "--from", stream, "--where", where, "--split", "train=0.8,test=0.2",
        "--group", "device,epoch,seq", "--json", "-c", str(site.core_config),
    )  # fmt: skip
    document = json.loads(output.strip().splitlines()[-1])
    folder = site.lake / "sets" / name / str(document["version"])
    read = 0
    for split in ("train", "test"):
        samples = open_set(folder, split)
        for sample in samples.shuffled(EPOCH_SEED):
            read += 1 if sample.payload is None or len(sample.payload) else 0
    return folder, read


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
    commands.run("catchment", "rollout", "start", MODEL, "--cohort", "all", *core)
    return path
