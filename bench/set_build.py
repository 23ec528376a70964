"""Build training sets: memory and rows a second for narrow rows; MB/s for payloads, next to a copy and a plain Parquet write.

python bench/set_build.py --smoke
python bench/set_build.py --rows 1000000 10000000 --payload-mb 1000
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from pipelines.lake.payload import write_payload_shard

STREAM = "rows"
FILE_ROWS = 1_000_000
LAKE_SHARD_BYTES = 256_000_000
# A process of its own for each build: its peak memory is that of the build alone.
BUILD = """
import sys, time
from pathlib import Path
from pipelines.lake.lake import lake_at
from pipelines.training.build import BuildOptions, build_set

began = time.perf_counter()
manifest = build_set(lake_at(Path(sys.argv[1])), "bench", ("rows",), options=BuildOptions({"train": 0.8, "test": 0.2}))
# Not ru_maxrss: a child begins with that of the process that started it.
peak_kib = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(manifest.rows, time.perf_counter() - began, time.process_time(), peak_kib // 1024)
"""


def narrow_rows(root: Path, count: int) -> None:
    """A stream of numbers, 8 columns, in files of a million rows."""
    for low in range(0, count, FILE_ROWS):
        size = min(FILE_ROWS, count - low)
        at = np.arange(low, low + size)
        random = np.random.default_rng(low)
        write_deltalake(root / f"streams/{STREAM}", pa.table({
            "device": pa.array([f"car-{number:03d}" for number in range(400)]).take(pa.array(at % 400)),
            "epoch": pa.array(np.ones(size, np.int64)),
            "seq": pa.array(at // 400),
            "event_time": pa.array(1_700_000_000_000_000 + at * 10_000, pa.timestamp("us", "UTC")),
            **{name: pa.array(random.standard_normal(size)) for name in ("speed", "yaw", "brake", "throttle")},
        }), mode="append")  # fmt: skip


def payload_rows(root: Path, count: int, size: int) -> None:
    """A stream of payloads of one size in the lake's own shards."""
    per_shard = max(1, LAKE_SHARD_BYTES // size)
    for number, low in enumerate(range(0, count, per_shard)):
        here = min(per_shard, count - low)
        noise = np.random.default_rng(number).bytes(size + here)
        bodies = pa.array([noise[at : at + size] for at in range(here)], pa.binary())
        keys = {
            "device": pa.array([f"cam-{at % 50:02d}" for at in range(low, low + here)]),
            "epoch": pa.array([1] * here, pa.int64()),
            "seq": pa.array(range(low, low + here), pa.int64()),
        }
        digests = pa.array([hashlib.sha256(body).hexdigest() for body in bodies.to_pylist()])
        name = f"payload/{STREAM}/{number:012d}-0.parquet"
        shard = write_payload_shard(root / name, pa.table({**keys, "payload_sha256": digests, "payload": bodies}))
        write_deltalake(root / f"streams/{STREAM}", pa.table({
            **keys,
            "event_time": pa.array(1_700_000_000_000_000 + np.arange(low, low + here), pa.timestamp("us", "UTC")),
            "payload_shard": pa.array([name] * here),
            "payload_row": pa.array(range(here), pa.int32()),
            "payload_offset": shard.offsets,
            "payload_length": shard.lengths,
            "payload_sha256": digests,
        }), mode="append")  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A build in a process of its own: wall and CPU time, and its peak memory, mapped files included."""

    seconds: float
    cpu_s: float
    peak_mib: int


def built(root: Path) -> Built:
    """Build the stream as a set."""
    shutil.rmtree(root / "sets", ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", BUILD, str(root)], check=True, capture_output=True, text=True)
    _, seconds, cpu_s, peak_mib = done.stdout.split()
    return Built(float(seconds), float(cpu_s), int(peak_mib))


def copied(root: Path) -> float:
    """Seconds to copy the lake's payload shards and sync them: the least that a build of the same bytes can take."""
    target = root / "copy"
    began = time.perf_counter()
    target.mkdir()
    for path in sorted((root / "payload").rglob("*.parquet")):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def plainly_written(root: Path) -> float:
    """Seconds to read the payload shards and write them by pyarrow with its defaults, uncompressed."""
    target = root / "plain"
    began = time.perf_counter()
    target.mkdir()
    for path in sorted((root / "payload").rglob("*.parquet")):
        with pq.ParquetFile(path) as file, pq.ParquetWriter(target / path.name, file.schema_arrow, compression="none") as writer:
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))
        with (target / path.name).open("rb") as done:
            os.fsync(done.fileno())
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def middle(values: list[float]) -> float:
    """The median."""
    return sorted(values)[len(values) // 2]


def narrow(folder: Path | None, count: int) -> None:
    """Measure narrow rows."""
    with tempfile.TemporaryDirectory(prefix="bench-build-", dir=folder) as lake:
        narrow_rows(Path(lake), count)
        done = built(Path(lake))
        print(f"{count:14,}{done.seconds:10.1f}{done.cpu_s:10.1f}{count / done.seconds:12,.0f}{done.peak_mib:10,}")


def payloads(folder: Path | None, payload_mb: int, size: int, repeats: int) -> None:
    """Measure payloads; build, copy and plain write take turns, so that a busy machine is as busy for each."""
    with tempfile.TemporaryDirectory(prefix="bench-build-", dir=folder) as lake:
        root, count = Path(lake), max(1, payload_mb * 1_000_000 // size)
        payload_rows(root, count, size)
        runs = [(built(root), copied(root), plainly_written(root)) for _ in range(repeats)]
        seconds = middle([run[0].seconds for run in runs])
        copy, plain = middle([run[1] for run in runs]), middle([run[2] for run in runs])
        peak = max(run[0].peak_mib for run in runs)
        rate = count * size / seconds / 1e6
        print(f"{size:14,}{count:12,}{rate:12,.0f}{copy / seconds:8.2f}{plain / seconds:17.2f}{peak:10,}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few rows only, to see that it runs")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--payload-mb", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the lakes go; default: the temporary folder")
    given = parser.parse_args()
    rows, payload_mb, repeats = ([10_000], 1, 1) if given.smoke else (given.rows, given.payload_mb, given.repeats)
    print(f"{'narrow rows':>14}{'seconds':>10}{'CPU s':>10}{'rows/s':>12}{'peak MiB':>10}")
    for count in rows:
        narrow(given.folder, count)
    print(f"{'payload':>14}{'samples':>12}{'build MB/s':>12}{'x copy':>8}{'x plain Parquet':>17}{'peak MiB':>10}")
    for size in (124_000, 2_000):
        payloads(given.folder, payload_mb, size, repeats)


if __name__ == "__main__":
    main()
