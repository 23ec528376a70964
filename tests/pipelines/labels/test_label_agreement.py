"""How far authors agree: Krippendorff's published examples, intervals, shapes that overlap, and what the command shows."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.commands.label import label_app
from pipelines.errors import RefusedError
from pipelines.geometry import area_shape, corners_of_rotated, matched_pairs, overlaps, rotated_of_corners
from pipelines.labels.agreement import Alpha, agreement_of, interval_alpha, nominal_alpha
from pipelines.labels.resolve import resolved_classes
from pipelines.labels.table import SCHEMA, append_labels
from pipelines.lake.lake import lake_at

RUN = CliRunner()
# The examples of Krippendorff (2011): a row an observer, a column a unit, '.' where there is no value.
BINARY = ["0100000010", "1110010000"]
TWO = ["aabbdcccedda", "babbbccceddd"]
FOUR = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def columns(observers: list[str]) -> tuple[Any, Any]:
    cells = [(unit, ord(value)) for row in observers for unit, value in enumerate(row) if value != "."]
    return np.array([unit for unit, _ in cells]), np.array([value for _, value in cells])


@pytest.mark.parametrize(("observers", "alpha"), [(BINARY, 0.095), (TWO, 0.692), (FOUR, 0.743)])
def test_alpha_of_classes_is_that_of_the_published_examples(observers: list[str], alpha: float) -> None:
    found = nominal_alpha(*columns(observers))
    assert found.alpha == pytest.approx(alpha, abs=5e-4)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= alpha <= found.high


def test_alpha_of_numbers_is_that_of_the_published_example() -> None:
    units, values = columns(FOUR)
    found = interval_alpha(units, values.astype(float) - 48)
    assert found.alpha == pytest.approx(0.849, abs=5e-4)
    assert (found.units, found.values) == (11, 40)


def test_alpha_says_nothing_where_nobody_overlaps_or_all_values_are_equal() -> None:
    assert nominal_alpha(np.array([1, 2, 3]), np.array([1, 1, 2])) == Alpha(None, None, None, 0, 0)
    assert nominal_alpha(np.array([1, 1, 2, 2]), np.array([7, 7, 7, 7])).alpha is None
    assert interval_alpha(np.array([1, 1]), np.array([2.0, 2.0])).alpha is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40), st.randoms())
def test_alpha_depends_on_neither_the_order_nor_the_names(cells: list[tuple[int, int]], random: Any) -> None:
    mixed = list(cells)
    random.shuffle(mixed)
    first = nominal_alpha(np.array([unit for unit, _ in cells]), np.array([value for _, value in cells]))
    again = nominal_alpha(np.array([90 - unit for unit, _ in mixed]), np.array([5 * value for _, value in mixed]))
    assert (first.alpha is None) == (again.alpha is None)
    if first.alpha is not None:
        assert again.alpha == pytest.approx(first.alpha)
        assert first.alpha <= 1


def rows(*made: tuple[int, str, str, str, tuple[float, ...]]) -> pa.Table:
    """Rows by (seq, author, kind, value, geometry)."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    fixed = {
        "stream": "s",
        "device": "d",
        "epoch": 1,
        "imported_at": start,
        "made_at": start,
        "supersedes": [],
        "role": "annotator",
    }
    return pa.Table.from_pylist(
        [
            {
                **fixed, "label_id": f"{at:03d}", "seq": seq, "author": author, "kind": kind, "value": value,
                "geometry": geometry, "state": "submitted", "task": "defect", "role": "annotator",
            }
            for at, (seq, author, kind, value, geometry) in enumerate(made)
        ],
        SCHEMA,
    )  # fmt: skip


def test_shapes_are_compared_with_those_that_they_overlap() -> None:
    found = agreement_of(rows(
        (1, "ann", "box", "dent", (0, 0, 10, 10)), (1, "bob", "box", "dent", (0, 0, 10, 8)),
        (1, "ann", "box", "scratch", (50, 50, 10, 10)), (1, "bob", "polygon", "dent", (50, 50, 60, 50, 60, 60, 50, 60)),
        (2, "ann", "box", "dent", (0, 0, 5, 5)), (2, "bob", "nothing", "", ()),
        (3, "ann", "box", "dent", (0, 0, 5, 5)),
        (4, "ann", "mask", "dent", (1, 1, 0, 1)), (4, "bob", "nothing", "", ()),
    ))  # fmt: skip
    # Things seen by two authors who looked: dent/dent, scratch/dent, dent/missed. The third sample has one author.
    assert (found.shapes.units, found.shapes.values) == (3, 6)
    assert found.shapes.alpha == pytest.approx(1 - (4 / 6) / (18 / 30))
    assert found.mean_overlap == pytest.approx((0.8 + 1.0) / 2)
    assert found.not_compared == {"mask labels": 1}


