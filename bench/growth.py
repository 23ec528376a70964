"""What grows with the lake: a run by the commits before it, by streams it does not touch, and by the devices in the ledger.

Run: python bench/growth.py [--smoke]
"""

import argparse
import dataclasses
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pyarrow as pa
import structlog
from deltalake import DeltaTable

from catchment.runtime.clock import SystemClock
from pipelines.bridge.rows import LandingRow, rows_to_batch
from pipelines.bridge.segment import OpenSegment
from pipelines.config import CoreConfig
from pipelines.contracts.odcs import to_odcs
from pipelines.ingest.loop import RunLoop
from pipelines.ingest.plan import read_plan, write_plan
from pipelines.ingest.receipts import receipts_of
from pipelines.lake.books import Counts, EpochKey
from pipelines.lake.commit import commit_once
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import COMMITS, RUNS, landing_folder, stream_table
from pipelines.lake.ledger import Ledger
from pipelines.lake.ledger_files import prune_ledgers, read_ledger, write_ledger
from pipelines.maintenance.maintain import LogShortener, maintain
from pipelines.maintenance.vacuum import Keep
from pipelines.runners.engine import Engine
from schemas.contract import Column, ColumnType, Contract
from schemas.envelope import ARROW_STREAM, EnvelopeHead, Span
from schemas.ids import DeviceId, StreamName
from schemas.ranges import Ranges

