"""Windows a second: a set of windows built from rows in memory, next to bare sliding_window_view written by zarr, and read back.

The bare way has one device without holes, on the grid already: no resampling, no mask, no keys, no shuffle.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import zarr
from deltalake import write_deltalake

from pipelines.lake.lake import lake_at
from pipelines.training.array_rules import WindowRule
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.open import open_set
from pipelines.training.shards import Progress
from pipelines.training.window_draft import GridFiles, draft_windows
from pipelines.training.zarr_set import write_windows

RATE_HZ = 50
CHANNELS = ("a", "b", "c")
RUNS = 3


def rows_of(devices: int, seconds: int) -> pa.Table:
    count = seconds * RATE_HZ
    start = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    times = np.tile(start + np.arange(count) * (1_000_000 // RATE_HZ), devices)
    random = np.random.default_rng(1)
    return pa.table({
        "stream": pa.array(["telemetry"] * (devices * count)),
        "device": pa.array(np.repeat([f"car-{number:04d}" for number in range(devices)], count)),
        "epoch": pa.array(np.ones(devices * count, np.int64)),
        "seq": pa.array(np.tile(np.arange(count), devices)),
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        **{name: pa.array(random.normal(size=devices * count)) for name in CHANNELS},
    })  # fmt: skip


def ours(folder: Path, rows: pa.Table) -> tuple[int, dict[str, float]]:
    rule = WindowRule(2.0, 1.0, RATE_HZ, CHANNELS)
    began = time.perf_counter()
    plan = draft_windows([rows], rule, (), GridFiles.beneath(folder, "grid-"))
    planned = time.perf_counter()
    order = np.random.default_rng(2).permutation(len(plan.first))
    write_windows(folder, plan, [("train", order)], Progress())
    return len(order), {"plan": planned - began, "write": time.perf_counter() - planned}


def bare(folder: Path, rows: pa.Table, windows: int) -> None:
    grid = np.stack([rows[name].to_numpy() for name in CHANNELS], axis=1).astype(np.float32)
    view = np.lib.stride_tricks.sliding_window_view(grid, 2 * RATE_HZ, axis=0)[::RATE_HZ][:windows].transpose(0, 2, 1)
    shape = view.shape
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        shard = 13 * 4_096
        array = zarr.create_array(
            str(folder / "bare"),
            shape=shape,
            dtype="float32",
            chunks=(13, *shape[1:]),
            shards=(shard, *shape[1:]),
            compressors=None,
        )
        for low in range(0, len(view), shard):
            array[low : low + shard] = np.ascontiguousarray(view[low : low + shard])


T = TypeVar("T")


def reading(folder: Path, rows: pa.Table) -> dict[str, float]:
    """Windows a second, read at random with their masks: ours in batches and one by one, and zarr itself."""
    write_deltalake(folder / "streams/telemetry", rows.drop_columns(["stream"]))
    rule = WindowRule(2.0, 1.0, RATE_HZ, CHANNELS)
    build_set(lake_at(folder), "drives", ("telemetry",), options=BuildOptions(arrays=rule))
    train = open_set(folder / "sets/drives/1", "train")
    store = str(folder / "sets/drives/1/train.zarr")
    values: Any = zarr.open_array(f"{store}/windows", mode="r")
    mask: Any = zarr.open_array(f"{store}/mask", mode="r")
    few = np.random.default_rng(2).permutation(len(train))[:300].tolist()

    def batches() -> int:
        return sum(len(batch["index"]) for batch in train.numpy(64, seed=1))

    def samples() -> int:
        return sum(1 for _ in train.shuffled(seed=1))

    def one_by_one() -> int:
        return sum(np.asarray(values[at]).ndim // 2 + 0 * np.asarray(mask[at]).ndim for at in few)

    def whole() -> int:
        return len(np.asarray(values[:])) + 0 * np.asarray(mask[:]).ndim

    ways = {"batches": batches, "samples": samples, "zarr at random": one_by_one, "zarr from end to end": whole}
    return {name: statistics.median(_rate(way) for _ in range(RUNS)) for name, way in ways.items()}


def _rate(way: Callable[[], int]) -> float:
    began = time.perf_counter()
    count = way()
    return count / (time.perf_counter() - began)


def timed(work: Callable[[Path], T]) -> tuple[float, T]:
    folder = Path(tempfile.mkdtemp(prefix="windows-"))
    try:
        began = time.perf_counter()
        found = work(folder)
        return time.perf_counter() - began, found
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=2_000)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    rows = rows_of(*((3, 20) if options.smoke else (options.devices, options.seconds)))
    mine: list[float] = []
    theirs: list[float] = []
    windows, parts = 0, dict[str, float]()
    for _ in range(1 if options.smoke else RUNS):
        seconds, (windows, parts) = timed(lambda folder: ours(folder, rows))
        mine.append(seconds)
        theirs.append(timed(partial(bare, rows=rows, windows=windows))[0])
    rate, plain = windows / statistics.median(mine), windows / statistics.median(theirs)
    print(f"{windows:,} windows of 100 steps x 3 channels from {len(rows):,} rows; plan, mask, shuffle and sha256 included")
    print(f"ours {rate:,.0f}/s, bare {plain:,.0f}/s: {rate / plain:.2f}")
    few = rows_of(*((3, 20) if options.smoke else (20, 1_000)))
    with tempfile.TemporaryDirectory(prefix="windows-") as folder:
        rates = reading(Path(folder), few)
    print("read, windows and masks a second:", ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))
    print(f"of the last: plan {parts['plan']:.2f} s, write {parts['write']:.2f} s")


if __name__ == "__main__":
    main()
