"""Durable capture: samples/s through encode and append, and frames next to a plain write + fdatasync of the same bytes.

    python bench/spool_append.py [--smoke] [--folder DIR]

Every figure is taken when the last batch is durable. A source's thread encodes, a second one stores large bodies next to it,
the spool's writer has its own. The floors of frames write the same bytes in one thread: synced every 8 frames, synced as
seldom as the spool did in the same round, and that with a SHA-256 of each frame before. Ratios are taken within a round.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.transforms import Transforms
from edge_agent.config import SourceConfig
from edge_agent.errors import SourceEndedError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.spool.database import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.contract import Column, ColumnType, Contract, PayloadSpec
from schemas.ids import StreamName

FRAME_BYTES = 200_000
GIB = 1024**3
# 24 doubles and a time: 200 bytes of values a sample.
WIDE = Contract("wide", "1.0.0", tuple(Column(f"c{n}", ColumnType.FLOAT64) for n in range(24)))
# The same 200 bytes as one time, four doubles and one text of 160 characters: what a log line looks like.
NARROW = Contract(
    "narrow", "1.0.0", (*(Column(f"c{n}", ColumnType.FLOAT64) for n in range(4)), Column("note", ColumnType.STRING))
)
FRAMES = Contract("frames", "1.0.0", (Column("frame", ColumnType.INT64),), PayloadSpec(("image/jpeg",), GIB))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small: does it run?")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the working folder")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    samples, frames, rounds = (20_000, 50, 1) if given.smoke else (500_000, 1_500, given.rounds)
    table = Table(title="durable capture")
    for name in ("what", "figure", "next to plain write + fdatasync"):
        table.add_column(name, justify="left" if name == "what" else "right")
    with tempfile.TemporaryDirectory(dir=given.folder or Path.cwd(), prefix="bench-spool-") as name:
        folder = Path(name)
        for rows in (100, 1_000):
            for contract in (NARROW, WIDE):
                places = [folder / f"{contract.name}{rows}-{n}" for n in range(rounds)]
                rate = statistics.median(samples / _telemetry(place, contract, samples, rows) for place in places)
                table.add_row(
                    f"200 B telemetry ({contract.name}), batches of {rows}: pump (encode + append)", f"{rate:,.0f} samples/s", ""
                )
        for what, rate, share in _frame_rows(folder, frames, rounds):
            table.add_row(f"200 kB frames: {what}", f"{rate / 1e6:,.0f} MB/s", f"{share:.2f}")
    Console(width=130).print(table)


def _median(rounds: int, measure: Callable[[int], float]) -> float:
    return statistics.median(measure(n) for n in range(rounds))


def _telemetry(folder: Path, contract: Contract, samples: int, rows: int) -> float:
    columns = {
        column.name: ["x" * 160] * rows if column.type is ColumnType.STRING else [n * 0.5 for n in range(rows)]
        for column in contract.columns
    }
    batch = SampleBatch(list(range(rows)), columns)
    return _appended(folder, contract, lambda _: batch, samples // rows)


def _frame_rows(folder: Path, frames: int, rounds: int) -> list[tuple[str, float, float]]:
    """What, bytes per second, and the share of the first floor: medians over the rounds."""
    found: dict[str, list[float]] = {}
    for n in range(rounds):
        pump_s, commits = _frames(folder / f"frames{n}", frames)
        per_commit = max(1, frames // commits)
        took = {
            "plain write, fdatasync every 8": _plain(folder / f"plain{n}", frames, 8),
            "plain write, fdatasync as seldom as the spool": _plain(folder / f"seldom{n}", frames, per_commit),
            "the same with SHA-256 of each": _plain(folder / f"hashed{n}", frames, per_commit, is_hashed=True),
            "spool alone (bodies made before)": _stored(folder / f"stored{n}", frames),
            "pump (hash, encode, append)": pump_s,
        }
        for what, took_s in took.items():
            found.setdefault(what, []).append(frames * FRAME_BYTES / took_s)
    floor = next(iter(found.values()))
    shares = {what: statistics.median(r / f for r, f in zip(rates, floor, strict=True)) for what, rates in found.items()}
    return [(what, statistics.median(rates), shares[what]) for what, rates in found.items()]


def _frames(folder: Path, frames: int) -> tuple[float, int]:
    """Seconds, and how many commits."""
    pictures = _pictures()
    commits = [0]
    took_s = _appended(folder, FRAMES, lambda n: SampleBatch([n], {"frame": [n]}, payloads=[pictures[n % 16]]), frames, commits)
    return took_s, commits[0]


def _stored(folder: Path, frames: int) -> float:
    bodies = _pictures()
    with closing(Spool(folder, max_bytes=2 * GIB, linger_ms=20, clock=SystemClock(), page_bytes=LARGE_PAGE_BYTES)) as spool:
        start_s = time.perf_counter()
        under_way = [
            spool.append(Append(StreamName(FRAMES.name), (NewEnvelope(1, bodies[n % 16], "1.0.0"),))) for n in range(frames)
        ]
        for future in under_way:
            future.result()
        return time.perf_counter() - start_s


def _pictures() -> list[bytes]:
    return [os.urandom(FRAME_BYTES) for _ in range(16)]


class _Fixed:
    """A source whose batches cost nothing to make, so that what is measured is all ours."""

    def __init__(self, batch: Callable[[int], SampleBatch], batches: int) -> None:
        self._batch, self._left = batch, batches
        self.stored_count = 0

    def read(self, max_samples: int) -> SampleBatch:  # noqa: ARG002 # the seam's
        if self._left == 0:
            raise SourceEndedError("done")
        self._left -= 1
        return self._batch(self._left)

    def stored(self, batch: SampleBatch) -> None:
        self.stored_count += len(batch)

    def close(self) -> None:
        """Nothing is open."""


def _appended(
    folder: Path, contract: Contract, batch: Callable[[int], SampleBatch], batches: int, commits: list[int] | None = None
) -> float:
    pages = LARGE_PAGE_BYTES if contract.payload else SMALL_PAGE_BYTES  # as the agent does
    spool = Spool(folder, max_bytes=2 * GIB, linger_ms=20, clock=SystemClock(), page_bytes=pages)
    if commits is not None:
        spool.listen(lambda: commits.append(commits.pop() + 1))
    encoder = Encoder(contract, BatchLimits(256 * 1024, 1024 * 1024), spool.put_object)
    source = _Fixed(batch, batches)
    config = SourceConfig(kind="bench", stream=contract.name, max_samples=1)
    pump = SourcePump(config, lambda _: source, encoder, spool, Transforms((), Rejects("bench")), SystemClock())
    start_s = time.perf_counter()
    pump.run(threading.Event())
    took_s = time.perf_counter() - start_s
    books = spool.books()[0]
    assert books.is_balanced
    assert books.spooled == books.captured
    spool.close()
    return took_s


def _plain(path: Path, frames: int, frames_per_sync: int, *, is_hashed: bool = False) -> float:
    pictures = _pictures()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    start_s = time.perf_counter()
    for n in range(frames):
        if is_hashed:
            hashlib.sha256(pictures[n % 16]).hexdigest()
        os.write(descriptor, pictures[n % 16])
        if n % frames_per_sync == frames_per_sync - 1:
            os.fdatasync(descriptor)
    os.fdatasync(descriptor)
    took_s = time.perf_counter() - start_s
    os.close(descriptor)
    return took_s


if __name__ == "__main__":
    main()
