"""What a source gave, as rows: for tests that look at values rather than at batches."""

import time
from typing import Any


def rows(source: Any, count: int, within_s: float = 20.0) -> list[dict[str, Any]]:
    """Read until `count` samples came or the time is over: each a mapping of its columns, and `t`, its event time in us."""
    found: list[dict[str, Any]] = []
    until = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < until:
        batch = source.read(1000)
        if batch is not None:
            columns = {**batch.columns, "t": batch.event_time_us}
            found += [{name: cells[row] for name, cells in columns.items()} for row in range(len(batch))]
    return found
