"""A shuffled epoch of one set next to other tools, each reading our export of the same samples in its own best way.

Peers that are not installed are left out and named: put `.peers` and `.torch` (make test-peers, make test-torch) on PYTHONPATH.
LitData and WebDataset mix within shards; the others give a true random order. Medians of 3; ratios of one run only.
Run: python bench/set_peers.py [--smoke] [--samples 8000] [--bytes 124000]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench import epoch
from catchment.runtime.clock import SystemClock
from pipelines.lake.lake import lake_at
from pipelines.training.export.run import ExportFormat, ExportOrder, export_set
from pipelines.training.export.samples import ExportSource
from pipelines.training.open import TrainingSet

Sizes = Iterator[int]
Reader = Callable[[], Sizes]
BATCH = 256


def order_of(count: int) -> Iterator[list[int]]:
    order = np.random.default_rng(1).permutation(count)
    for low in range(0, count, BATCH):
        yield order[low : low + BATCH].tolist()


def our_batches(samples: TrainingSet) -> Sizes:
    for batch in samples.numpy(BATCH, seed=1):
        yield from map(len, batch["payload"])


def files(folder: Path, count: int) -> Sizes:
    for batch in order_of(count):
        for number in batch:
            yield len((folder / f"{number:09d}.bin").read_bytes())


def huggingface(folder: Path, cache: Path, count: int) -> Sizes:
    rows = import_module("datasets").load_dataset(str(folder), cache_dir=str(cache))["train"].with_format("arrow")
    for batch in order_of(count):
        yield from (len(payload.as_buffer()) for payload in rows[batch].column("payload"))


def lance(folder: Path, count: int) -> Sizes:
    rows = import_module("lance").dataset(str(folder / "train.lance"))
    for batch in order_of(count):
        yield from (len(payload.as_buffer()) for payload in rows.take(batch, columns=["payload"]).column("payload"))


def litdata(folder: Path) -> Sizes:
    for row in import_module("litdata").StreamingDataset(str(folder / "train"), shuffle=True):
        yield len(row["payload"])


def mds(folder: Path, count: int) -> Sizes:
    rows = import_module("streaming").LocalDataset(str(folder / "train"))
    for batch in order_of(count):
        yield from (len(rows[number]["payload"]) for number in batch)


def webdataset(folder: Path) -> Sizes:
    tars = sorted(map(str, folder.glob("*.tar")))
    for row in import_module("webdataset").WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000):
        # What random bytes begin with may be what a picture begins with, and names the member so.
        yield sum(len(body) for name, body in row.items() if name != "json" and not name.startswith("_"))


def readers(samples: TrainingSet, lake: Path, work: Path) -> dict[str, tuple[Path, Reader]]:
    """Each reader by its name, with the folder of its files."""
    count = len(samples)
    places = {}
    for form in ("huggingface", "lance", "litdata", "mds", "webdataset"):
        needed = {"huggingface": "datasets", "mds": "streaming"}.get(form, form)
        try:
            import_module(needed)
        except Exception as error:  # noqa: BLE001 - whatever keeps a peer from loading is its own affair; it is named
            print(f"left out: {form} ({type(error).__name__}: {str(error)[:80]})")
            continue
        places[form] = work / form
        order = ExportOrder(ExportFormat(form), "a benchmark")
        export_set(lake_at(lake), ExportSource(samples.folder, samples.manifest), places[form], order, SystemClock())
    loose = work / "loose"
    loose.mkdir()
    for number, sample in enumerate(samples):
        (loose / f"{number:09d}.bin").write_bytes(sample.payload or b"")
    found: dict[str, tuple[Path, Reader]] = {
        "bare pread": (samples.folder, lambda: epoch.bare(samples)),
        "catchment, samples": (samples.folder, lambda: epoch.ours(samples)),
        "catchment, batches": (samples.folder, lambda: our_batches(samples)),
        "loose files": (loose, lambda: files(loose, count)),
    }
    peers: dict[str, Reader] = {
        "huggingface": lambda: huggingface(places["huggingface"], work / "cache", count),
        "lance": lambda: lance(places["lance"], count),
        "litdata": lambda: litdata(places["litdata"]),
        "mds": lambda: mds(places["mds"], count),
        "webdataset": lambda: webdataset(places["webdataset"]),
    }
    return found | {name: (places[name], peers[name]) for name in places}


def forget(folder: Path) -> None:
    """Have the kernel drop a folder's files from its memory."""
    for path in (each for each in folder.rglob("*") if each.is_file()):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def rate(reader: Reader, count: int) -> float:
    """Samples a second from the first sample on; checks that every sample came whole."""
    sizes = reader()
    total = next(sizes)
    began = time.perf_counter()
    total += sum(sizes)
    took = time.perf_counter() - began
    assert total == count * epoch.SAMPLE_BYTES, f"{total} bytes came"
    return (count - 1) / took


def table(title: str, rates: dict[str, float]) -> None:
    floor = rates["bare pread"]
    best = max((value for name, value in rates.items() if not name.startswith(("bare", "catchment"))), default=floor)
    print(f"\n{title:24}{'samples/s':>12}{'of pread':>10}{'of best peer':>14}")
    for name, value in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"{name:24}{value:12,.0f}{value / floor:10.2f}{value / best:14.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few samples only, to see that it runs")
    parser.add_argument("--samples", type=int, default=8_000)
    parser.add_argument("--bytes", type=int, default=124_000)
    arguments: Any = parser.parse_args()
    count, repeats = (300, 1) if arguments.smoke else (arguments.samples, 3)
    epoch.SAMPLE_BYTES = 2_000 if arguments.smoke else arguments.bytes
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        lake, work = Path(folder) / "lake", Path(folder) / "work"
        work.mkdir()
        samples = epoch.make_set(lake, count)
        every = readers(samples, lake, work)
        warm: dict[str, list[float]] = {name: [] for name in every}
        cold: dict[str, list[float]] = {name: [] for name in every}
        for _, reader in every.values():
            sum(reader())
        for _ in range(repeats):
            for name, (_, reader) in every.items():
                warm[name].append(rate(reader, count))
        for _ in range(repeats):
            for name, (place, reader) in every.items():
                forget(work / "cache" if name == "huggingface" else place)
                cold[name].append(rate(reader, count))
        table("warm", {name: statistics.median(values) for name, values in warm.items()})
        table("cold", {name: statistics.median(values) for name, values in cold.items()})


if __name__ == "__main__":
    main()