START_US = 1_790_000_000_000_000
TOUCHED = 100
STREAM = "vehicle_telemetry"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is tried.

    Attributes:
        commits: commits behind a lake.
        streams: streams of a lake.
        devices: devices in a ledger.
        turns: measurements of each; a checkpoint comes every twenty commits, so fewer than that miss it.
        steps: runs after which a ledger is looked at.
    """

    commits: tuple[int, ...] = (10, 1_000, 100_000)
    streams: tuple[int, ...] = (1, 10, 100)
    devices: tuple[int, ...] = (10, 1_000, 100_000)
    turns: int = 20
    steps: int = 300


# On a busy machine a run takes two seconds: this is some thirty of them.
SMOKE = Size((10, 100), (1, 5), (10, 1_000), turns=2, steps=20)


def commits(size: Size) -> None:
    """Milliseconds of a run and of its commits when the lake has so many behind it; in turns.

    Never maintained, then as a run loop keeps it that nobody maintains (`LogShortener`), then after maintenance.
    """
    lakes = {mark: Lake(1) for mark in size.commits}
    try:
        for mark, lake in lakes.items():
            lake.run()
            lake.grow_old(mark)
        keep = Keep(grace_s=0, versions=20)
        tidy: dict[str, Callable[[Lake], object]] = {
            "never maintained": lambda _: None,
            "kept by the loop": lambda lake: LogShortener(lake_at(lake.root), keep).after_run(lake.loop.ledger.run),
            "after maintenance": lambda lake: maintain(lake_at(lake.root), keep),
        }
        for when, act in tidy.items():
            for lake in lakes.values():
                act(lake)
            _compare(f"{{:6d}} commits, {when}", lakes, lambda lake: lake.step_ms(1), size.turns)
            _compare(f"{{:6d}} commits, {when}: commit", lakes, lambda lake: lake.commit_ms(), size.turns)
    finally:
        for lake in lakes.values():
            shutil.rmtree(lake.folder)


def streams(size: Size) -> None:
    """Milliseconds of a run that touches one stream, of one that touches all, and of a start, by streams; in turns."""
    lakes = {mark: Lake(mark) for mark in size.streams}
    try:
        for lake in lakes.values():
            lake.run()
        _compare("{:6d} streams: a run that touches one", lakes, lambda lake: lake.step_ms(1), size.turns)
        time.sleep(3)  # what was written to a moment ago is opened at a start
        for lake in lakes.values():
            lake.start_ms()
        _compare("{:6d} streams: a start", lakes, lambda lake: lake.start_ms(), size.turns)
        _compare("{:6d} streams: a run that touches all", lakes, lambda lake: lake.step_ms(lake.count), min(size.turns, 4))
    finally:
        for lake in lakes.values():
            shutil.rmtree(lake.folder)


def _compare(what: str, lakes: dict[int, "Lake"], measure: Callable[["Lake"], float], turns: int) -> None:
    """In turns, so that whatever else the machine does is shared alike."""
    took_ms: dict[int, list[float]] = {mark: [] for mark in lakes}
    for _ in range(turns):
        for mark, lake in lakes.items():
            took_ms[mark].append(measure(lake))
    first = statistics.median(next(iter(took_ms.values())))
    for mark, took in took_ms.items():
        median = statistics.median(took)
        print(f"{what.format(mark):55s} {median:8.1f} ms   {median / first:5.2f} x the first", flush=True)


def _age(table: Path, versions: int) -> None:
    """Give a table of version 1 so many: an entry for each, and a checkpoint with the name of a dead file for each."""
    log, now_ms = table / "_delta_log", time.time_ns() // 1_000_000
    dead = [{"path": f"{run:012d}-0.parquet", "deletionTimestamp": now_ms, "dataChange": False} for run in range(2, versions + 1)]
    mark = {"txn": {"appId": "ingest", "version": versions, "lastUpdated": now_ms}}
    entry = [{"commitInfo": {"timestamp": now_ms}}, mark, *({"remove": each} for each in dead)]
    (log / f"{2:020d}.json").write_text("\n".join(map(json.dumps, entry)))
    DeltaTable(table).create_checkpoint()
    # Replaying a hundred thousand entries takes minutes, and nobody does: there is a checkpoint every twenty.
    (log / f"{2:020d}.checkpoint.parquet").rename(log / f"{versions:020d}.checkpoint.parquet")
    (log / "_last_checkpoint").write_text(json.dumps({"version": versions, "size": len(dead) + 4}))
    for version in range(3, versions + 1):
        (log / f"{version:020d}.json").write_text("\n".join(map(json.dumps, entry[:2])))


class Nobody:
    """Takes receipts."""

    def publish(self, messages: Mapping[str, bytes]) -> None:
        """Leave them."""


class Lake:
    """A lake of so many streams, its contracts, and a loop that has it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.folder = Path(tempfile.mkdtemp(prefix="growth-"))
        self.root = self.folder / "lake"
        (self.folder / "contracts").mkdir()
        self.names = [f"stream_{number}" for number in range(count)]
        for name in self.names:
            contract = Contract(name, "1.0.0", (Column("speed_mps", ColumnType.FLOAT64),))
            (self.folder / "contracts" / f"{name}.odcs.yaml").write_text(to_odcs(contract))
        self.config = CoreConfig(lake=str(self.root), contracts=str(self.folder / "contracts"))
        self.segment = self.seq = self.commit = 0
        self.loop = self.started()

    def started(self) -> RunLoop:
        """A new loop."""
        return RunLoop(self.config, Nobody(), SystemClock(), Engine())

    def run(self) -> None:
        """One run that touches every stream."""
        self.step_ms(self.count)

    def start_ms(self) -> float:
        """What a start takes."""
        began = time.perf_counter()
        self.loop = self.started()
        return (time.perf_counter() - began) * 1_000

    def step_ms(self, touched: int) -> float:
        """What a run takes that touches the first streams."""
        self.segment += 1
        folder = landing_folder(self.root, "b0")
        folder.mkdir(parents=True, exist_ok=True)
        segment = OpenSegment(folder, self.segment)
        segment.append(rows_to_batch([self._envelope(name) for name in self.names[:touched]]))
        segment.sync()
        segment.seal()
        self.seq += 10
        began = time.perf_counter()
        assert self.loop.step()
        return (time.perf_counter() - began) * 1_000

    def commit_ms(self) -> float:
        """What the commit of one more file takes: open, look, commit, sync."""
        self.commit += 1
        rows = pa.table({"device": pa.array(["car-1"] * 10), "seq": pa.array(range(10), pa.int64())})
        file = write_table_file(lake_at(self.root), stream_table(self.names[0]), f"commit-{self.commit}.parquet", rows)
        began = time.perf_counter()
        commit_once(lake_at(self.root), file.table, [file], rows.schema, self.commit, app="bench")
        return (time.perf_counter() - began) * 1_000

    def grow_old(self, runs: int) -> None:
        """Make the lake look as it does after so many runs and the compaction of their files: log entries and dead names."""
        for table in (stream_table(self.names[0]), COMMITS):
            _age(self.root / table, runs)
        plan, ledger = read_plan(lake_at(self.root), 1), read_ledger(lake_at(self.root), 1)
        assert plan is not None
        if runs > 1:
            write_plan(lake_at(self.root), msgspec.structs.replace(plan, run=runs))
            write_ledger(lake_at(self.root), dataclasses.replace(ledger, run=runs, bases=(runs,)))
        self.loop = self.started()

    def _envelope(self, stream: str) -> LandingRow:
        times = pa.array([START_US + (self.seq + at) * 1_000 for at in range(10)]).cast(pa.timestamp("us", "UTC"))
        batch = pa.record_batch({"event_time": times, "speed_mps": pa.array([float(at) for at in range(10)])})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        span = Span(7, self.seq, 10)
        head = EnvelopeHead(DeviceId("car-1"), StreamName(stream), ARROW_STREAM, span, None, "")
        body = bytes(sink.getvalue().to_pybytes())
        topic = f"catchment/up/car-1/{stream}"
        return LandingRow(START_US, "up", topic, body, "car-1", stream, ARROW_STREAM, head.to_properties(), span)


