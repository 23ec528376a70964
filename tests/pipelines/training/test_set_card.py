"""The card: what it draws of a set, that nothing of it runs or loads anything, that odd values do not end it."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from pipelines.lake.lake import lake_at
from pipelines.training.build import BuildOptions, build_set

HOSTILE = "<script>alert(1)</script>"


def card_of(root: Path, **options: Any) -> str:
    manifest = build_set(lake_at(root), "frames", ("camera_frame",), options=BuildOptions(**options))
    return (root / f"sets/frames/{manifest.version}/card.html").read_text()


def numbers_lake(root: Path, count: int = 60, **columns: Any) -> Path:
    times = [datetime(2026, 1, 1 + row % 20, tzinfo=UTC) for row in range(count)]
    base = {
        "device": pa.array([f"cam-{row % 40:02d}" for row in range(count - 1)] + [HOSTILE]),
        "epoch": pa.array([1] * count),
        "seq": pa.array(range(count)),
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
    }
    write_deltalake(root / "streams/camera_frame", pa.table({**base, **columns}))
    return root


def test_bars_show_each_class_in_each_split_and_name_what_is_missing(lake: Path) -> None:
    card = card_of(lake, stratify=("label",), split={"train": 0.8, "test": 0.2}, group=("label",), allow_missing=True)
    bars = re.findall(r"<tr><td>label=(class-\d)</td>.*?</tr>", card)
    assert sorted(bars) == ["class-0", "class-1", "class-2"]
    assert "(none in " in card
    titles = re.findall(r"<title>(train|test): ([\d,]+)</title>", card)
    assert sum(int(rows) for _, rows in titles) == 191


def test_pictures_are_drawn_and_nothing_is_loaded_or_run(lake: Path) -> None:
    card = card_of(lake)
    assert card.count('src="data:image/jpeg;base64,') > 20
    assert not re.findall(r"<script|<link|<iframe|https?://|@import|javascript:", card)


def test_time_and_devices_are_covered_and_those_beyond_the_page_counted(tmp_path: Path) -> None:
    card = card_of(numbers_lake(tmp_path, speed=pa.array(np.arange(60.0))))
    assert "2026-01-01 00:00:00 to 2026-01-20 00:00:00 UTC, 41 devices" in card
    assert "11 more devices" in card


def test_histograms_count_what_is_no_number_and_bear_extremes(tmp_path: Path) -> None:
    speeds = [None, float("nan"), float("inf"), -1e308, 1e308, *[float(row) for row in range(55)]]
    card = card_of(
        numbers_lake(tmp_path, speed=pa.array(speeds), still=pa.array([3] * 60), empty=pa.array([None] * 60, pa.float64()))
    )
    assert "<b>speed</b> -1e+308 to 1e+308, median 27, 3 null or not finite" in card
    assert "<b>still</b> 3 to 3, median 3<" in card
    assert "<b>empty</b> no values" in card


def test_what_came_from_outside_is_escaped_and_the_drawings_are_well_formed(tmp_path: Path) -> None:
    card = card_of(numbers_lake(tmp_path, label=pa.array([HOSTILE, "a&b"] * 30)), stratify=("label",), allow_missing=True)
    assert HOSTILE not in card
    assert "label=&lt;script&gt;" in card
    drawings = re.findall(r"<svg.*?</svg>", card)
    assert drawings
    for drawing in drawings:
        ET.fromstring(drawing.replace("role=img", ""))
