"""How busy a training job would keep its accelerators on this machine: steps of a fixed length, fed by a reader of a set.

The shapes of the work are those of the MLPerf Storage benchmark; this emulates it, and is no result of it. The share of time in
which an accelerator works is measured next to a control that holds its batches in memory: no storage does better than that.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa

from catchment.runtime.clock import Clock
from pipelines.errors import RefusedError
from pipelines.lake.payload import PAYLOAD_COLUMN, PayloadWriter, group_bounds
from pipelines.training.manifest import FileEntry, Manifest, SplitRule
from pipelines.training.open import TrainingSet
from pipelines.training.shards import file_entry

_SHARD_BYTES = 256 * 1024 * 1024
# Shares nearer than this are equal.
_CLOSE = 0.02


@dataclass(frozen=True, slots=True)
class Workload:
    """What one step of an accelerator takes: `batch` samples of `sample_bytes`, then `step_s` of work."""

    name: str
    sample_bytes: int
    batch: int
    step_s: float
    least_share: float


WORKLOADS = {
    work.name: work
    for work in (
        Workload("unet3d", 146_600_628, 7, 0.323, 0.90),
        Workload("resnet50", 114_660, 400, 0.224, 0.90),
        Workload("retinanet", 322_957, 24, 0.04755, 0.85),
    )
}


@dataclass(frozen=True, slots=True)
class Utilisation:
    """The share of time in which accelerators worked, without their first step, and the samples that all of them read."""

    share: float
    samples_per_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What this machine does for a workload: the control in memory, then from the kernel's memory and from the disk."""

    work: Workload
    accelerators: int
    control: Utilisation
    warm: Utilisation
    cold: Utilisation

    def advice(self) -> tuple[str, ...]:
        """What the figures mean, in words."""
        work, wanted = self.work, self.accelerators
        lines = []
        for place, found in (("kernel's memory", self.warm), ("disk", self.cold)):
            each = work.batch / work.step_s
            feeds = int(found.samples_per_s / (each * work.least_share)) if found.share < work.least_share else wanted
            if found.share >= self.control.share - _CLOSE:
                lines.append(f"from the {place}: feeds {wanted} of them as well as samples in memory would")
            elif found.share >= work.least_share:
                lines.append(f"from the {place}: feeds {wanted} of them; they wait {1 - found.share:.0%} of the time")
            else:
                lines.append(f"from the {place}: feeds {feeds} of them at {work.least_share:.0%}, not {wanted}")
        if self.control.share < work.least_share:
            lines.append("even samples in memory do not keep them busy: this machine has too few cores free, not too slow a disk")
        elif self.cold.share < work.least_share <= self.warm.share:
            lines.append("the disk is what is short: a set that fits into memory is fast from its second epoch on")
        return tuple(lines)


def measure(folder: Path, work: Workload, accelerators: int, total_bytes: int, clock: Clock) -> Measured:
    """Write a set of the workload's shape, read it as a training job would, and leave the folder to the caller.

    Raises:
        RefusedError: two batches for each accelerator do not fit into so many bytes.
        OSError: the disk refused.
    """
    count = total_bytes // work.sample_bytes
    if accelerators < 1 or count < 2 * work.batch * accelerators:
        least = 2 * work.batch * max(1, accelerators) * work.sample_bytes
        raise RefusedError(f"{work.name}: two batches for each of {accelerators} are {least / 1e9:.2f} GB; give as much (--gb)")
    samples = write_random_set(folder, work, count)
    held = [os.urandom(work.sample_bytes)] * work.batch
    steps = count // (work.batch * accelerators)

    def epoch(rank: int, number: int) -> Iterator[list[bytes]]:
        batches = samples.numpy(work.batch, epoch=number, rank=rank, world=accelerators, tail="drop", drop_last=True)
        return (batch["payload"] for batch in batches)

    control = _utilisation([repeat(held, steps) for _ in range(accelerators)], work, clock)
    for entry in samples.manifest.shards:
        _forget(folder / entry.path)
    cold = _utilisation([epoch(rank, 0) for rank in range(accelerators)], work, clock)
    warm = _utilisation([epoch(rank, 1) for rank in range(accelerators)], work, clock)
    return Measured(work, accelerators, control, warm, cold)


def write_random_set(folder: Path, work: Workload, count: int) -> TrainingSet:
    """A set of random samples, laid out as builds lay them out."""
    entries: list[FileEntry] = []
    offsets: list[int] = []
    per_shard = max(1, _SHARD_BYTES // work.sample_bytes)
    for low in range(0, count, per_shard):
        rows = min(per_shard, count - low)
        name = f"train-{len(entries):05d}.parquet"
        with PayloadWriter(folder / name, pa.schema([(PAYLOAD_COLUMN, pa.binary())])) as writer:
            for start, end in group_bounds(np.full(rows, work.sample_bytes, np.int64)):
                bodies = [os.urandom(work.sample_bytes) for _ in range(end - start)]
                writer.append(pa.table({PAYLOAD_COLUMN: pa.array(bodies, pa.binary())}))
            shard = writer.finish()
        entries.append(FileEntry("train", name, shard.rows, shard.bytes, shard.sha256))
        offsets += shard.offsets.to_pylist()
    path = folder / "train.index.arrow"
    index = pa.table({"payload_offset": pa.array(offsets, pa.int64()), "payload_length": [work.sample_bytes] * count})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, index.schema) as out:
        out.write_table(index)
    manifest = Manifest(
        name=work.name, version=1, created_ms=0, code_version="", sources=(), where="", seed=0,
        split=SplitRule(("device",), (("train", 1.0),)), columns=(), has_payload=True, shards=tuple(entries),
        indexes=(file_entry(path, "train", count),),
    )  # fmt: skip
    return TrainingSet(folder, manifest, "train")


def _utilisation(epochs: Sequence[Iterator[list[bytes]]], work: Workload, clock: Clock) -> Utilisation:
    """Run all accelerators at once; after each step they wait for each other, as a job that averages gradients does."""
    together = Barrier(len(epochs))

    def run(batches: Iterator[list[bytes]]) -> tuple[float, float, int]:
        with ThreadPoolExecutor(1) as loader:
            # One batch is worked on, one is ready or on its way.
            coming = loader.submit(next, batches, None)
            began, worked, steps = 0.0, 0.0, -1
            while (batch := coming.result()) is not None:
                coming = loader.submit(next, batches, None)
                at = clock.monotonic_s()
                clock.sleep(work.step_s)
                together.wait()
                steps += 1
                if steps == 0:
                    began = clock.monotonic_s()
                else:
                    worked += min(clock.monotonic_s() - at, work.step_s) * (len(batch) / work.batch)
            return worked, clock.monotonic_s() - began, max(0, steps)

    with ThreadPoolExecutor(len(epochs)) as pool:
        found = list(pool.map(run, epochs))
    wall = max(took for _, took, _ in found)
    share = sum(worked for worked, _, _ in found) / (wall * len(found)) if wall else 0.0
    return Utilisation(share, sum(steps for _, _, steps in found) * work.batch / wall if wall else 0.0)


def _forget(path: Path) -> None:
    """Have the kernel drop a file from its memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
