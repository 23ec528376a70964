"""Shuffled-epoch reading: our reader next to bare pread (the floor of any reader) and pyarrow's row-group reads.

All read the same payload bytes from the same files in one process with a warm page cache. Run: python bench/epoch.py [--smoke]
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from pipelines.lake.lake import lake_at
from pipelines.lake.payload import write_payload_shard
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.open import TrainingSet, open_set
from pipelines.training.permutation import Permutation

SAMPLE_BYTES = int(os.environ.get("EPOCH_SAMPLE_BYTES", "126000"))
SHARD = "payload/frames/000000000001-0.parquet"


def make_set(lake: Path, count: int, given: Sequence[bytes] | None = None) -> TrainingSet:
    body = b"" if given is not None else os.urandom(SAMPLE_BYTES + count)
    payloads = list(given) if given is not None else [body[i : i + SAMPLE_BYTES] for i in range(count)]
    keys = {
        "device": pa.array([f"cam-{i % 100}" for i in range(count)], pa.string()),
        "epoch": pa.array([1] * count, pa.int64()),
        "seq": pa.array(range(count), pa.int64()),
        "payload_sha256": pa.array([hashlib.sha256(payload).hexdigest() for payload in payloads], pa.string()),
    }
    shard = write_payload_shard(lake / SHARD, pa.table({**keys, "payload": pa.array(payloads, pa.binary())}))
    places = {
        "label": pa.array([i % 10 for i in range(count)], pa.int32()),
        "payload_shard": pa.array([SHARD] * count, pa.string()),
        "payload_row": pa.array(range(count), pa.int32()),
        "payload_offset": shard.offsets,
        "payload_length": shard.lengths,
    }
    write_deltalake(lake / "streams/frames", pa.table({**keys, **places}))
    started = time.perf_counter()
    manifest = build_set(lake_at(lake), "bench", ("frames",), options=BuildOptions(split={"train": 1.0}))
    print(f"build: {count / (time.perf_counter() - started):,.0f} samples/s, {manifest.bytes / 1e6:,.0f} MB")
    return open_set(lake / "sets/bench" / str(manifest.version))


def ours(samples: TrainingSet) -> Iterator[int]:
    for sample in samples.shuffled(1):
        yield len(sample.payload or b"")


def ours_with_label(samples: TrainingSet) -> Iterator[int]:
    for sample in samples.shuffled(1):
        yield len(sample.payload or b"") + 0 * sample["label"]


def bare(samples: TrainingSet) -> Iterator[int]:
    index = pa.ipc.open_file(str(samples.folder / "train.index.arrow")).read_all()
    offsets, lengths = (index.column(name).to_pylist() for name in ("payload_offset", "payload_length"))
    shards = samples.manifest.shards_of("train")
    owners = np.repeat(np.arange(len(shards)), [shard.rows for shard in shards]).tolist()
    files = [os.open(samples.folder / shard.path, os.O_RDONLY) for shard in shards]
    for i in np.random.default_rng(1).permutation(len(samples)).tolist():
        yield len(os.pread(files[owners[i]], lengths[i], offsets[i]))
    for file in files:
        os.close(file)


def row_groups(samples: TrainingSet) -> Iterator[int]:
    groups: list[tuple[pq.ParquetFile, int, int]] = []
    for shard in samples.manifest.shards_of("train"):
        file = pq.ParquetFile(samples.folder / shard.path)
        for group in range(file.metadata.num_row_groups):
            groups += [(file, group, row) for row in range(file.metadata.row_group(group).num_rows)]
    for i in Permutation(len(samples), 1).at(np.arange(len(samples), dtype=np.int64)).tolist():
        file, group, row = groups[i]
        yield len(file.read_row_group(group, columns=["payload"]).column(0)[row].as_py())


def forget(samples: TrainingSet) -> None:
    """Have the kernel drop the shards from its page cache; what is dirty is written first."""
    for shard in samples.manifest.shards_of("train"):
        file = os.open(samples.folder / shard.path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def cold_rate(reader: Callable[[TrainingSet], Iterator[int]], samples: TrainingSet, limit: int, repeats: int) -> float:
    """The best of some epochs that begin with nothing in the page cache."""
    best = 0.0
    for _ in range(repeats):
        forget(samples)
        best = max(best, rate(reader, samples, limit, 1))
    return best


def rate(reader: Callable[[TrainingSet], Iterator[int]], samples: TrainingSet, limit: int, repeats: int) -> float:
    """The best of some epochs, in samples a second; checks that each sample came whole."""
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        taken = total = 0
        for size in reader(samples):
            total += size
            taken += 1
            if taken == limit:
                break
        best = max(best, taken / (time.perf_counter() - started))
        assert total == taken * SAMPLE_BYTES
        assert taken == min(limit, len(samples))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few samples only, to see that it runs")
    parser.add_argument("--samples", type=int, default=8_000)
    arguments = parser.parse_args()
    count = 300 if arguments.smoke else arguments.samples
    with tempfile.TemporaryDirectory(prefix="bench-epoch-") as folder:
        samples = make_set(Path(folder), count)
        started = time.perf_counter()
        _ = next(iter(open_set(samples.folder).shuffled(1)))
        print(f"open + first sample: {(time.perf_counter() - started) * 1000:.1f} ms")
        floor = rate(bare, samples, count, 1 if arguments.smoke else 3)
        slow = rate(row_groups, samples, 20 if arguments.smoke else 200, 1)
        print(f"{'reader':32}{'samples/s':>12}{'MB/s':>10}{'x pread':>9}{'x row group':>13}")
        for name, reader in (("catchment shuffled", ours), ("catchment shuffled + label", ours_with_label)):
            got = rate(reader, samples, count, 1 if arguments.smoke else 3)
            print(f"{name:32}{got:12,.0f}{got * SAMPLE_BYTES / 1e6:10,.0f}{got / floor:9.2f}{got / slow:13.0f}")
        cold_floor, cold = (cold_rate(reader, samples, count, 1 if arguments.smoke else 3) for reader in (bare, ours))
        print(f"{'bare pread':32}{floor:12,.0f}{floor * SAMPLE_BYTES / 1e6:10,.0f}{1:9.2f}{floor / slow:13.0f}")
        rate_mb = cold * SAMPLE_BYTES / 1e6
        print(f"{'catchment, cold':32}{cold:12,.0f}{rate_mb:10,.0f}{cold / cold_floor:9.2f} of cold pread")
        print(f"{'bare pread, cold':32}{cold_floor:12,.0f}{cold_floor * SAMPLE_BYTES / 1e6:10,.0f}")
        print(f"{'pyarrow row group, random row':32}{slow:12,.0f}{slow * SAMPLE_BYTES / 1e6:10,.0f}{slow / floor:9.2f}{1:13.0f}")


if __name__ == "__main__":
    main()
