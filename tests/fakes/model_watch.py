"""A device's models next to a capture that never stops, without a broker: `model_watch.py ROOT STATE MAX_MS PICTURE MIB`.

Reads JSON lines: `{"piece": ...}`, `{"want": ...}`, `{"stop": true}`. Writes JSON lines: `{"ask": ...}` for pieces, and every
100 frames what became of them.
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
from edge_agent.models.config import ModelConfig
from edge_agent.models.updater import ModelUpdater
from edge_agent.sources.api import SampleBatch
from edge_agent.uplink.downlink import ModelRequest
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
    config = ModelConfig("bright", str(root), ("camera_frame",), probation_s=0.0, max_ms=max_ms, max_memory_mib=int(sys.argv[5]))
    stop = threading.Event()
    updater = ModelUpdater(config, state, _ask, SystemClock())

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
    frames, returned, by_version = 0, 0, dict[str, int]()
    while not stop.is_set():
        frames += 1
        batch = updater.annotate(SampleBatch([frames], {"camera": ["c"]}, [bright]))
        returned += len(batch)
        version = str(batch.columns.get("model_version", [None])[0])
        by_version[version] = by_version.get(version, 0) + 1
        if frames % 50 == 0:
            report = updater.report()[0]
            rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            loaded = [name for name in _CHECKERS if name in sys.modules]
            say(pid=os.getpid(), frames=frames, returned=returned, by_version=by_version, version=report.version,
                state=report.state, refused=report.refused, reason=report.reason, rss=rss, loaded=loaded)  # fmt: skip
        time.sleep(0.005)
    updater.close()
    say(frames=frames, returned=returned, stopped=True)


def _ask(request: ModelRequest) -> None:
    say(ask=[request.correlation.hex(), request.body.decode()])


main()
