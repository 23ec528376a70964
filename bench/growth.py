"""What grows with the lake: a commit by the commits before it, a run by the devices in the ledger.

Run: python bench/growth.py [--smoke]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from pipelines.ingest.receipts import receipts_of
from pipelines.lake.books import Counts, EpochKey
from pipelines.lake.commit import commit_once
from pipelines.lake.files import write_table_file
from pipelines.lake.layout import RUNS
from pipelines.lake.ledger import Ledger
from pipelines.lake.ledger_files import prune_ledgers, read_ledger, write_ledger
from schemas.ranges import Ranges

WINDOW = 20
TOUCHED = 100
STEPS = 300
STREAM = "vehicle_telemetry"


def commits(root: Path, marks: list[int]) -> None:
    """Milliseconds of a commit (open, look, commit, sync) when the table has so many; the median of many, in turns."""
    rows = pa.table({"device": pa.array(["car-1"] * 100), "seq": pa.array(range(100), pa.int64())})
    took_ms: dict[int, list[float]] = {mark: [] for mark in marks}
    files = {mark: write_table_file(root, f"streams/after-{mark}", "one.parquet", rows) for mark in marks}

    def commit(mark: int, run: int) -> float:
        began = time.perf_counter()
        commit_once(root, files[mark].table, [files[mark]], rows.schema, run)
        return (time.perf_counter() - began) * 1_000

    for mark in marks:
        for run in range(1, mark + 1):
            commit(mark, run)
    # In turns, so that whatever else the machine does is shared alike; over a whole interval of checkpoints.
    for turn in range(1, WINDOW + 1):
        for mark in marks:
            took_ms[mark].append(commit(mark, mark + turn))
    first = statistics.median(took_ms[marks[0]])
    for mark in marks:
        median = statistics.median(took_ms[mark])
        print(f"commit after {mark:6d} commits          {median:8.1f} ms   {median / first:5.2f} x the first")


def devices(count: int) -> None:
    """What a run that touches a hundred devices costs when the ledger knows so many; printed as JSON by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / RUNS).mkdir()
        write_first(root, count)
        before, began, began_cpu = rss_mib(), time.perf_counter(), time.process_time()
        ledger = read_ledger(root, 1)
        load_ms = (time.perf_counter() - began) * 1_000
        load_cpu_ms = (time.process_time() - began_cpu) * 1_000
        held = rss_mib() - before
        took_ms, cpu_ms = [], []
        for run in range(2, STEPS + 2):
            # Each run other devices, so that the delta grows as with a fleet that reports in turns.
            names = [f"car-{(run * TOUCHED + place) % count}" for place in range(min(TOUCHED, count))]
            more = {(name, STREAM): Counts(received=1_000, committed=1_000) for name in names}
            keys = [EpochKey(name, STREAM, 7) for name in names]
            began, began_cpu = time.perf_counter(), time.process_time()
            known = ledger.of(names).ranges()
            touched = {key: known.get(key, Ranges()).union([(run * 1_000, (run + 1) * 1_000)]) for key in keys}
            last, ledger = ledger, ledger.after(run, touched, more, {})
            assert not ledger.unbalanced()
            write_ledger(root, ledger)
            prune_ledgers(root, last, ledger)
            receipts_of(ledger, names)
            took_ms.append((time.perf_counter() - began) * 1_000)
            cpu_ms.append((time.process_time() - began_cpu) * 1_000)
        size = sum(path.stat().st_size for path in (root / RUNS).glob(f"{STEPS + 1:012d}.*"))
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
    write_ledger(root, Ledger().after(1, touched, books, {}))


def rss_mib() -> float:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, only to see that it runs")
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        first(options.first, options.devices)
        return
    if options.devices:
        devices(options.devices)
        return
    root = Path(tempfile.mkdtemp(prefix="growth-"))
    try:
        commits(root, [1, 20] if options.smoke else [1, 100, 1_000])
    finally:
        shutil.rmtree(root)
    for count in (10, 1_000) if options.smoke else (10, 1_000, 100_000):
        done = subprocess.run([sys.executable, __file__, "--devices", str(count)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        load = f"load {found['load']:6.1f} ms ({found['load_cpu']:.1f} of CPU), {found['held']:5.1f} MiB"
        run = f"a run p50 {found['ms']:5.1f} ms ({found['cpu']:.1f} of CPU), p95 {found['p95']:5.1f} ms"
        worst = f"worst {found['worst']:5.1f} ms ({found['worst_cpu']:.1f} of CPU)"
        after = f"{found['grown']:5.1f} MiB after {STEPS} runs, last files {found['file']:6.1f} KiB"
        print(f"ledger of {count:7d} devices: {load}; {run}, {worst}; {after}")


if __name__ == "__main__":
    main()
