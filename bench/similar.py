"""Query an index of 1 M embeddings of 128 numbers: `catchment similar`'s way, next to bare NumPy that compares all of them.

Ours finds the sample in the lake, searches the segments and reads the rows of what was found. Recall is against NumPy.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from pipelines.lake.lake import lake_at
from pipelines.mining import picks
from pipelines.mining.index import EmbeddingIndex
from pipelines.mining.key_index import KeyIndex
from pipelines.mining.rows import RowFilter, StreamRows

DIMENSIONS = 128
FOUND = 20
QUERIES = 15


def vectors_of(count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    centres = random.normal(size=(2_000, DIMENSIONS)).astype(np.float32)
    vectors = centres[random.integers(0, len(centres), count)]
    for low in range(0, count, 100_000):
        vectors[low : low + 100_000] += 0.5 * random.normal(size=vectors[low : low + 100_000].shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write_stream(root: Path, vectors: np.ndarray, files: int) -> None:
    for part in np.array_split(np.arange(len(vectors)), files):
        rows = pa.table({
            "device": pa.array([f"cam-{number % 50}" for number in part.tolist()]),
            "epoch": pa.array(np.ones(len(part), np.int64)),
            "seq": pa.array(part),
            "view_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors[part].ravel()), DIMENSIONS),
        })  # fmt: skip
        write_deltalake(root / "streams/frames", rows, mode="append")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    count = 5_000 if options.smoke else options.vectors
    with tempfile.TemporaryDirectory(prefix="similar-") as folder:
        root = Path(folder)
        vectors = vectors_of(count)
        write_stream(root, vectors, options.files)
        rows = StreamRows(lake_at(root), "frames")
        index = EmbeddingIndex(rows, "view_embedding", lists_from=1_000 if options.smoke else 50_000)
        began, cpu = time.perf_counter(), time.process_time()
        index.sync()
        keys = KeyIndex(rows)
        keys.sync()
        print(f"index of {count:,} x {DIMENSIONS} in {options.files} files: {time.perf_counter() - began:.1f} s"
              f" ({time.process_time() - cpu:.1f} s of CPU)")  # fmt: skip
        everything = RowFilter(rows)
        whole, searched, searched_cpu, bare, hits = [], [], [], [], 0
        for at in np.random.default_rng(2).integers(0, count, 3 if options.smoke else QUERIES).tolist():
            began = time.perf_counter()
            true = np.argpartition(-(vectors @ vectors[at]), FOUND + 1)[: FOUND + 1]
            bare.append(time.perf_counter() - began)
            began = time.perf_counter()
            cpu = time.process_time()
            index.search(vectors[at], FOUND)
            searched.append(time.perf_counter() - began)
            searched_cpu.append(time.process_time() - cpu)
            began = time.perf_counter()
            sample = f"cam-{at % 50}/1/{at}"
            found = picks.similar(index, keys, [sample], FOUND, everything, is_exact=False)
            names = [pick.sample for pick in picks.describe(rows, found)[0]]
            whole.append(time.perf_counter() - began)
            wanted = {f"frames/cam-{each % 50}/1/{each}" for each in true.tolist() if each != at}
            hits += len(wanted & set(names))
        recall = hits / FOUND / len(whole)
        search_ms, cpu_ms, bare_ms, whole_ms = (statistics.median(each) * 1e3 for each in (searched, searched_cpu, bare, whole))
        print(f"search {search_ms:.1f} ms ({cpu_ms:.1f} ms of CPU), bare NumPy over all {bare_ms:.1f} ms, "
              f"recall@{FOUND} {recall:.3f}; sample to rows {whole_ms:.0f} ms")  # fmt: skip
        began, cpu = time.perf_counter(), time.process_time()
        picks.rare(rows, index, keys, FOUND, everything, seed=0, references=100 if options.smoke else picks.REFERENCES)
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(f"rare: {took:.1f} s ({cpu:.1f} s of CPU); peak {peak_gib:.1f} GiB")


if __name__ == "__main__":
    main()
