"""As-of joins against the same by hand, row by row."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import RefusedError
from pipelines.training import asof
from pipelines.training.asof import AsOf, join_as_of

START = datetime(2026, 1, 1, tzinfo=UTC)


def rows_of(seed: int, count: int, span_us: int) -> pa.Table:
    random = np.random.default_rng(seed)
    times = [None if at % 11 == 3 else START + timedelta(microseconds=int(random.integers(span_us))) for at in range(count)]
    return pa.table({
        "device": [f"car-{int(random.integers(3))}" for _ in range(count)],
        "epoch": pa.array(random.integers(1, 3, count)),
        "seq": pa.array(np.arange(count)),
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        "speed": pa.array(random.normal(size=count)),
        "signal": [("Speed", "Brake")[int(random.integers(2))] for _ in range(count)],
    })  # fmt: skip


def by_hand(sample: dict[str, Any], others: list[dict[str, Any]], join: AsOf) -> float | None:
    found = []
    for other in others:
        if None in (sample["event_time"], other["event_time"]) or sample["device"] != other["device"]:
            continue
        if join.where is not None and other[join.where[0]] != join.where[1]:
            continue
        before_us = (sample["event_time"] - other["event_time"]) // timedelta(microseconds=1)
        is_right_side = {"nearest": True, "backward": before_us >= 0, "forward": before_us <= 0}[join.direction]
        if abs(before_us) <= join.tolerance_us and is_right_side:
            found.append((abs(before_us), before_us < 0, -other["epoch"], -other["seq"], other["speed"]))
    return min(found)[-1] if found else None


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99), st.sampled_from(["nearest", "backward", "forward"]), st.sampled_from([3, 60, 5_000]), st.integers(1, 40)
)
def test_a_sample_gets_the_nearest_row_however_batches_lie(seed: int, direction: Any, tolerance_us: int, batch: int) -> None:
    samples, others = rows_of(seed, 60, 3_000), rows_of(seed + 1_000, 120, 3_000)
    joins = [
        AsOf({"speed": "a"}, tolerance_us, direction, "age"),
        AsOf({"speed": "b"}, tolerance_us, direction, where=("signal", "Brake")),
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asof, "CHUNK_ROWS", batch)
        first, second = join_as_of(samples, others.to_batches(max_chunksize=batch), joins, others.schema)
    expected = [[by_hand(sample, others.to_pylist(), join) for sample in samples.to_pylist()] for join in joins]
    assert first.columns["a"].to_pylist() == expected[0]
    assert second.columns["b"].to_pylist() == expected[1]
    assert first.matched == sum(value is not None for value in expected[0])
    assert first.columns["age"].null_count == len(samples) - first.matched


def test_the_age_is_in_seconds_and_negative_for_a_later_row() -> None:
    times = [START, START + timedelta(seconds=10)]
    samples = (
        rows_of(0, 2, 1)
        .set_column(0, "device", pa.array(["a", "a"]))
        .set_column(3, "event_time", pa.array(times, pa.timestamp("us", "UTC")))
    )
    moved = [times[0] - timedelta(milliseconds=250), times[1] + timedelta(milliseconds=500)]
    others = samples.set_column(3, "event_time", pa.array(moved, pa.timestamp("us", "UTC")))
    (joined,) = join_as_of(samples, others.to_batches(), [AsOf({"speed": "x"}, 1_000_000, age="age")], others.schema)
    assert joined.columns["age"].to_pylist() == [0.25, -0.5]


def test_a_stream_without_rows_gives_nulls_of_its_types() -> None:
    samples = rows_of(1, 4, 10)
    (joined,) = join_as_of(samples, [], [AsOf({"seq": "n", "signal": "s"}, 10)], samples.schema)
    assert joined.columns.schema.types == [pa.int64(), pa.string()]
    assert joined.columns["n"].null_count == 4
    assert joined.matched == 0


def test_a_column_that_the_other_stream_lacks_is_refused() -> None:
    samples = rows_of(1, 4, 10)
    with pytest.raises(RefusedError, match="no column altitude"):
        join_as_of(samples, [], [AsOf({"altitude": "h"}, 10)], samples.schema)
