"""The same Arrow batches made into Parquet: by a run, by Polars alone, by row-wise Beam `WriteToParquet`.

Run: python bench/run_peers.py [--smoke]
A run checks every row, numbers it, keeps its place in the ledger and commits; the peers only write.
"""

import argparse
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam
import polars as pl
import pyarrow as pa

from bench.run_rows import Nobody, land
from catchment.runtime.clock import SystemClock
from pipelines.bridge.segment import read_segment
from pipelines.config import CoreConfig
from pipelines.ingest.loop import RunLoop
from pipelines.runners.engine import Engine

beam: Any = apache_beam  # it ships types for some calls and none for others


def batches(root: Path) -> list[pa.RecordBatch]:
    return [
        pa.ipc.open_stream(value.as_buffer()).read_next_batch()
        for path in sorted((root / "landing" / "b0").glob("*.arrows"))
        for landed in read_segment(path)
        for value in landed.column("payload")
    ]


def run(root: Path, _out: Path) -> int:
    loop = RunLoop(CoreConfig(lake=str(root)), Nobody(), SystemClock(), Engine())
    while loop.step():
        pass
    return sum(counts.committed for counts in loop.ledger.books.values())


def polars_alone(root: Path, out: Path) -> int:
    rows = 0
    for path in sorted((root / "landing" / "b0").glob("*.arrows")):
        landed = pl.read_ipc_stream(io.BytesIO(path.read_bytes()), columns=["payload"])["payload"]
        table = pl.concat([pl.read_ipc_stream(io.BytesIO(body)) for body in landed])
        table.write_parquet(out / f"{path.stem}.parquet", compression="zstd", compression_level=1)
        rows += table.height
    return rows


def row_wise_beam(root: Path, out: Path) -> int:
    bodies = batches(root)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | "Batches" >> beam.Create(range(len(bodies)), reshuffle=False)
            | "Rows" >> beam.FlatMap(lambda index: bodies[index].to_pylist())
            | "Write" >> beam.io.WriteToParquet(str(out / "rows"), bodies[0].schema, codec="zstd")
        )
    return sum(batch.num_rows for batch in bodies)


def main() -> None:
    """Print each one's rate, and how much faster a run is than row-wise Beam."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small, only to see that it runs")
    options = parser.parse_args()
    envelopes, few = (20, 10) if options.smoke else (400, 20)
    folder = Path(tempfile.mkdtemp(prefix="run-peers-"))
    try:
        land(folder / "warm", 10, 10)
        run(folder / "warm", folder)
        rates = {}
        peers: list[tuple[str, int, Callable[[Path, Path], int]]] = [
            ("landing -> committed (no rules)", envelopes, run),
            ("Polars alone: read, write", envelopes, polars_alone),
            ("Beam WriteToParquet, row by row", few, row_wise_beam),
        ]
        for number, (name, count, peer) in enumerate(peers):
            root, out = folder / f"lake-{number}", folder / f"out-{number}"
            land(root, count, max(count // 10, 1))
            out.mkdir()
            began = time.perf_counter()
            rows = peer(root, out)
            rates[name] = rows / (time.perf_counter() - began)
            print(f"{name:34} {rates[name] / 1e6:8.3f} M rows/s   ({rows} rows)")
        ours, alone, row_wise = rates.values()
        print(f"next to Polars alone {ours / alone:.2f}, next to row-wise Beam {ours / row_wise:.1f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
