"""An epoch through PyTorch's DataLoader with two workers: ours beside LitData and Hugging Face, as bytes or decoded pictures.

Each peer reads our export of the same samples in its own best way; pictures are decoded by the same decoder in all, and beside
the decoder alone in two processes. Put `.peers` and `.torch` (make test-peers, make test-torch) on PYTHONPATH; who is not
installed is left out and named. Medians of 3 epochs from their first batch on, after one that warms all; ratios of one run only.
Run: python -m bench.loader_peers [--smoke] [--samples 8000] [--bytes 124000] [--pictures]
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import epoch
from bench.set_peers import order_of
from catchment.runtime.clock import SystemClock
from pipelines.lake.lake import lake_at
from pipelines.training.batches import decode_image
from pipelines.training.export.run import ExportFormat, ExportOrder, export_set
from pipelines.training.export.samples import ExportSource
from pipelines.training.open import TrainingSet

BATCH = 64
WORKERS = 2
SIDE = 256


def collated(bodies: list[bytes], *, is_decoded: bool) -> Any:
    """What a worker hands over: payloads, or one tensor of pixels."""
    if not is_decoded:
        return bodies
    pixels = np.empty((len(bodies), SIDE, SIDE, 3), np.uint8)
    for at, body in enumerate(bodies):
        pixels[at] = decode_image(body, SIDE, SIDE)
    return import_module("torch").from_numpy(pixels)


class HuggingFaceBatches:
    """Batches by number, each one take of rows that Arrow maps."""

    def __init__(self, folder: Path, cache: Path, count: int, *, is_decoded: bool) -> None:
        self._rows = import_module("datasets").load_dataset(str(folder), cache_dir=str(cache))["train"].with_format("arrow")
        self._batches = [
            batch for big in order_of(count) for batch in (big[low : low + BATCH] for low in range(0, len(big), BATCH))
        ]
        self._is_decoded = is_decoded

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Any:
        rows = self._rows[self._batches[number]]
        column = (
            rows.column("payload") if "payload" in rows.column_names else rows.column("image").combine_chunks().field("bytes")
        )
        bodies = [payload.as_py() for payload in column]
        return collated(bodies, is_decoded=self._is_decoded)


def huggingface(folder: Path, cache: Path, count: int, *, is_decoded: bool) -> Iterator[int]:
    batches = HuggingFaceBatches(folder, cache, count, is_decoded=is_decoded)
    loader = import_module("torch.utils.data").DataLoader(batches, batch_size=None, num_workers=WORKERS)
    return (len(batch) for batch in loader)


class Collate:
    """LitData's rows as a batch."""

    def __init__(self, *, is_decoded: bool) -> None:
        self._is_decoded = is_decoded

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        return collated([bytes(row["payload"]) for row in rows], is_decoded=self._is_decoded)


def litdata(folder: Path, *, is_decoded: bool) -> Iterator[int]:
    library = import_module("litdata")
    rows = library.StreamingDataset(str(folder / "train"), shuffle=True)
    loader = library.StreamingDataLoader(rows, batch_size=BATCH, num_workers=WORKERS, collate_fn=Collate(is_decoded=is_decoded))
    return (len(batch) for batch in loader)


def ours(samples: TrainingSet, *, is_decoded: bool) -> Iterator[int]:
    image = (SIDE, SIDE) if is_decoded else None
    return (len(batch["payload"]) for batch in samples.torch(BATCH, seed=1, workers=WORKERS, image=image))


def decoded_alone(bodies: list[bytes]) -> int:
    return sum(len(collated(bodies[low : low + BATCH], is_decoded=True)) for low in range(0, len(bodies), BATCH))


def decoder(samples: TrainingSet) -> Iterator[int]:
    """The decoder in two processes, each with its half of the payloads in memory; a first batch starts them."""
    bodies = [sample.payload or b"" for sample in samples]
    with ProcessPoolExecutor(WORKERS) as pool:
        yield sum(pool.map(decoded_alone, (bodies[at:BATCH:WORKERS] for at in range(WORKERS))))
        yield sum(pool.map(decoded_alone, (bodies[BATCH + at :: WORKERS] for at in range(WORKERS))))


