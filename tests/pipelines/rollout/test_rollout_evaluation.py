"""How right a model is on labelled samples: by slice, with intervals that hold also where the telling samples were sent first."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.table import SCHEMA, append_labels
from pipelines.lake.lake import lake_at
from pipelines.rollout.evaluation import SliceFigures, evaluate, right_share

START = datetime(2026, 1, 1, tzinfo=UTC)


def write_rows(root: Path, right: list[bool], shares: list[float] | None = None) -> None:
    """A stream of two devices whose model says `ok`; the label says so too where it is right. Every third sample is tagged."""
    count = len(right)
    rows = pa.table({
        "device": [f"cam-{at % 2}" for at in range(count)],
        "epoch": pa.array([1] * count, pa.int64()),
        "seq": pa.array(range(count), pa.int64()),
        "event_time": pa.array([START + timedelta(hours=at % 48) for at in range(count)], pa.timestamp("us", "UTC")),
        "model_name": ["m"] * count,
        "model_version": pa.array([1 + at % 2 for at in range(count)], pa.int64()),
        "predicted_label": ["ok"] * count,
        "predicted_score": [0.9] * count,
        "tags": pa.array([["wet"] if at % 3 == 0 else [] for at in range(count)], pa.list_(pa.string())),
        **({} if shares is None else {"upload_share": shares}),
    })  # fmt: skip
    write_deltalake(root / "streams/views", rows)
    labels: list[dict[str, object]] = [
        {
            "label_id": f"l{at}", "stream": "views", "device": f"cam-{at % 2}", "epoch": 1, "seq": at, "payload_sha256": "",
            "task": "t", "kind": "class", "value": "ok" if hit else "bad", "geometry": None, "attributes": "{}", "author": "a",
            "role": "labeller", "tool": "", "guideline": "", "made_at": START, "imported_at": START, "seconds": None,
            "supersedes": [], "state": "made", "source_sha256": "", "source_label": "",
        }
        for at, hit in enumerate(right)
    ]  # fmt: skip
    append_labels(lake_at(root), "t", pa.Table.from_pylist(labels, schema=SCHEMA))


def by_value(found: list[SliceFigures]) -> dict[str, tuple[int, float, bool]]:
    return {each.value: (each.right.samples, round(each.right.share, 3), each.is_worse) for each in found}


def test_a_device_on_which_a_model_is_worse_is_marked(tmp_path: Path) -> None:
    write_rows(tmp_path, [at % 2 == 0 or at % 4 == 1 for at in range(400)])
    found = by_value(evaluate(lake_at(tmp_path), "views", "m", "t", ["device", "tag", "day"]))
    assert found == {
        "all": (400, 0.75, False),
        "cam-0": (200, 1.0, False),
        "cam-1": (200, 0.5, True),
        "wet": (134, 0.746, False),
        "2026-01-01T00:00Z": (208, 0.75, False),
        "2026-01-02T00:00Z": (192, 0.75, False),
    }
    assert by_value(evaluate(lake_at(tmp_path), "views", "m", "t", version=2)) == {"all": (200, 0.5, False)}


def test_a_sample_stands_for_those_that_were_not_sent(tmp_path: Path) -> None:
    write_rows(tmp_path, [True] * 50 + [False] * 50, [0.1] * 50 + [1.0] * 50)
    (whole,) = evaluate(lake_at(tmp_path), "views", "m", "t")
    assert (whole.right.samples, round(whole.right.share, 3)) == (100, round(500 / 550, 3))


def test_what_cannot_be_evaluated_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, [True] * 4)
    lake = lake_at(tmp_path)
    with pytest.raises(NotFoundError, match="no sample of views that other looked at has a label"):
        evaluate(lake, "views", "other", "t")
    with pytest.raises(NotFoundError, match="no labels for task"):
        evaluate(lake, "views", "m", "u")
    with pytest.raises(RefusedError, match="no column site"):
        evaluate(lake, "views", "m", "t", ["site"])


def covered(rng: np.random.Generator, samples: int, floor: float) -> tuple[bool, float]:
    """One simulated fleet: a model is wrong more often where it is unsure, and unsure samples are sent first."""
    doubt = rng.beta(0.5, 2.0, samples)
    right = rng.random(samples) >= 0.02 + 0.5 * doubt
    chance = np.minimum(1.0, floor + (1 - floor) * 0.2 * doubt / doubt.mean())
    sent = rng.random(samples) < chance
    found = right_share(list(right[sent]), list(chance[sent]))
    truth = 1 - (0.02 + 0.5 * 0.2)
    return found.low <= truth <= found.high, found.share


@pytest.mark.parametrize(("samples", "floor"), [(2_000, 0.1), (2_000, 0.02), (500, 0.1)])
def test_intervals_hold_in_ninety_three_of_a_hundred_fleets_that_send_the_doubtful_first(samples: int, floor: float) -> None:
    found = [covered(np.random.default_rng(seed), samples, floor) for seed in range(400)]
    assert sum(is_covered for is_covered, _ in found) >= 0.93 * 400
    assert abs(np.mean([share for _, share in found]) - 0.88) < 0.01


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]
)
def test_without_shares_the_interval_is_wilsons(hits: int, of: int, low: float, high: float) -> None:
    """The examples of Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3."""
    found = right_share([True] * hits + [False] * (of - hits))
    assert found.low == pytest.approx(low, abs=0.004)
    assert found.high == pytest.approx(high, abs=0.004)


def test_nothing_labelled_says_nothing() -> None:
    assert (right_share([]).low, right_share([]).high) == (0.0, 1.0)
