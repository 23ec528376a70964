"""The demo's devices: programs that drop pictures into a watched folder, or print one sample a line for the source `exec`.

python -m pipelines.demo.devices camera --folder line --seconds 30
python -m pipelines.demo.devices vehicle-camera | telemetry | switch --seconds 30
"""

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from catchment.runtime.atomic_files import write_unsynced
from pipelines.demo import drawn
from pipelines.demo.drawn import Value, drive, flows

LINE_CAMERA_HZ = 6.0
VEHICLE_CAMERA_HZ = 2.0
TELEMETRY_HZ = 20.0
SWITCH_HZ = 10.0

Emit = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Run:
    """When a device stops: after `seconds`, when the file `until` exists, or when its reader goes away."""

    seed: int
    seconds: float
    until: Path | None
    tally: Path | None

    def ticks(self, rate_hz: float) -> Iterator[int]:
        """Tick numbers, each at its time; a device that fell behind hurries."""
        began = time.monotonic()
        index = 0
        while time.monotonic() - began < self.seconds and not (self.until is not None and self.until.exists()):
            yield index
            index += 1
            time.sleep(max(0.0, began + index / rate_hz - time.monotonic()))


def emit_camera(folder: Path, seed: int) -> Emit:
    """A line camera: `line-000042.jpg` appears whole, after its label (`.json`) and its mask (`masks/….png`)."""
    masks = folder / "masks"
    masks.mkdir(parents=True, exist_ok=True)

    def emit(index: int) -> int:
        frame = drawn.strip_frame(seed, index)
        name = f"line-{index:06d}"
        if frame.label == "defect":
            _drop(masks / f"{name}.png", drawn.png(frame.mask))
        _drop(folder / f"{name}.json", json.dumps({"label": frame.label, "frame": index}).encode())
        _drop(folder / f"{name}.jpg", drawn.jpeg(frame.pixels))
        return 1

    return emit


def emit_vehicle_camera(seed: int) -> Emit:
    """A vehicle's camera: a line of JSON for each frame, the JPEG in it as base64."""
    began_us = _now_us()

    def emit(index: int) -> int:
        now_us = _now_us()
        state = drive(seed, (now_us - began_us) / 1e6)
        picture = drawn.jpeg(drawn.road_frame(seed, index, hour=state.hour, steering_deg=state.steering_deg))
        _print({
            "event_time": now_us / 1e6, "frame": index, "camera": "front", "file_name": f"front-{index:06d}.jpg",
            "media_type": "image/jpeg", "width": drawn.WIDTH, "height": drawn.HEIGHT,
            "payload_b64": base64.b64encode(picture).decode(),
        })  # fmt: skip
        return 1

    return emit


def emit_telemetry(seed: int) -> Emit:
    """A vehicle's motion, a line of JSON for each measurement."""
    began_us = _now_us()

    def emit(index: int) -> int:
        now_us = _now_us()
        state = drive(seed, (now_us - began_us) / 1e6)
        _print({"event_time": now_us / 1e6, "frame": index, **state.columns()})
        return 1

    return emit


def emit_switch(seed: int) -> Emit:
    """A switch's closed connections, a line of JSON for each."""
    ticks = flows(seed)

    def emit(_index: int) -> int:
        rows = next(ticks)
        for row in rows:
            _print({"event_time": _now_us() / 1e6, **row})
        return len(rows)

    return emit


def _print(sample: dict[str, Value]) -> None:
    sys.stdout.write(json.dumps(sample, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _drop(path: Path, content: bytes) -> None:
    """The file appears whole or not at all: a watched folder never shows half a picture."""
    write_unsynced(path, content)


def _now_us() -> int:
    return time.time_ns() // 1_000


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo.devices", description=__doc__)
    parser.add_argument("device", choices=("camera", "vehicle-camera", "telemetry", "switch"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--until", type=Path, help="end when this file exists")
    parser.add_argument("--tally", type=Path, help="write the number of samples here at the end")
    parser.add_argument("--folder", type=Path, help="camera: where the pictures go")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Be one device until told to end. Returns 0; 2 for wrong arguments."""
    given = _arguments(arguments)
    run = Run(given.seed, given.seconds, given.until, given.tally)
    if given.device == "camera":
        if given.folder is None:
            sys.stderr.write("camera: give --folder\n")
            return 2
        emit, rate_hz = emit_camera(given.folder, run.seed), LINE_CAMERA_HZ
    elif given.device == "vehicle-camera":
        emit, rate_hz = emit_vehicle_camera(run.seed), VEHICLE_CAMERA_HZ
    elif given.device == "telemetry":
        emit, rate_hz = emit_telemetry(run.seed), TELEMETRY_HZ
    else:
        emit, rate_hz = emit_switch(run.seed), SWITCH_HZ
    return _run(run, emit, rate_hz)


def _run(run: Run, emit: Emit, rate_hz: float) -> int:
    samples = 0
    try:
        for index in run.ticks(rate_hz):
            samples += emit(index)
    except BrokenPipeError:
        # The agent that reads is gone, and so are we; standard output must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if run.tally is not None:
        _drop(run.tally, f"{samples}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