def pictures(count: int, size: int) -> list[bytes]:
    """JPEGs of 640 x 480 with as much noise as makes them about so large; 64 different ones, each told apart by a comment."""
    random = np.random.default_rng(1)
    kinds = []
    for _ in range(64):
        coarse = Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse).astype(np.int16) + random.integers(-size // 10_000, size // 10_000 + 1, (480, 640, 3))
        body = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(body, "JPEG", quality=90)
        kinds.append(body.getvalue())
    comments = (b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") for number in range(count))
    return [kinds[at % 64][:2] + comment + kinds[at % 64][2:] for at, comment in enumerate(comments)]


def readers(samples: TrainingSet, lake: Path, work: Path, *, is_decoded: bool) -> dict[str, Callable[[], Iterator[int]]]:
    places = {}
    for form in ("huggingface", "litdata"):
        try:
            import_module({"huggingface": "datasets"}.get(form, form))
        except Exception as error:  # noqa: BLE001 - whatever keeps a peer from loading is its own affair; it is named
            print(f"left out: {form} ({type(error).__name__}: {str(error)[:80]})")
            continue
        places[form] = work / form
        source = ExportSource(samples.folder, samples.manifest)
        export_set(lake_at(lake), source, places[form], ExportOrder(ExportFormat(form), "a benchmark"), SystemClock())
    found: dict[str, Callable[[], Iterator[int]]] = {"catchment": lambda: ours(samples, is_decoded=is_decoded)}
    if is_decoded:
        found["decoder alone"] = lambda: decoder(samples)
    peers: dict[str, Callable[[], Iterator[int]]] = {
        "huggingface": lambda: huggingface(places["huggingface"], work / "cache", len(samples), is_decoded=is_decoded),
        "litdata": lambda: litdata(places["litdata"], is_decoded=is_decoded),
    }
    return found | {name: peers[name] for name in places}


def rate(batches: Iterator[int], count: int) -> float:
    """Samples a second from the first batch on; checks that every sample came."""
    first = next(batches)
    began = time.perf_counter()
    rest = sum(batches)
    took = time.perf_counter() - began
    assert first + rest == count, f"{first + rest} samples came"
    return rest / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few samples only, to see that it runs")
    parser.add_argument("--samples", type=int, default=8_000)
    parser.add_argument("--bytes", type=int, default=124_000)
    parser.add_argument("--pictures", action="store_true", help="JPEGs of about so many bytes, decoded in the workers")
    options = parser.parse_args()
    if find_spec("torch") is None:
        print("PyTorch is not here: make fetch-torch, and put .torch on PYTHONPATH; nothing was measured")
        return
    count, repeats = (200, 1) if options.smoke else (options.samples, 3)
    bodies = pictures(count, options.bytes) if options.pictures else None
    epoch.SAMPLE_BYTES = 2_000 if options.smoke else options.bytes
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        lake, work = Path(folder) / "lake", Path(folder) / "work"
        work.mkdir()
        samples = epoch.make_set(lake, count, bodies)
        every = readers(samples, lake, work, is_decoded=options.pictures)
        walls: dict[str, list[float]] = {name: [] for name in every}
        for turn in range(repeats + 1):
            for name, reader in every.items():
                value = rate(reader(), count)
                walls[name] += [value] if turn else []
        rates = {name: statistics.median(values) for name, values in walls.items()}
        best = max(
            (rate for name, rate in rates.items() if name not in ("catchment", "decoder alone")), default=rates["catchment"]
        )
        print(f"{'2 workers':24}{'samples/s':>12}{'of best peer':>14}")
        for name, value in sorted(rates.items(), key=lambda item: -item[1]):
            print(f"{name:24}{value:12,.0f}{value / best:14.2f}")
        if options.pictures:
            print(f"catchment is {rates['catchment'] / rates['decoder alone']:.2f} of the decoder alone")


if __name__ == "__main__":
    main()
