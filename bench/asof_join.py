"""How an as-of join in batches compares with one bare Polars join_asof over everything in memory.

python bench/asof_join.py [SAMPLES] [OTHERS]
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.training.asof import AsOf, join_as_of

REPEATS = 3
DEVICES = 50
BATCH_ROWS = 65_536


def stream(count: int, seed: int) -> pa.Table:
    """Rows of some devices over a day, in the order of their arrival."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 86_400_000_000, count))
    return pa.table({
        "device": pa.array([f"car-{at}" for at in range(DEVICES)]).take(pa.array(random.integers(0, DEVICES, count))),
        "epoch": pa.array(np.ones(count, np.int64)),
        "seq": pa.array(np.arange(count)),
        "event_time": pa.array(times).cast(pa.timestamp("us", "UTC")),
        "value": pa.array(random.normal(size=count)),
    })  # fmt: skip


def bare(samples: pa.Table, others: pa.Table) -> int:
    """Both sides sorted, one join."""
    left, right = (pl.DataFrame(pl.from_arrow(each)).sort("device", "event_time") for each in (samples, others))
    joined = left.join_asof(right, on="event_time", by="device", strategy="nearest", tolerance="2s", check_sortedness=False)
    return len(joined) - joined["value_right"].null_count()


def ours(samples: pa.Table, others: pa.Table) -> int:
    """The same by batches."""
    join = AsOf({"value": "x"}, 2_000_000)
    return join_as_of(samples, others.to_batches(max_chunksize=BATCH_ROWS), [join], others.schema)[0].matched


def seconds(work: Callable[[pa.Table, pa.Table], int], samples: pa.Table, others: pa.Table) -> tuple[float, int]:
    """The median of some repeats, and what it found."""
    taken = []
    found = 0
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = work(samples, others)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[REPEATS // 2], found


def main() -> None:
    """Print both and their ratio."""
    counts = [int(word) for word in sys.argv[1:]] or [200_000, 5_000_000]
    samples, others = stream(counts[0], 1), stream(counts[-1], 2)
    (polars_s, polars_found), (ours_s, ours_found) = (seconds(work, samples, others) for work in (bare, ours))
    print(
        f"{counts[0]:,} samples, {counts[-1]:,} rows: bare {polars_s:.2f} s ({polars_found:,}), "
        f"ours {ours_s:.2f} s ({ours_found:,})"
    )
    print(f"ratio {ours_s / polars_s:.2f}")


if __name__ == "__main__":
    main()
