"""Tag a whole stream again: 10 M committed samples x 50 rules, next to reading and writing the same table with pyarrow.

python bench/retag.py                   # 10 M rows in 10 files; needs 3 GB of disk below --folder
python bench/retag.py --smoke           # seconds
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from pipelines.contracts.arrow import table_schema
from pipelines.lake.commit import commit_once
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import lake_at
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import RuleTagger, retag_stream
from schemas.contract import builtin_contract
from schemas.policy import Policy, Rule

CONTRACT = builtin_contract("vehicle_telemetry")
FLOATS = [column.name for column in CONTRACT.columns if column.type == "float64"]


def rule(index: int) -> Rule:
    a, b, c = (FLOATS[(index + shift) % len(FLOATS)] for shift in (0, 1, 3))
    level = index % 7
    texts = (
        f"{a} > {60 - level}",
        f"abs({a}) < 2 AND {c} > {30 + level}",
        f"{a} BETWEEN 40 AND {45 + level}",
        f"{a} * 2 + {b} > {130 + level}",
    )
    return Rule(f"t{index}", texts[index % 4])


def rows(count: int, seed: int, tagger: Tagger) -> pa.Table:
    pick = np.random.default_rng(seed)
    schema = table_schema(CONTRACT)
    times = pa.array(np.arange(count) * 100_000 + 1_790_000_000_000_000).cast(pa.timestamp("us", "UTC"))
    known = {
        "device": pa.array([f"car-{index % 7}" for index in range(7)]).take(pa.array(np.arange(count) % 7)),
        "epoch": pa.repeat(pa.scalar(7, pa.int64()), count),
        "seq": pa.array(np.arange(count)),
        "event_time": times,
        "received_at": times,
        "run": pa.repeat(pa.scalar(seed, pa.int64()), count),
        "contract_version": pa.repeat(pa.scalar(CONTRACT.version), count),
        "frame": pa.array(np.arange(count)),
        **{name: pa.array(pick.normal(0, 30, count)) for name in FLOATS},
    }
    known["tags"], known["tag_rules"] = tagger.tag(pa.table(known))
    columns = [known[field.name] if field.name in known else pa.nulls(count, field.type) for field in schema]
    return pa.table(columns, schema=schema)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    files, per_file = (2, 20_000) if arguments.smoke else (10, 1_000_000)
    root = Path(tempfile.mkdtemp(prefix="catchment-retag-", dir=arguments.folder))
    try:
        measure(root, files, per_file)
    finally:
        shutil.rmtree(root)


def measure(root: Path, files: int, per_file: int) -> None:
    old = Tagger.compile([Policy("old", (CONTRACT.name,), tuple(rule(index) for index in range(0, 50, 5)))], CONTRACT)
    for run in range(1, files + 1):
        written = write_table_file(lake_at(root), "streams/vehicle_telemetry", f"{run:012d}-0.parquet", rows(per_file, run, old))
        commit_once(lake_at(root), "streams/vehicle_telemetry", [written], table_schema(CONTRACT), run)
    policy = Policy("bench", (CONTRACT.name,), tuple(map(rule, range(50))))

    start, cpu = time.perf_counter(), time.process_time()
    found = retag_stream(lake_at(root), CONTRACT.name, [policy], RuleTagger(Tagger.compile([policy], CONTRACT)))
    seconds, busy = time.perf_counter() - start, time.process_time() - cpu
    table = DeltaTable(root / "streams/vehicle_telemetry")
    assert table.transaction_version("ingest") == files
    tags = pa.table(table.to_pyarrow_table(columns=["tags"])).column("tags").combine_chunks()
    assert len(tags) == files * per_file

    path = root / "streams/vehicle_telemetry" / f"{1:012d}-0.parquet"
    start, cpu = time.perf_counter(), time.process_time()
    whole = pq.read_table(path, partitioning=None)
    pq.write_table(whole, root / "whole.parquet", compression="zstd", compression_level=1)
    rewrite, rewrite_busy = (time.perf_counter() - start) * files, (time.process_time() - cpu) * files
    per_row = len(tags.values) / found.rows
    print(f"{found.rows:,} rows x 50 rules, {per_row:.2f} tags a row, {found.bytes / 1e6:,.0f} MB of narrow files")
    rate = found.rows * 50 / seconds / 1e6
    print(f"  retag                   {seconds:7.2f} s  {busy:7.2f} s of CPU  {rate:7.1f} M rules/s")
    print(f"  pyarrow, read and write {rewrite:7.2f} s  {rewrite_busy:7.2f} s of CPU  (no rules; one file, times {files})")
    print(f"  versions {found.before} -> {found.after}, payload bytes written: 0 (no payload folder is opened)")


if __name__ == "__main__":
    main()
