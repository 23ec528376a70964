"""A model in a process of its own against the same runtime in this process, and the time from capture to a local program.

python bench/model_child.py [--seconds 8] [--models FOLDER]

Made models of about 1 ms and 40 ms (matrix products), and the ONNX files of a folder that take a picture of known size. Both
sides decode the same picture, run one thread and no arena. The peer is the same code in this process; the floor is the runtime
alone. Wall time on a busy machine says how busy it is: the ratio of processor time is printed next to it.
"""

import argparse
import io
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
from PIL import Image

from edge_agent.models.config import ModelConfig, PictureRequest
from edge_agent.models.inference import LoadedModel
from edge_agent.models.local_consumers import LocalAnswer, LocalConsumers, SocketConsumer
from edge_agent.models.model_process import ModelProcess
from edge_agent.models.prediction_queue import JudgedSamples, PredictionQueue
from edge_agent.models.running import RunningModel
from edge_agent.models.stream_models import ModelOfStream, ModelsOfStream
from edge_agent.sources.api import SampleBatch
from schemas.model import ImageInput, ModelSpec
from schemas.model_tasks import Classify, prediction_columns
from tests.fakes.task_models import dense_model

MADE = {"about 1 ms": 2, "about 40 ms": 60}
TARGETS = {"about 1 ms": 1.5, "about 40 ms": 1.1}
SIDE = 64


def picture(side: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Timed:
    """Calls: the median of their wall time, and what processor time one took, both in ms."""

    wall_ms: float
    cpu_ms: float
    calls: int


def timed(call: Callable[[], object], seconds: float, child: int | None = None) -> Timed:
    """Time the calls of so many seconds, after a few that warm up; with a child's number its processor time counts, too."""
    for _ in range(3):
        call()
    taken: list[float] = []
    until, began_cpu = time.perf_counter() + seconds, time.process_time() + _child_cpu_s(child)
    while time.perf_counter() < until or len(taken) < 10:
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1_000)
    cpu_s = time.process_time() + _child_cpu_s(child) - began_cpu
    return Timed(statistics.median(taken), cpu_s * 1_000 / len(taken), len(taken))


def _child_cpu_s(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(name: str, path: Path, spec: ModelSpec, seconds: float) -> None:
    config, payload = ModelConfig(spec.name, "root.json", ("camera_frame",), max_ms=60_000), picture(SIDE)
    here, child = LoadedModel(path, spec), ModelProcess(path, spec, config)
    child.start()
    request = PictureRequest(payload)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tensor = np.zeros(spec.shape, np.float32)
    runs = []
    for _ in range(3):
        # Side by side, so that a busy machine is busy for both.
        floor = timed(lambda: session.run(None, {session.get_inputs()[0].name: tensor}), seconds / 9)
        mine = timed(lambda: here.look_at(request, lambda _note: None), seconds / 9)
        runs.append((floor, mine, timed(lambda: child.look_at(payload), seconds / 9, child.pid)))
    floor, mine, theirs = sorted(runs, key=lambda run: run[2].cpu_ms / run[1].cpu_ms)[1]
    ratio, target = theirs.cpu_ms / mine.cpu_ms, TARGETS.get(name)
    verdict = "" if target is None else f"   {'within' if ratio <= target else 'ABOVE'} target {target}"
    print(f"{name:<24} wall: runtime {floor.wall_ms:.2f} ms  here {mine.wall_ms:.2f}  child {theirs.wall_ms:.2f}  "
          f"ratio {theirs.wall_ms / mine.wall_ms:.2f} of {theirs.calls} calls")  # fmt: skip
    print(f"{'':<24} processor: here {mine.cpu_ms:.2f} ms  child {theirs.cpu_ms:.2f}  ratio {ratio:.2f}{verdict}")
    print(f"{'':<24} child's peak {child.peak_mib()} MiB")
    measure_delay(spec, child, config, payload, seconds)
    child.close()


def measure_delay(spec: ModelSpec, child: ModelProcess, config: ModelConfig, payload: bytes, seconds: float) -> None:
    """From the batch at the queue to the packet in another thread's hands, less the model's own time."""
    running = RunningModel(threading.Event())
    running.use(child)
    models = ModelsOfStream([ModelOfStream(config, running)], {*prediction_columns(Classify())})
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "answers")
        consumers = LocalConsumers((SocketConsumer(path),))
        model_times: list[float] = []

        def on_answers(judged: JudgedSamples) -> None:
            model_times.append(judged.models_s)
            columns = {name: value for name, value in judged.answers[0].items() if name.startswith("predicted")}
            answer = LocalAnswer("camera_frame", judged.batch.event_time_us[0], spec.name, 1, columns, judged.age_s * 1_000)
            consumers.send(answer, judged.models_s * 1_000)

        queue = PredictionQueue("bench", models, max_waiting=8, max_held_bytes=1 << 24, on_answers=on_answers)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ejector:
            ejector.connect(path)
            ejector.settimeout(60)
            delays: list[float] = []
            until = time.perf_counter() + seconds / 3
            while time.perf_counter() < until or len(delays) < 20:
                began = time.perf_counter()
                queue.submit(SampleBatch([1], {}, [payload]))
                msgspec.json.decode(ejector.recv(65_536))
                delays.append((time.perf_counter() - began - model_times[-1]) * 1_000)
        queue.close()
        consumers.close()
    p95 = sorted(delays)[int(len(delays) * 0.95)]
    verdict = "within" if p95 <= 10 else "ABOVE"
    print(f"{'':<24} capture to program, beyond the model: p95 {p95:.2f} ms of {len(delays)}   {verdict} target 10 ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--models", type=Path, default=None)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, layers) in enumerate(MADE.items()):
            path = Path(folder) / f"made{number}.onnx"
            path.write_bytes(dense_model(layers))
            compare(name, path, ModelSpec("made", 1, ImageInput(SIDE, SIDE, "grey", "nhwc"), softmax=True), given.seconds)
        for path in sorted(given.models.glob("*.onnx")) if given.models is not None else ():
            compare_file(path, given.seconds)


def compare_file(path: Path, seconds: float) -> None:
    shape = onnxruntime.InferenceSession(str(path)).get_inputs()[0].shape
    if len(shape) != 4 or shape[1] not in (1, 3) or not all(isinstance(side, int) for side in shape[2:]):
        print(f"{path.name:<24} skipped: its input {shape} is no picture")
        return
    image = ImageInput(shape[3], shape[2], "grey" if shape[1] == 1 else "rgb")
    compare(path.name, path, ModelSpec("file", 1, image, softmax=True), seconds)


if __name__ == "__main__":
    main()