def devices(count: int, steps: int) -> None:
    """What a run that touches a hundred devices costs when the ledger knows so many; printed as JSON by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / RUNS).mkdir()
        write_first(root, count)
        before, began, began_cpu = rss_mib(), time.perf_counter(), time.process_time()
        ledger = read_ledger(lake_at(root), 1)
        load_ms = (time.perf_counter() - began) * 1_000
        load_cpu_ms = (time.process_time() - began_cpu) * 1_000
        held = rss_mib() - before
        took_ms, cpu_ms = [], []
        for run in range(2, steps + 2):
            # Each run other devices, so that the delta grows as with a fleet that reports in turns.
            names = [f"car-{(run * TOUCHED + place) % count}" for place in range(min(TOUCHED, count))]
            more = {(name, STREAM): Counts(received=1_000, committed=1_000) for name in names}
            keys = [EpochKey(name, STREAM, 7) for name in names]
            began, began_cpu = time.perf_counter(), time.process_time()
            known = ledger.of(names).ranges()
            touched = {key: known.get(key, Ranges()).union([(run * 1_000, (run + 1) * 1_000)]) for key in keys}
            last, ledger = ledger, ledger.after(run, touched, more, {})
            assert not ledger.unbalanced()
            write_ledger(lake_at(root), ledger)
            prune_ledgers(lake_at(root), last, ledger)
            receipts_of(ledger, names)
            took_ms.append((time.perf_counter() - began) * 1_000)
            cpu_ms.append((time.process_time() - began_cpu) * 1_000)
        size = sum(path.stat().st_size for path in (root / RUNS).glob(f"{steps + 1:012d}.*"))
        found = {
            "load": load_ms,
            "ms": statistics.median(took_ms),
            "p95": statistics.quantiles(took_ms, n=20)[-1],
            "worst": max(took_ms),
            "cpu": statistics.median(cpu_ms),
            "worst_cpu": max(cpu_ms),
            "load_cpu": load_cpu_ms,
            "held": held,
            "grown": rss_mib() - before,
            "file": size / 1024,
        }
    print(json.dumps(found))


def write_first(root: Path, count: int) -> None:
    """The ledger of a run that touched them all, by another process, whose memory is not this one's."""
    done = subprocess.run([sys.executable, __file__, "--first", str(root), "--devices", str(count)], check=False)
    assert done.returncode == 0


def first(root: Path, count: int) -> None:
    """Write it."""
    touched = {EpochKey(f"car-{number}", STREAM, 7): Ranges(((0, 1_000),)) for number in range(count)}
    books = {(key.device, key.stream): Counts(received=1_000, committed=1_000) for key in touched}
    write_ledger(lake_at(root), Ledger().after(1, touched, books, {}))


def rss_mib() -> float:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, only to see that it runs")
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        first(options.first, options.devices)
        return
    if options.devices:
        devices(options.devices, options.steps)
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    size = SMOKE if options.smoke else Size()
    commits(size)
    streams(size)
    for count in size.devices:
        show_devices(count, size.steps)


def show_devices(count: int, steps: int) -> None:
    """Print what the ledger costs, measured by a process of its own."""
    command = [sys.executable, __file__, "--devices", str(count), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    load = f"load {found['load']:6.1f} ms ({found['load_cpu']:.1f} of CPU), {found['held']:5.1f} MiB"
    run = f"a run p50 {found['ms']:5.1f} ms ({found['cpu']:.1f} of CPU), p95 {found['p95']:5.1f} ms"
    worst = f"worst {found['worst']:5.1f} ms ({found['worst_cpu']:.1f} of CPU)"
    after = f"{found['grown']:5.1f} MiB after {steps} runs, last files {found['file']:6.1f} KiB"
    print(f"ledger of {count:7d} devices: {load}; {run}, {worst}; {after}")


if __name__ == "__main__":
    main()
