"""The same landing through every runner that runs here gives the same rows and the same files, no matter what dies meanwhile."""

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from catchment.runtime.clock import SystemClock
from pipelines.bridge.rows import LandingRow, rows_to_batch
from pipelines.bridge.segment import OpenSegment
from pipelines.config import CoreConfig
from pipelines.errors import RetryLaterError
from pipelines.ingest import plan as plan_module
from pipelines.ingest.loop import RunLoop
from pipelines.runners.engine import Engine
from pipelines.runners.run import opened
from schemas.envelope import ARROW_STREAM, EnvelopeHead, Span
from schemas.ids import DeviceId, StreamName

START_US = 1_790_000_000_000_000
DEADLINE_S = 60.0
SEGMENTS, ENVELOPES, SAMPLES = 12, 5, 40


class Nobody:
    def publish(self, messages: Mapping[str, bytes]) -> None:
        pass


class FixedClock(SystemClock):
    """Plans carry their time, and quarantine rows with it: with one time the files of two runs compare byte by byte."""

    def now_ms(self) -> int:
        return START_US // 1000


def envelope(device: str, stream: str, first: int, body: pa.RecordBatch | None) -> LandingRow:
    sink = pa.BufferOutputStream()
    if body is not None:
        with pa.ipc.new_stream(sink, body.schema) as writer:
            writer.write_batch(body)
    payload = sink.getvalue().to_pybytes() or b"garbage"
    span = Span(7, first, SAMPLES)
    head = EnvelopeHead(DeviceId(device), StreamName(stream), ARROW_STREAM, span)
    return LandingRow(
        START_US, "up", f"catchment/up/{device}/{stream}", payload, device, stream, ARROW_STREAM, head.to_properties(), span
    )


def times(first: int) -> pa.Array:
    return pa.array(START_US + np.arange(first, first + SAMPLES) * 1_000).cast(pa.timestamp("us", "UTC"))


def telemetry(first: int) -> pa.RecordBatch:
    return pa.record_batch({"event_time": times(first), "speed_mps": pa.array(np.arange(SAMPLES) % 40, pa.float64())})


def frames(first: int) -> pa.RecordBatch:
    random = np.random.default_rng(first)
    pictures = [random.bytes(3_000) for _ in range(SAMPLES)]
    digests = [hashlib.sha256(picture).hexdigest() for picture in pictures]
    return pa.record_batch(
        {
            "event_time": times(first),
            "media_type": pa.array(["image/jpeg"] * SAMPLES),
            "payload": pa.array(pictures, pa.binary()),
            "payload_sha256": pa.array(digests),
        }
    )


