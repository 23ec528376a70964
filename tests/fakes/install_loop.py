"""Installs the versions of a model again and again until it is killed: `install_loop.py MODELS ROOT STATE`."""

import sys
from pathlib import Path

from catchment.runtime.clock import SystemClock
from catchment.runtime.clock import SystemClock as CoreClock
from edge_agent.models.config import ModelConfig
from edge_agent.models.updater import ModelUpdater
from pipelines.rollout.keys import KeyFolder
from pipelines.rollout.repository import ModelRepository
from pipelines.rollout.server import answer
from schemas.rollout import Desired, encode_desired


def main() -> None:
    folder, root, state = map(Path, sys.argv[1:])
    models = ModelRepository(folder, KeyFolder(folder / "none"), CoreClock()).models()
    config = ModelConfig("bright", str(root), ("camera_frame",), max_starts=10_000)
    updater = ModelUpdater(config, state, lambda sent: reply(updater, folder, sent.correlation, sent.body), SystemClock())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for model in models:
            desired = Desired("r", model.spec.name, model.spec.version, model.target, 1)
            updater.on_desired(encode_desired(desired))
            updater.try_install()
            sys.stdout.write("installed\n")
            sys.stdout.flush()


def reply(updater: ModelUpdater, folder: Path, correlation: bytes, body: bytes) -> None:
    found = answer(folder, body)
    updater.on_piece(correlation, found.user_properties, found.body)


main()
