"""Installs one model and answers one picture, then says what it imported: `install_once.py MODELS ROOT STATE TARGET`."""

import sys
from pathlib import Path

from catchment.runtime.clock import SystemClock
from edge_agent.models.config import ModelConfig
from edge_agent.models.updater import ModelUpdater
from edge_agent.sources.api import SampleBatch
from schemas.rollout import Desired, encode_desired

HEAVY = ("numpy", "onnxruntime", "PIL")


def main() -> None:
    folder, root, state = map(Path, sys.argv[1:4])
    # The core's side answers from a process of its own: what it imports is not the agent's.
    config = ModelConfig("bright", str(root), ("camera_frame",))
    updater = ModelUpdater(config, state, lambda sent: _reply(updater, folder, sent.correlation, sent.body), SystemClock())
    updater.on_desired(encode_desired(Desired("r", "bright", 1, sys.argv[4], 1)))
    updater.try_install()
    updater.annotate(SampleBatch([0], {"camera": ["c"]}, [b"no picture"]))
    report = updater.report()[0]
    imported = [name for name in HEAVY if name in sys.modules] or ["none"]
    updater.close()
    sys.stdout.write(f"{report.state} {report.version} imported: {' '.join(imported)}\n")


def _reply(updater: ModelUpdater, folder: Path, correlation: bytes, body: bytes) -> None:
    from pipelines.rollout.server import answer

    found = answer(folder, body)
    updater.on_piece(correlation, found.user_properties, found.body)


main()