def test_classes_that_are_numbers_are_compared_by_their_distance_too() -> None:
    """Grades of five pictures: whoever misses by one agrees better than somebody who misses by four."""
    near, far = ((1, 2), (2, 2), (3, 4), (5, 5), (4, 4)), ((1, 5), (2, 2), (3, 1), (5, 5), (4, 4))
    found = [
        agreement_of(
            rows(
                *(
                    (at, who, "class", str(value), ())
                    for at, pair in enumerate(pairs)
                    for who, value in zip("ab", pair, strict=True)
                )
            )
        )
        for pairs in (near, far)
    ]
    numbers = [one.numbers.alpha for one in found if one.numbers is not None and one.numbers.alpha is not None]
    assert numbers[0] > 0.8
    assert numbers[1] < 0.5
    values = np.array(near, float).ravel()
    assert found[0].numbers == interval_alpha(np.repeat(np.arange(5), 2), values)
    assert "agreement on the numbers they name: Krippendorff's alpha 0.898" in found[0].words[1]
    assert agreement_of(rows((1, "a", "class", "1", ()), (1, "b", "class", "one", ()))).numbers is None
    assert agreement_of(rows((1, "a", "class", "1", ()), (1, "b", "class", "nan", ()))).numbers is None


def test_authors_are_compared_with_the_resolved_class() -> None:
    table = rows(
        *((at, who, "class", value, ()) for at in range(4) for who, value in (("ann", "ok"), ("bob", "ok"), ("cy", "dent")))
    )
    found = agreement_of(table, "majority")
    assert [(one.author, one.samples, one.same) for one in found.authors] == [("ann", 4, 4), ("bob", 4, 4), ("cy", 4, 0)]
    assert "too low to rely on" in found.words[0]


def test_a_unanimous_class_is_one_that_nobody_contradicts() -> None:
    table = rows(
        (1, "ann", "class", "ok", ()), (1, "bob", "class", "ok", ()), (2, "ann", "class", "ok", ()), (2, "bob", "class", "no", ())
    )
    assert resolved_classes(table, "unanimous").column("seq").to_pylist() == [1]


def test_the_commands_show_agreement_and_classes(tmp_path: Path) -> None:
    answers = [
        (at, who, "class", "ok" if at < 5 or who == "cy" else "dent", ()) for at in range(10) for who in ("ann", "bob", "cy")
    ]
    append_labels(lake_at(tmp_path / "lake"), "defect", rows(*answers))
    words = ["--task", "defect", "--lake", str(tmp_path / "lake")]
    shown = json.loads(RUN.invoke(label_app, ["agreement", *words, "--json"]).stdout)
    assert (shown["version"], shown["by_several"], shown["classes"]["units"]) == (1, 10, 10)
    assert shown["classes"]["low"] < shown["classes"]["alpha"] < shown["classes"]["high"]
    done = RUN.invoke(label_app, ["agreement", *words])
    assert "Krippendorff's alpha" in " ".join(done.stdout.split())
    done = RUN.invoke(label_app, ["resolve", *words, "--rule", "majority", "-o", str(tmp_path / "r.csv")])
    assert "10 samples have a class" in done.stdout
    assert (tmp_path / "r.csv").read_text().splitlines()[1] == "s/d/1/0,ok,3,1.0"
    shown = json.loads(RUN.invoke(label_app, ["resolve", *words, "--rule", "unanimous", "--json"]).stdout)
    assert shown["classes"] == {"ok": 5}
    assert shown["without_class"] == 5
    with pytest.raises(RefusedError, match="give latest, majority, unanimous"):
        RUN.invoke(label_app, ["resolve", *words, "--rule", "best"], catch_exceptions=False)


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(1, 40), st.floats(1, 40)), st.floats(0, 359))
def test_a_turned_box_is_its_four_corners(box: tuple[float, float, float, float], degrees: float) -> None:
    corners = corners_of_rotated((*box, degrees))
    assert corners_of_rotated(rotated_of_corners(corners)) == pytest.approx(corners, abs=1e-6)
    assert area_shape("rotated", (*box, degrees)).area == pytest.approx(box[2] * box[3])


def test_overlap_is_the_shared_area_of_both() -> None:
    boxes = [area_shape("box", (0, 0, 4, 4)), area_shape("box", (10, 10, 2, 2))]
    bow = area_shape("polygon", (0, 0, 4, 4, 4, 0, 0, 4))  # crosses itself: two triangles of 4 px
    shares = overlaps(boxes, [area_shape("box", (2, 0, 4, 4)), bow])
    assert shares.tolist() == [[pytest.approx(8 / 24), pytest.approx(0.5)], [0.0, 0.0]]
    assert matched_pairs(shares, 0.3) == [(0, 1)]
    with pytest.raises(ValueError, match="no polygon with an area"):
        area_shape("polygon", (1, 2, 3, 4))
