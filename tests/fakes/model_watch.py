"""A device's models next to a capture that never stops, without a broker.

    model_watch.py ROOT STATE MAX_MS PICTURE MIB TARGET PROBATION_S

Capture reads, hands to the models and stores in order as a source's thread does. TARGET is what the models' processes run.

Reads JSON lines: `{"piece": ...}`, `{"want": ...}`, `{"stop": true}`. Writes JSON lines: `{"ask": ...}` for pieces, and every
50 frames what became of them.
"""

import base64
import json
import os
import sys
import threading
import time
from pathlib import Path

import structlog

from catchment.runtime.clock import SystemClock
from edge_agent.capture.predictions import PredictionWindow
from edge_agent.models import model_process
from edge_agent.models.config import ModelConfig
from edge_agent.models.device_models import DeviceModels
from edge_agent.sources.api import SampleBatch
from edge_agent.uplink.downlink import ModelRequest
from schemas.contract import builtin_contract
from schemas.rollout import Desired, encode_desired

_OUT = threading.Lock()
# They stay in a process that once loaded them.
_CHECKERS = ("tuf", "securesystemslib", "cryptography", "onnxruntime", "numpy")


def say(**message: object) -> None:
    with _OUT:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    root, state, max_ms = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    bright = base64.b64decode(sys.argv[4])
    config = ModelConfig(
        "bright", str(root), ("camera_frame",), probation_s=float(sys.argv[7]), max_ms=max_ms, max_memory_mib=int(sys.argv[5])
    )
    if sys.argv[6]:
        model_process.TARGET = sys.argv[6]
    stop = threading.Event()
    models = DeviceModels([config], state, _ask, SystemClock())
    updater = models.updaters["bright"]

    def hear() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "piece" in message:
                correlation, properties, body = message["piece"]
                updater.on_piece(
                    bytes.fromhex(correlation), [(name, value) for name, value in properties], base64.b64decode(body)
                )
            elif "want" in message:
                version, target = message["want"]
                updater.on_desired(encode_desired(Desired(f"r{version}", "bright", version, target, 1)))
            else:
                stop.set()
                return

    def look_after() -> None:
        while not stop.is_set():
            updater.run_once()

    for target in (hear, look_after):
        threading.Thread(target=target, daemon=True).start()
    _capture(models, bright, stop)


def _capture(models: DeviceModels, bright: bytes, stop: threading.Event) -> None:
    """Read, hand to the models and store in order, as a source's thread does, until it is to stop."""
    updater = models.updaters["bright"]
    predictor = models.predictor(builtin_contract("camera_frame"))
    assert predictor is not None
    window, frames, waiting, stored = PredictionWindow(predictor), 0, 0, Stored()
    while not stop.is_set():
        frames += 1
        batch = SampleBatch([frames], {"camera": ["c"]}, [bright])
        window.add(batch, (batch,), stop)
        for ready, _ in window.ready():
            stored.add(ready)
        waiting = max(waiting, len(window))
        if frames % 50 == 0:
            report = updater.report()[0]
            rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            loaded = [name for name in _CHECKERS if name in sys.modules]
            say(pid=os.getpid(), frames=frames, returned=stored.count, by_version=stored.by_version, version=report.version,
                state=report.state, refused=report.refused, reason=report.reason, rss=rss, loaded=loaded, waiting=waiting,
                counts=updater.counts, on_probation=report.on_probation is True)  # fmt: skip
        time.sleep(0.005)
    for ready, _ in window.drain(1.0):
        stored.add(ready)
    models.close()
    say(frames=frames, returned=stored.count, stopped=True, counts=updater.counts, by_version=stored.by_version)


class Stored:
    """What came out, in order."""

    def __init__(self) -> None:
        self.count = 0
        self.by_version: dict[str, int] = {}

    def add(self, batch: SampleBatch) -> None:
        self.count += len(batch)
        assert batch.event_time_us == [self.count], "out of order"
        version = str(batch.columns.get("model_version", [None])[0])
        self.by_version[version] = self.by_version.get(version, 0) + 1


def _ask(request: ModelRequest) -> None:
    say(ask=[request.correlation.hex(), request.body.decode()])


main()
