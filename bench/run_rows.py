"""Rows per second from landing to committed lake, telemetry with 50 rules, next to bare pyarrow reading and writing the same.

python bench/run_rows.py [--smoke]
"""

import argparse
import cProfile
import io
import os
import pstats
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catchment.runtime.clock import SystemClock
from pipelines.bridge.rows import LandingRow, rows_to_batch
from pipelines.bridge.segment import OpenSegment, read_segment
from pipelines.config import CoreConfig
from pipelines.ingest.graph import worker_pool
from pipelines.ingest.loop import RunLoop
from pipelines.runners.engine import Engine
from schemas.contract import ColumnType, builtin_contract
from schemas.envelope import ARROW_STREAM, EnvelopeHead, Span
from schemas.ids import DeviceId, StreamName

START_US = 1_790_000_000_000_000
SAMPLES = 1_000
STREAM = "vehicle_telemetry"


class Nobody:
    def publish(self, messages: Mapping[str, bytes]) -> None:
        pass


def body(first: int, random: np.random.Generator) -> bytes:
    columns = {"event_time": pa.array(START_US + np.arange(first, first + SAMPLES) * 10_000).cast(pa.timestamp("us", "UTC"))}
    for column in builtin_contract(STREAM).columns:
        if column.name == "frame":
            columns[column.name] = pa.array(np.arange(first, first + SAMPLES))
        elif column.name == "clock_quality":
            columns[column.name] = pa.array(["gnss"] * SAMPLES)
        elif column.type is ColumnType.FLOAT64:
            columns[column.name] = pa.array(random.uniform(0.0, 1.0, SAMPLES).astype(np.float64))
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def land(root: Path, envelopes: int, per_segment: int) -> None:
    folder = root / "landing" / "b0"
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    # As many as one file holds: were they fewer, the same numbers would come again in it, and zstd would find them.
    bodies = [body(index * SAMPLES, random) for index in range(min(envelopes, per_segment))]
    for number, start in enumerate(range(0, envelopes, per_segment), 1):
        rows = []
        for index in range(start, min(start + per_segment, envelopes)):
            device = f"car-{index % 20}"
            span = Span(1, (index // 20) * SAMPLES, SAMPLES)
            head = EnvelopeHead(DeviceId(device), StreamName(STREAM), ARROW_STREAM, span, builtin_contract(STREAM).version)
            rows.append(
                LandingRow(
                    START_US, "up", f"catchment/up/{device}/{STREAM}", bodies[index % per_segment], device, STREAM, ARROW_STREAM,
                    head.to_properties(), span,
                )
            )  # fmt: skip
        segment = OpenSegment(folder, number)
        for at in range(0, len(rows), 100):
            segment.append(rows_to_batch(rows[at : at + 100]))
        segment.sync()
        segment.seal()


def rules(folder: Path, count: int) -> None:
    folder.mkdir()
    columns = ["speed_mps", "steering_deg", "acceleration_mps2", "yaw_rate_dps", "vel_x", "vel_y", "qw", "qx"]
    text = io.StringIO()
    text.write(f"id: bench\nstreams: [{STREAM}]\nrules:\n")
    for index in range(count):
        name = columns[index % len(columns)]
        text.write(f'  - tag: "t{index}"\n    when: "{name} > {0.90 + 0.001 * index:.3f} and {columns[(index + 1) % 8]} < 0.5"\n')
    (folder / "bench.yaml").write_text(text.getvalue())


def cpu_s(workers: Sequence[int]) -> float:
    """Seconds of CPU of this process and of those, from /proc: what `getrusage` knows of children, it knows after their end."""
    ticks = 0
    for pid in workers:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(stat[11]) + int(stat[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def bare(root: Path, out: Path) -> tuple[float, float, int]:
    """Read every envelope with pyarrow, put them together, write one Parquet file per segment: no checks, rules or commit."""
    out.mkdir()
    started, cpu, count = time.perf_counter(), time.process_time(), 0
    for path in sorted((root / "landing" / "b0").glob("*.arrows")):
        batches = []
        with pa.memory_map(str(path)) as source:
            for landed in pa.ipc.open_stream(source):
                batches += [pa.ipc.open_stream(value.as_buffer()).read_next_batch() for value in landed.column("payload")]
            table = pa.Table.from_batches(batches)
            pq.write_table(table, out / f"{path.stem}.parquet", compression="zstd", compression_level=1, use_dictionary=False)
            count += table.num_rows
    return time.perf_counter() - started, time.process_time() - cpu, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, only to see that it runs")
    parser.add_argument("--rules", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="worker threads of the in-process runner")
    parser.add_argument("--workers", type=int, default=2, help="child processes that settle the items, as `run.worker_processes`")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    envelopes, per_segment = (40, 20) if options.smoke else (4_000, 400)
    folder = Path(tempfile.mkdtemp(prefix="run-rows-"))
    try:
        root = folder / "lake"
        land(root, envelopes, per_segment)
        rules(folder / "policies", options.rules)
        list(read_segment(root / "landing" / "b0" / "000000000001.arrows"))
        bare_s, bare_cpu, bare_rows = bare(root, folder / "bare")
        config = CoreConfig(lake=str(root), policies=str(folder / "policies"))
        warm = folder / "warm"
        land(warm, 20, 20)
        RunLoop(CoreConfig(lake=str(warm)), Nobody(), SystemClock(), Engine("FnApiRunner"), options.workers).step()
        threads = (
            (f"--direct_num_workers={options.threads}", "--direct_running_mode=multi_threading") if options.threads > 1 else ()
        )
        size = 0 if options.profile else options.workers
        workers: list[int] = []
        if size:
            worker_pool(size).warm(size)  # as the loop does before it says that it is ready
            workers = worker_pool(size).pids
        loop = RunLoop(config, Nobody(), SystemClock(), Engine("FnApiRunner", threads), size)
        started, cpu = time.perf_counter(), cpu_s(workers)
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(loop.step)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        while loop.step():
            pass
        took, cpu = time.perf_counter() - started, cpu_s(workers) - cpu
        rows = sum(counts.committed for counts in loop.ledger.books.values())
        assert rows == envelopes * SAMPLES == bare_rows, (rows, bare_rows)
        for name, wall_s, used_s in (("bare pyarrow read + write", bare_s, bare_cpu), ("landing -> committed, rules", took, cpu)):
            print(f"{name:28} {rows / wall_s / 1e6:6.2f} M rows/s   {wall_s:6.2f} s   {used_s:6.2f} s of CPU")
        print(f"next to bare: {bare_s / took:.2f} of its rate, {bare_cpu / cpu:.2f} of its rows for a second of CPU")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
