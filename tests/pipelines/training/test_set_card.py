"""The card: what it draws of a set, that nothing of it runs or loads anything, that odd values do not end it."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from typer.testing import CliRunner

from pipelines.commands.label import label_app
from pipelines.commands.training_set import set_app
from pipelines.lake.lake import lake_at
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.card_pictures import Shape, draw_shape

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


def with_boxes(root: Path) -> None:
    table = DeltaTable(root / "streams/camera_frame").to_pyarrow_table()
    boxes = pa.array([[{"x": 2.0, "y": 3.0, "width": 8.0, "height": 5.0, "label": HOSTILE}]] * len(table))
    write_deltalake(root / "streams/camera_frame", table.append_column("boxes", boxes), mode="overwrite", schema_mode="overwrite")


def test_boxes_of_a_column_lie_over_their_pictures_in_source_pixels(lake: Path) -> None:
    with_boxes(lake)
    card = card_of(lake)
    assert card.count('<rect class="s0" x="2.0" y="3.0" width="8.0" height="5.0">') > 20
    assert '<svg viewBox="0 0 32 24"' in card
    assert HOSTILE not in card


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        (Shape("box", (1.0, 2.0, 3.0, 4.0), "a"), '<rect class="s0" x="1.0" y="2.0" width="3.0" height="4.0">'),
        (Shape("polygon", (0.0, 0.0, 5.0, 0.0, 5.0, 5.0), "a"), '<polygon class="s0" points="0.0,0.0 5.0,0.0 5.0,5.0">'),
        (Shape("box", (5.0, 6.0, -3.0, -4.0), "a"), '<rect class="s0" x="2.0" y="2.0" width="3.0" height="4.0">'),
        (Shape("rotated", (10.0, 20.0, 8.0, 4.0, 90.0), "a"), 'points="12.0,16.0 12.0,24.0 8.0,24.0 8.0,16.0"'),
        (Shape("polyline", (0.0, 0.0, 5.0, 1.0), "a"), '<polyline class="s0" points="0.0,0.0 5.0,1.0">'),
        (Shape("points", (4.0, 4.0), "a"), '<circle class="s0" cx="4.0" cy="4.0"'),
        (Shape("mask", (2.0, 3.0, 2.0, 2.0, 2.0), "a"), '<path class="s0" d="M1 0H2V1H1ZM1 1H2V2H1Z">'),
    ],
)
def test_each_kind_of_shape_is_drawn(shape: Shape, drawn: str) -> None:
    assert drawn in draw_shape(shape, 0, 60, 60)


def test_a_rotated_box_without_an_angle_is_not_drawn() -> None:
    assert not draw_shape(Shape("rotated", (10.0, 20.0, 8.0, 4.0), "a"), 0, 60, 60)


@pytest.mark.parametrize("numbers", [(), (1.0, float("nan"), 2.0, 3.0), (1.0, 2.0)])
def test_a_box_whose_numbers_are_none_is_not_drawn_as_a_box(numbers: tuple[float, ...]) -> None:
    assert "<rect" not in draw_shape(Shape("box", numbers, "a"), 0, 60, 60)


def test_labels_of_the_sets_task_are_drawn_and_their_agreement_told(lake: Path, tmp_path: Path) -> None:
    one = tmp_path / "ann.csv"
    one.write_text(
        "sample,kind,value,geometry\ncamera_frame/cam-1/5/3,polygon,dent,1 1 9 1 9 9\ncamera_frame/cam-1/5/3,class,bad,\n"
    )
    two = tmp_path / "bob.csv"
    two.write_text("sample,kind,value\ncamera_frame/cam-1/5/3,class,bad\n")
    for path, author in ((one, "ann"), (two, "bob")):
        words = ["import", str(path), "--task", "state", "--from", "camera_frame", "--as", "csv", "--author", author]
        done = CliRunner().invoke(label_app, [*words, "--lake", str(lake)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "id: frames\nsources: [{stream: camera_frame, where: device = 'cam-1'}]\n"
        "label: {task: state, name: state, unlabelled: keep, other: keep}\nsplit: {shares: {train: 1}}\n"
    )
    done = CliRunner().invoke(set_app, ["build", str(spec), "--lake", str(lake)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    card = (lake / "sets/frames/1/card.html").read_text()
    assert 'points="1.0,1.0 9.0,1.0 9.0,9.0"' in card
    assert re.findall(r'<svg class=key viewBox="0 0 9 9"><rect class="s(\d)"[^>]*/></svg>dent<', card) == ["0"]
    assert "1 samples have a class in task <b>state</b>, 1 by several people" in card
    assert "came from <b>labels/state</b>, as it was at Delta version" in card


def test_leaks_stand_on_the_card_and_none_is_said_too(lake: Path, tmp_path: Path) -> None:
    assert "No leak found" in card_of(numbers_lake(tmp_path / "other"), group=("device",))
    leaking = card_of(lake, group=("seq",))
    assert "Splits know of each other." in leaking
    assert "neighbour within 2 s" in leaking


def test_the_page_fits_a_phone_and_a_dark_room(lake: Path) -> None:
    card = card_of(lake)
    assert "width=device-width" in card
    assert "prefers-color-scheme:dark" in card


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 360])
def test_the_card_fits_a_browsers_window(lake: Path, tmp_path: Path, width: int) -> None:
    """With Chromium, where it is installed: nothing is wider than the page, and each shape lies over its picture."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    with_boxes(lake)
    card = lake / "sets/frames/1/card.html"
    card_of(lake, stratify=("label",), allow_missing=True)
    # A window cannot be as narrow as a telephone: a frame can. Its page says how wide it is.
    measure = (
        "<script>addEventListener('load',()=>{const d=document.documentElement,s=[...document.querySelectorAll('.shot')];"
        "parent.postMessage([d.scrollWidth,d.clientWidth,s.length,s.filter(e=>{const a=e.children[0].getBoundingClientRect(),"
        "b=e.children[1].getBoundingClientRect();return Math.abs(a.width-b.width)<1&&Math.abs(a.height-b.height)<1&&a.width>60})"
        ".length].join(),'*')})</script>"
    )
    (tmp_path / "page.html").write_text(card.read_text() + measure)
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<body><pre id=out></pre><script>onmessage=e=>{out.textContent='['+e.data+']'}</script>"
        f"<iframe src=page.html style='width:{width}px;height:900px;border:0'></iframe>"
    )
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [browser, *words, f"--user-data-dir={tmp_path / 'profile'}", frame.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search(r"\[(\d+),(\d+),(\d+),(\d+)\]", done.stdout)
    assert found is not None, done.stdout[-500:]
    wide, room, shots, covered = (int(each) for each in found.groups())
    assert (wide, room) == (width, width)
    assert shots == covered > 20