@pytest.fixture
def landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two streams with payloads, repeats and garbage; each segment is a work item of its own."""
    monkeypatch.setattr(plan_module, "ITEM_BYTES", 1)
    folder = tmp_path / "pristine" / "landing" / "b0"
    folder.mkdir(parents=True)
    for number in range(1, SEGMENTS + 1):
        rows = []
        for index in range(ENVELOPES):
            first = ((number - 1) * ENVELOPES + index) * SAMPLES
            rows.append(envelope(f"car-{index}", "vehicle_telemetry", first, telemetry(first)))
            rows.append(envelope(f"cam-{index}", "camera_frame", first, frames(first)))
        rows.append(rows[0])
        rows.append(envelope("car-9", "vehicle_telemetry", number * SAMPLES, None))
        segment = OpenSegment(folder, number)
        segment.append(rows_to_batch(rows))
        segment.sync()
        segment.seal()
    return tmp_path / "pristine"


def run(landing: Path, lake: Path, engine: Engine, tries: list[str] | None = None) -> dict[str, Any]:
    """Every data file by name with its hash, every table's rows, and the books. Failed tries are told to `tries`."""
    shutil.copytree(landing, lake)
    with opened(engine) as ready:
        loop = RunLoop(CoreConfig(lake=str(lake)), Nobody(), FixedClock(), ready)
        while step(loop, tries):
            pass
    files = {
        str(path.relative_to(lake)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(lake.rglob("*.parquet"))
        if not path.name.startswith(".") and "_delta_log" not in path.parts
    }
    tables = {
        name: sorted(map(str, DeltaTable(lake / name).to_pyarrow_table().to_pylist()))
        for name in ("streams/vehicle_telemetry", "streams/camera_frame", "quarantine", "commits")
    }
    assert not loop.ledger.unbalanced()
    return {"files": files, "tables": tables, "books": loop.ledger.books}


def step(loop: RunLoop, tries: list[str] | None) -> bool:
    try:
        return loop.step()
    except RetryLaterError as error:
        if tries is None:
            raise
        tries.append(str(error))
        return True


@pytest.fixture
def expected(landing: Path, tmp_path: Path) -> dict[str, Any]:
    found = run(landing, tmp_path / "direct", Engine("direct"))
    assert len(found["tables"]["streams/vehicle_telemetry"]) == SEGMENTS * ENVELOPES * SAMPLES
    assert len(found["files"]) > 4 * SEGMENTS
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def make(*command: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"process-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, start: Callable[..., subprocess.Popen[bytes]], folder: Path) -> None:
        self.start, self.folder = start, folder
        self.file = folder / "scheduler.json"
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        self.file.unlink(missing_ok=True)
        command = ("-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file))
        scheduler = self.start(*command)
        until(self.file.exists)
        return scheduler

    def worker(self, *more: str) -> subprocess.Popen[bytes]:
        command = ("-m", "distributed.cli.dask_worker", "--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny")
        return self.start(*command, "--no-dashboard", "--local-directory", str(self.folder), *more)

    def engine(self) -> Engine:
        return Engine("dask", (f"--dask_scheduler_file={self.file}",))


@pytest.fixture
def cluster(start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> Cluster:
    return Cluster(start, tmp_path)


@pytest.mark.slow
def test_a_dask_cluster_whose_worker_is_killed_writes_the_same_files_and_rows(
    landing: Path, expected: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    doomed = cluster.worker("--preload", str(Path(__file__).with_name("dies_at_item.py")))
    cluster.worker()
    wait_for_workers(cluster.file, 2)
    found = run(landing, tmp_path / "dask", cluster.engine())
    assert doomed.wait(DEADLINE_S) == -signal.SIGKILL
    assert found == expected


@pytest.mark.slow
def test_a_dask_cluster_whose_scheduler_is_killed_in_the_middle_is_tried_again_to_the_same_files(
    landing: Path, expected: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    cluster.worker()
    wait_for_workers(cluster.file, 1)
    lake = tmp_path / "dask"

    def strike() -> None:
        until(lambda: any((lake / "streams").rglob("*.parquet")))
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        cluster.start_scheduler()
        cluster.worker()

    killer = threading.Thread(target=strike)
    killer.start()
    tries: list[str] = []
    found = run(landing, lake, cluster.engine(), tries)
    killer.join()
    assert tries, "the graph was done before the scheduler died"
    assert found == expected


def wait_for_workers(address_file: Path, count: int) -> None:
    from distributed import Client

    with Client(scheduler_file=str(address_file)) as client:
        client.wait_for_workers(count, timeout=DEADLINE_S)


@pytest.mark.slow
def test_a_warm_local_cluster_serves_many_runs_with_the_same_files(
    landing: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    with opened(Engine("dask", workers=2)) as engine:
        for number in range(2):
            assert run(landing, tmp_path / f"dask-{number}", engine) == expected


@pytest.mark.slow
def test_the_portable_protocol_carries_the_graph_to_the_same_files(
    landing: Path, expected: dict[str, Any], start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    ports = tmp_path / "port"
    job_server = start(
        "-m", "apache_beam.runners.portability.local_job_service_main", "--port", "0", "--port_file", str(ports),
        "--staging_dir", str(tmp_path / "staging"),
    )  # fmt: skip
    until(lambda: ports.exists() and ports.read_text().strip() != "")
    options = (f"--job_endpoint=localhost:{ports.read_text().strip()}", "--environment_type=LOOPBACK")
    assert run(landing, tmp_path / "portable", Engine("portable", options)) == expected
    assert job_server.poll() is None


@pytest.mark.slow
def test_prism_carries_the_graph_to_the_same_files(landing: Path, expected: dict[str, Any], prism: str, tmp_path: Path) -> None:
    assert run(landing, tmp_path / "prism", Engine("prism", (f"--prism_location={prism}",))) == expected


@pytest.mark.slow
# Beam leaves the pipe of a Prism that died, and the threads that talked to it, as they are.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_prism_that_is_killed_in_the_middle_is_started_again_and_comes_to_the_same_files(
    landing: Path, expected: dict[str, Any], prism: str, tmp_path: Path
) -> None:
    lake = tmp_path / "prism"
    killed: list[int] = []

    def strike() -> None:
        until(lambda: any((lake / "streams").rglob("*.parquet")))
        for process in psutil.Process().children(recursive=True):
            if process.name() == "prism":
                process.kill()
                killed.append(process.pid)

    killer = threading.Thread(target=strike)
    killer.start()
    tries: list[str] = []
    found = run(landing, lake, Engine("prism", (f"--prism_location={prism}",)), tries)
    killer.join()
    assert killed
    assert tries, "the graph was done before Prism died"
    assert found == expected
