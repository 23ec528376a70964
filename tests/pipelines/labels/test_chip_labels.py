"""Labels of a slide on its chips: clipped and moved without a half pixel's shift, shares computed by hand, classes by rule."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pyvips
import shapely

from pipelines.errors import RefusedError
from pipelines.geometry import area_shape
from pipelines.imaging.tiling import Grid
from pipelines.labels.chip_labels import ChipRule, labels_on_chips
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind
from pipelines.labels.exchange import FORMATS
from pipelines.labels.matching import LabelOrigin, match_labels
from pipelines.labels.run_lengths import mask_of, runs_of

WIDTH, HEIGHT, SIZE = 100, 80, 32
GRID = Grid(WIDTH, HEIGHT, SIZE)
SLIDES = pa.table({
    "stream": ["slide"], "device": ["scanner-1"], "epoch": [3], "seq": [0], "file_name": ["a.tif"], "width": [WIDTH],
    "height": [HEIGHT], "payload_sha256": ["0" * 64],
})  # fmt: skip
# Columns 24 up to 40 and rows 16 up to 40, both as edges: 8 of its columns lie on either side of the chips' border at 32.
LEFT, TOP, RIGHT, BOTTOM = 24, 16, 40, 40
CORNERS = [[LEFT, TOP], [RIGHT, TOP], [RIGHT, BOTTOM], [LEFT, BOTTOM]]
PARTS = {0: ([24.0, 16.0, 8.0, 16.0], 128 / 1024), 1: ([0.0, 16.0, 8.0, 16.0], 128 / 1024),
         4: ([24.0, 0.0, 8.0, 8.0], 64 / 1024), 5: ([0.0, 0.0, 8.0, 8.0], 64 / 1024)}  # fmt: skip
COCO = {"images": [{"id": 1, "file_name": "a.tif", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "tumour"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [24, 16, 16, 24]}]}  # fmt: skip
LABELME = {"imagePath": "a.tif", "imageWidth": WIDTH, "imageHeight": HEIGHT,
           "shapes": [{"label": "tumour", "shape_type": "rectangle", "points": [[24, 16], [40, 40]]}]}  # fmt: skip
QUPATH = {"type": "FeatureCollection", "features": [{
    "type": "Feature", "id": "u", "geometry": {"type": "Polygon", "coordinates": [[*CORNERS, CORNERS[0]]]},
    "properties": {"objectType": "annotation", "classification": {"name": "tumour"}},
}]}  # fmt: skip
VOC = (
    "<annotation><filename>a.tif</filename><object><name>tumour</name><bndbox><xmin>25</xmin><ymin>17</ymin><xmax>40</xmax>"
    "<ymax>40</ymax></bndbox></object></annotation>"
)
CVAT = (
    "<annotations><image id='0' name='a.tif' width='100' height='80'>"
    "<box label='tumour' xtl='24' ytl='16' xbr='40' ybr='40'/></image></annotations>"
)
LINES = {"yolo": "0 0.32 0.35 0.16 0.30", "yolo-seg": "0 0.24 0.2 0.4 0.2 0.4 0.5 0.24 0.5",
         "yolo-obb": "0 0.24 0.2 0.4 0.2 0.4 0.5 0.24 0.5"}  # fmt: skip


def mask_png() -> bytes:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[TOP:BOTTOM, LEFT:RIGHT] = 1
    return bytes(pyvips.Image.new_from_array(pixels).write_to_buffer(".png"))


def files_of(name: str) -> dict[str, bytes]:
    """What a labelling tool writes for the one box."""
    if name.startswith("yolo"):
        return {"classes.txt": b"tumour\n", "a.txt": LINES[name].encode()}
    return {
        "coco": {"a.json": json.dumps(COCO).encode()},
        "labelme": {"a.json": json.dumps(LABELME).encode()},
        "geojson": {"a.geojson": json.dumps(QUPATH).encode()},
        "voc": {"a.xml": VOC.encode()},
        "cvat": {"a.xml": CVAT.encode()},
        "masks": {"classes.txt": b"background\ntumour\n", "a.png": mask_png()},
    }[name]


def chips(level: int = 0, grid: Grid = GRID, **columns: Any) -> pa.Table:
    windows = [grid.window(index) for index in range(grid.count)]
    same = {"stream": "slide_chips", "device": "scanner-1", "epoch": 3, "seq": 0, "level": level, "spec": "s32"}
    own = {name: [getattr(window, name) for window in windows] for name in ("x", "y", "width", "height")}
    return pa.table({**{name: [value] * grid.count for name, value in same.items()}, **own, **columns})


def labels_of(*drawn: Drawn) -> pa.Table:
    return match_labels(ForeignFile("test", list(drawn)), SLIDES, LabelOrigin("tissue", "ann")).rows


def drawn(kind: LabelKind, geometry: Sequence[float], value: str = "tumour", **more: Any) -> Drawn:
    return Drawn("a.tif", kind, value, tuple(map(float, geometry)), **more)


def box(left: float, top: float, right: float, bottom: float, value: str) -> Drawn:
    return drawn(LabelKind.BOX, (left, top, right - left, bottom - top), value, tool_id=f"{left} {top} {value}")


@pytest.mark.parametrize("name", ["coco", "cvat", "geojson", "labelme", "masks", "voc", "yolo", "yolo-obb", "yolo-seg"])
def test_a_box_of_each_format_lies_on_four_chips_at_the_places_and_shares_computed_by_hand(tmp_path: Path, name: str) -> None:
    for file, body in files_of(name).items():
        (tmp_path / file).write_bytes(body)
    (only,) = [path for path in tmp_path.iterdir() if path.name != "classes.txt"]
    foreign = FORMATS[name].read(only if FORMATS[name].suffix else tmp_path)
    labels = match_labels(foreign, SLIDES, LabelOrigin("tissue", "ann")).rows
    found = labels_on_chips(chips(), labels, ChipRule("any"))
    shapes = {chip: rows for chip, rows in enumerate(found.shapes.to_pylist()) if rows}
    assert set(shapes) == set(PARTS)
    for chip, (place, covered) in PARTS.items():
        (one,) = shapes[chip]
        assert [one[side] for side in ("x", "y", "width", "height")] == pytest.approx(place, abs=1e-9)
        assert one["covered"] == pytest.approx(covered, abs=1e-12)
        assert one["kept"] == pytest.approx(covered * 1024 / 384, abs=1e-12)
        assert (one["label"], one["truncated"]) == ("tumour", True)
        if one["kind"] == "mask":
            part = mask_of(tuple(one["geometry"]))
            assert part.shape == (SIZE, SIZE)
            assert np.argwhere(part).min(axis=0).tolist() == place[1::-1]
        else:
            assert area_shape("polygon", one["geometry"]).area == pytest.approx(place[2] * place[3], abs=1e-9)
    assert [found.classes[chip].as_py() for chip in (0, 2, 5)] == ["tumour", "nothing", "tumour"]


def test_a_hole_of_qupath_is_not_covered(tmp_path: Path) -> None:
    hole = [[28, 20], [36, 20], [36, 28], [28, 28], [28, 20]]
    coordinates = [[*CORNERS, CORNERS[0]], hole]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": coordinates},
               "properties": {"classification": {"name": "tumour"}}}  # fmt: skip
    (tmp_path / "a.geojson").write_text(json.dumps([feature]))
    labels = match_labels(FORMATS["geojson"].read(tmp_path), SLIDES, LabelOrigin("tissue", "ann")).rows
    found = labels_on_chips(chips(), labels, ChipRule("any"))
    (first,) = found.shapes[0].as_py()
    assert first["covered"] == (128 - 4 * 8) / 1024
    inside = area_shape("polygon", first["geometry"])
    assert inside.area == 128 - 4 * 8
    assert not inside.contains(shapely.Point(30, 24))


RULES = [
    # What covers most; with points, which cover nothing; the centre of the first chip is at (16, 16).
    ("any", 0.5, [box(0, 0, 4, 4, "a"), box(10, 10, 20, 16, "b")], "b"),
    ("any", 0.5, [drawn(LabelKind.POINTS, (0.0, 31.9), "p")], "p"),
    ("any", 0.5, [drawn(LabelKind.POINTS, (32.0, 0.0), "p")], "nothing"),
    ("any", 0.5, [drawn(LabelKind.POLYLINE, (-5.0, 3.0, 5.0, 3.0), "line")], "line"),
    ("majority", 0.5, [box(0, 0, 32, 17, "a")], "a"),
    ("majority", 0.5, [box(0, 0, 32, 15, "a")], "nothing"),
    ("majority", 0.5, [box(0, 0, 32, 12, "a"), box(0, 12, 32, 24, "b")], None),
    ("majority", 0.5, [box(0, 0, 32, 12, "a"), box(0, 4, 32, 14, "a")], "nothing"),
    ("centre", 0.5, [box(0, 0, 32, 32, "a"), box(15, 15, 18, 18, "b")], "b"),
    ("centre", 0.5, [box(17, 0, 32, 32, "a")], "nothing"),
    ("fraction", 0.25, [box(0, 0, 32, 8, "a")], "a"),
    ("fraction", 0.26, [box(0, 0, 32, 8, "a")], "nothing"),
    ("fraction", 0.5, [box(0, 0, 32, 10, "a"), box(0, 8, 32, 16, "a")], "a"),
    ("fraction", 0.5, [drawn(LabelKind.MASK, runs_of(np.indices((HEIGHT, WIDTH))[0] < 16), "m")], "m"),
    ("any", 0.5, [drawn(LabelKind.NOTHING, (), "")], "nothing"),
]


@pytest.mark.parametrize(("rule", "fraction", "shapes", "wanted"), RULES)
def test_the_class_of_a_chip_follows_from_the_rule(rule: Any, fraction: float, shapes: list[Drawn], wanted: str | None) -> None:
    found = labels_on_chips(chips(), labels_of(*shapes), ChipRule(rule, fraction))
    assert found.classes[0].as_py() == wanted


def test_a_chip_of_a_slide_that_nobody_labelled_has_no_class() -> None:
    others = chips().set_column(3, "seq", pa.array([9] * GRID.count, pa.int64()))
    found = labels_on_chips(others, labels_of(box(0, 0, 9, 9, "a")), ChipRule())
    assert found.classes.null_count == GRID.count
    assert found.shapes.flatten().type.num_fields > 5
    assert not len(found.shapes.flatten())


def test_on_a_smaller_level_shapes_are_in_pixels_of_the_chip() -> None:
    small = Grid(WIDTH // 2, HEIGHT // 2, SIZE)
    factors = {"factor_x": [2.0] * small.count, "factor_y": [2.0] * small.count}
    shapes = (box(24, 16, 40, 40, "a"), drawn(LabelKind.MASK, runs_of(np.indices((HEIGHT, WIDTH))[1] < 20), "m"))
    found = labels_on_chips(chips(1, small, **factors), labels_of(*shapes), ChipRule("any"))
    by_class = {shape["label"]: shape for shape in found.shapes[0].as_py()}
    assert [by_class["a"][side] for side in ("x", "y", "width", "height")] == [12, 8, 8, 12]
    assert by_class["a"]["covered"] == 96 / 1024
    assert (by_class["m"]["width"], by_class["m"]["covered"]) == (10, 10 / 32)
    with pytest.raises(RefusedError, match="cut them again"):
        labels_on_chips(chips(1, small), labels_of(*shapes), ChipRule("any"))


def test_a_chip_at_the_edge_is_covered_by_its_part_inside_the_slide() -> None:
    found = labels_on_chips(chips(), labels_of(box(96, 64, 100, 80, "a")), ChipRule("fraction", 1.0))
    assert found.classes[GRID.count - 1].as_py() == "a"
    (shape,) = found.shapes[GRID.count - 1].as_py()
    assert (shape["covered"], shape["kept"], shape["truncated"]) == (1.0, 1.0, False)
