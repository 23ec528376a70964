"""Each format writes labels and reads them back: equal, up to what its loss table counts."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import NotFoundError, RefusedError
from pipelines.geometry import corners_of_rotated
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask
from pipelines.labels.exchange import FORMATS
from pipelines.labels.formats.studio_brush import brush_of, mask_of_brush
from pipelines.labels.run_lengths import counts_of_text, mask_of, part_of, runs_of, text_of_counts, whole_of

WIDTH, HEIGHT = 64, 48
VALUES = st.sampled_from(["scratch", "dent", "crack öl", "a, b"])
NUMBERS = st.integers(0, 40).map(float)
HALVES = st.integers(0, 80).map(lambda twice: twice / 2)
HOLDS = {
    "coco": {LabelKind.BOX, LabelKind.POLYGON, LabelKind.MASK, LabelKind.CLASS, LabelKind.NOTHING},
    "csv": set(LabelKind),
    "cvat": set(LabelKind),
    "datumaro": set(LabelKind),
    "geojson": set(LabelKind) - {LabelKind.MASK},
    "label-studio": set(LabelKind) - {LabelKind.POLYLINE},
    "labelme": {LabelKind.BOX, LabelKind.POLYGON, LabelKind.POLYLINE, LabelKind.POINTS, LabelKind.CLASS},
    "masks": {LabelKind.MASK},
    "voc": {LabelKind.BOX},
    "yolo": {LabelKind.BOX},
    "yolo-seg": {LabelKind.POLYGON},
    "yolo-obb": {LabelKind.ROTATED},
}
WITH_AUTHOR = {"csv", "geojson", "label-studio"}
# What a format writes as another kind, with a count of its own; it is not drawn here.
WRITTEN_OTHERWISE = {"yolo-obb": {LabelKind.BOX}}


CVAT_OUTSIDE = (
    "<annotations><image height='9' width='9'><mask rle='1' left='9' top='0' width='1' height='1'/></image></annotations>"
)
WRONG_BRUSH = {
    "type": "brushlabels",
    "original_width": 9,
    "original_height": 9,
    "value": {"rle": [255, 255, 255, 255, 0, 0, 0, 0], "brushlabels": ["a"]},
}


def shape(kind: LabelKind) -> st.SearchStrategy[tuple[float, ...]]:
    if kind is LabelKind.BOX:
        return st.tuples(
            HALVES.filter(lambda x: x < 20), HALVES.filter(lambda y: y < 20), NUMBERS.filter(bool), HALVES.filter(bool)
        ).map(lambda box: (box[0], box[1], min(box[2], 40.0), min(box[3], 27.0)))
    if kind is LabelKind.MASK:
        return st.integers(0, 2**20).map(lambda seed: runs_of(np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.9))
    if kind in (LabelKind.CLASS, LabelKind.NOTHING):
        return st.just(())
    if kind is LabelKind.ROTATED:
        return st.tuples(HALVES, HALVES, st.integers(8, 30), st.integers(8, 30), st.integers(1, 359)).map(
            lambda box: tuple(map(float, box))
        )
    if kind is LabelKind.POINTS:
        return st.tuples(HALVES, HALVES)
    return st.lists(HALVES, min_size=6, max_size=12).filter(lambda xs: len(xs) % 2 == 0).map(tuple)


def label(kind: LabelKind) -> st.SearchStrategy[Drawn]:
    value = st.just("") if kind is LabelKind.NOTHING else VALUES
    return st.builds(Drawn, st.just(""), st.just(kind), value, shape(kind), author=st.sampled_from(["", "ann"]))


def task(number: int, labels: list[Drawn]) -> LabelTask:
    sample = f"camera_frame/cam-{number}/7/{number}"
    return LabelTask(sample, f"{number:064x}", f"{sample.replace('/', '~')}.jpg", WIDTH, HEIGHT, tuple(labels))


def distinct(labels: tuple[Drawn, ...]) -> tuple[Drawn, ...]:
    return tuple({(one.kind, one.value, one.geometry): one for one in labels}.values())


def essence(image: str, found: Drawn, *, with_author: bool) -> tuple[Any, ...]:
    numbers = found.geometry
    if found.is_share:
        numbers = tuple(number * size for number, size in zip(numbers, (WIDTH, HEIGHT) * (len(numbers) // 2), strict=True))
    elif found.kind is LabelKind.ROTATED:
        numbers = corners_of_rotated(numbers)
    return (image.rsplit(".", 1)[0], found.kind, found.value, found.author if with_author else "", numbers)


def in_order(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(found, key=lambda one: (*one[:4], [round(number + 0.037, 1) for number in one[4]]))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_labels_come_back_equal_up_to_the_loss_table(name: str, data: st.DataObject) -> None:
    kinds = [LabelKind.MASK] if name == "masks" else [kind for kind in LabelKind if kind not in WRITTEN_OTHERWISE.get(name, ())]
    drawn = st.lists(st.sampled_from(kinds).flatmap(label), max_size=1 if name == "masks" else 5)
    tasks = [task(number, data.draw(drawn)) for number in range(3)]
    if name in {"labelme", "coco", "datumaro", "label-studio"}:  # a flag, or that there is nothing, is there once
        tasks = [msgspec.structs.replace(each, labels=distinct(each.labels)) for each in tasks]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"labels{FORMATS[name].suffix}"
        losses = FORMATS[name].write(path, tasks)
        found = FORMATS[name].read(path)
    with_author = name in WITH_AUTHOR
    held = [(each.name, one) for each in tasks for one in each.labels if one.kind in HOLDS[name]]
    lost = sum(len(each.labels) for each in tasks) - len(held)
    back = [(one.image, one) for one in found.labels if one.value or one.kind is LabelKind.NOTHING]
    there = in_order([essence(image, one, with_author=with_author) for image, one in held])
    again = in_order([essence(image, one, with_author=with_author) for image, one in back])
    assert [one[:4] for one in again] == [one[:4] for one in there]
    for left, right in zip(again, there, strict=True):
        assert left[4] == pytest.approx(right[4], abs=1e-3)
    assert sum(count for reason, count in losses.items() if "does not know" in reason) == lost


def test_masks_are_the_same_after_run_lengths() -> None:
    mask = np.random.default_rng(1).random((13, 7)) > 0.5
    for each in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
        assert (mask_of(runs_of(each)) == each).all()
        left, top, width, height, runs = part_of(each)
        assert (whole_of((left, top, width, height), runs, (13, 7)) == each).all()
        assert (mask_of_brush(brush_of(each), 7, 13) == each).all()
        counts = [int(count) for count in runs_of(each)[2:]]
        assert counts_of_text(text_of_counts(counts)) == counts
    with pytest.raises(RefusedError, match="do not fill"):
        mask_of((4.0, 4.0, 3.0))


def test_coco_masks_are_read_in_compressed_text_too() -> None:
    # pycocotools.mask.encode of a 4 x 4 array with the two middle columns set: counts 4, 8, 4.
    assert counts_of_text("484") == [4, 8, 4]
    assert text_of_counts([4, 8, 4]) == "484"


def test_coco_says_what_it_does_not_take(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 5, "name": "dent"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[0, 0, 4, 0, 4, 4], [9, 9, 8, 9, 8, 8]]},
            {"id": 2, "image_id": 9, "category_id": 5, "bbox": [0, 0, 1, 1]},
            {"id": 3, "image_id": 1, "category_id": 5},
        ],
    }))  # fmt: skip
    found = FORMATS["coco"].read(path)
    assert [one.kind for one in found.labels] == [LabelKind.POLYGON] * 2
    assert sorted(found.losses.values()) == [1, 1, 1]
    assert [one.image for one in found.empty] == ["b.jpg"]


def test_a_voc_box_counts_from_one(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.jpg</filename><object><name>dent</name><truncated>1</truncated>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>5</ymax></bndbox></object></annotation>"
    )
    (box,) = FORMATS["voc"].read(tmp_path).labels
    assert box.geometry == (0.0, 0.0, 10.0, 5.0)
    assert box.attributes == {"truncated": "1"}


def read_text(folder: Path, name: str, file: str, text: str) -> ForeignFile:
    (folder / file).write_text(text)
    return FORMATS[name].read(folder / file if FORMATS[name].suffix else folder)


def test_a_turned_box_of_cvat_turns_about_its_centre(tmp_path: Path) -> None:
    shape = '<box label="dent" xtl="10" ytl="20" xbr="30" ybr="30" rotation="90"/>'
    xml = f'<annotations><image id="0" name="a.jpg" width="100" height="50">{shape}</image></annotations>'
    (box,) = read_text(tmp_path, "cvat", "a.xml", xml).labels
    assert (box.kind, box.geometry) == (LabelKind.ROTATED, (20.0, 25.0, 20.0, 10.0, 90.0))
    # A quarter turn: the box of 20 x 10 stands upright, from (15, 15) to (25, 35).
    assert corners_of_rotated(box.geometry) == pytest.approx((25, 15, 25, 35, 15, 35, 15, 15))


def test_a_turned_box_of_label_studio_turns_about_its_first_corner(tmp_path: Path) -> None:
    value = {"x": 10, "y": 40, "width": 20, "height": 20, "rotation": 90, "rectanglelabels": ["dent"]}
    result = {"id": "r", "type": "rectanglelabels", "original_width": 100, "original_height": 50, "value": value}
    task = {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"id": 3, "result": [result]}]}
    (box,) = read_text(tmp_path, "label-studio", "a.json", json.dumps([task])).labels
    assert box.image == "a.jpg"
    # The corner (10, 20) stays; the side of 20 px goes down, that of 10 px to the left.
    assert corners_of_rotated(box.geometry) == pytest.approx((10, 20, 10, 40, 0, 40, 0, 20))


def test_percent_of_label_studio_become_pixels_without_half_a_pixel_more(tmp_path: Path) -> None:
    value = {"points": [[0, 0], [100, 0], [50, 100]], "polygonlabels": ["dent"]}
    sized = {"type": "polygonlabels", "original_width": 640, "original_height": 480, "value": value}
    found = read_text(tmp_path, "label-studio", "a.json", json.dumps([
        {"data": {"image": "a.jpg"}, "annotations": [
            {"id": 1, "completed_by": {"id": 4, "email": "ann@x"}, "result": [sized], "created_at": "2026-01-02T03:04:05Z"},
            {"id": 2, "completed_by": 7, "result": []},
            {"id": 3, "completed_by": 8, "result": [sized], "was_cancelled": True},
        ], "predictions": [{"result": [sized]}]},
    ]))  # fmt: skip
    polygon, nothing = found.labels
    assert polygon.geometry == (0.0, 0.0, 640.0, 0.0, 320.0, 480.0)
    assert (polygon.author, polygon.made_us) == ("ann@x", 1_767_323_045_000_000)
    assert (nothing.kind, nothing.author) == (LabelKind.NOTHING, "7")
    assert sorted(found.losses.values()) == [1, 1]


def test_geojson_of_qupath_is_read_in_the_pixels_of_its_picture(tmp_path: Path) -> None:
    ring, hole = [[0, 0], [8, 0], [8, 4], [0, 4], [0, 0]], [[1, 1], [2, 1], [2, 2], [1, 1]]
    found = read_text(tmp_path, "geojson", "scan.geojson", json.dumps([
        {"type": "Feature", "id": "u", "geometry": {"type": "Polygon", "coordinates": [ring, hole]},
         "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [1, 2, 3]}}},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4, 0]}, "properties": {"name": "cell"}},
        {"type": "Feature", "geometry": {"type": "GeometryCollection"}, "properties": None},
    ]))  # fmt: skip
    polygon, point = found.labels
    assert (polygon.image, polygon.value, polygon.geometry) == ("scan.geojson", "Tumor", (0, 0, 8, 0, 8, 4, 0, 4))
    assert (point.kind, point.value, point.geometry) == (LabelKind.POINTS, "cell", (3.0, 4.0))
    assert sorted(found.losses) == ["holes of polygons, which are filled", "shapes of type GeometryCollection"]


def test_a_box_of_datumaro_with_a_rotation_is_turned(tmp_path: Path) -> None:
    box = {"id": 1, "type": "bbox", "label_id": 0, "bbox": [10, 20, 20, 10], "attributes": {"rotation": 30.0, "occluded": True}}
    item = {
        "id": "cam/a",
        "annotations": [box, {"type": "bbox", "label_id": 9}],
        "image": {"path": "cam/a.png", "size": [50, 100]},
    }
    categories = {"label": {"labels": [{"name": "dent", "parent": "", "attributes": []}]}}
    found = read_text(tmp_path, "datumaro", "a.json", json.dumps({"categories": categories, "items": [item]}))
    (turned,) = found.labels
    assert (turned.kind, turned.geometry) == (LabelKind.ROTATED, (20.0, 25.0, 20.0, 10.0, 30.0))
    assert (turned.image, turned.attributes) == ("cam/a.png", {"occluded": True})
    assert found.losses == {"annotations without a category": 1}


def test_a_line_of_yolo_is_a_polygon_or_a_turned_box_as_the_reader_says(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dent\n")
    line = "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4\n"
    for name, kind in (("yolo-seg", LabelKind.POLYGON), ("yolo-obb", LabelKind.ROTATED)):
        (shape,) = read_text(tmp_path, name, "a.txt", line).labels
        assert (shape.kind, shape.geometry, shape.is_share) == (kind, (0.1, 0.2, 0.3, 0.2, 0.3, 0.4, 0.1, 0.4), True)
    assert list(read_text(tmp_path, "yolo", "a.txt", line).losses.values()) == [1]


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("coco", "a.json", "{}", "not what this format has"),
        ("coco", "a.json", "\xff", "not what this format has"),
        ("voc", "a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "document type"),
        ("voc", "a.xml", "<a>", "not XML"),
        ("voc", "a.xml", "<a><object><bndbox><xmin>x</xmin></bndbox></object></a>", "lacks a corner"),
        ("csv", "a.csv", "name\nx\n", "needs a column value"),
        ("csv", "a.csv", "file_name,value,kind\na,b,circle\n", "a.csv:2: 'circle' is not a valid"),
        ("csv", "a.csv", "file_name,value,geometry\na,b,1 x\n", "a.csv:2: could not convert"),
        ("labelme", "a.json", "[]", "not what this format has"),
        ("masks", "classes.txt", "background\n", "no .png files"),
        ("yolo", "a.txt", "0 1 1 1 1\n", "no names of classes"),
        ("cvat", "a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>", "document type"),
        ("cvat", "a.xml", "<rss/>", "not annotations"),
        ("cvat", "a.xml", "<annotations><image name='a'><box xtl='x'/></image></annotations>", "lacks a number"),
        (
            "cvat",
            "a.xml",
            CVAT_OUTSIDE,
            "does not fit a picture",
        ),
        ("datumaro", "a.json", "{}", "not what this format has"),
        ("datumaro", "a.json", "[" * 100_000, "nested too deep|not what this format has"),
        ("geojson", "a.geojson", '{"features": [], "crs": {"name": "EPSG:3857"}}', "coordinates of a map"),
        ("geojson", "a.geojson", '[{"geometry": {"type": "Polygon", "coordinates": [[["x", 1]]]}}]', "feature 1 has coordinates"),
        ("label-studio", "a.json", '{"data": {}}', "not what this format has"),
        (
            "label-studio",
            "a.json",
            '[{"data": {}, "annotations": [{"result": [{"type": "rectanglelabels", "value": {"x": 1}}]}]}]',
            "lacks a number",
        ),
        (
            "label-studio",
            "a.json",
            json.dumps([{"data": {}, "annotations": [{"result": [WRONG_BRUSH]}]}]),
            "does not fill a picture",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(RefusedError, match=message):
        FORMATS[name].read(tmp_path / file if FORMATS[name].suffix else tmp_path)
    with pytest.raises(NotFoundError):
        FORMATS[name].read(tmp_path / "absent" / "x")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_boxes_polygons_and_masks_of_our_coco_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="make test-peers fetches it; make setup does not")
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:20, 5:9] = True
    drawn = [
        Drawn("", LabelKind.BOX, "dent", (4.0, 6.0, 10.0, 8.0)),
        Drawn("", LabelKind.POLYGON, "crack öl", (0.0, 0.0, 20.0, 0.0, 20.0, 10.0, 0.0, 10.0)),
        Drawn("", LabelKind.MASK, "scratch", runs_of(mask)),
    ]
    path = tmp_path / "labels.json"
    FORMATS["coco"].write(path, [task(1, drawn), task(2, [])])
    found = coco.COCO(str(path))
    capsys.readouterr()
    assert sorted(each["name"] for each in found.loadCats(found.getCatIds())) == ["crack öl", "dent", "scratch"]
    by_class = {found.loadCats(each["category_id"])[0]["name"]: each for each in found.loadAnns(found.getAnnIds())}
    assert by_class["dent"]["bbox"] == [4.0, 6.0, 10.0, 8.0]
    assert np.array_equal(found.annToMask(by_class["scratch"]).astype(bool), mask)
    assert found.annToMask(by_class["crack öl"]).sum() == pytest.approx(200, abs=31)


def test_shapely_reads_our_geojson(tmp_path: Path) -> None:
    drawn = [
        Drawn("", LabelKind.BOX, "dent", (4.0, 6.0, 10.0, 8.0)),
        Drawn("", LabelKind.POLYGON, "rust", (0.0, 0.0, 20.0, 0.0, 20.0, 10.0)),
        Drawn("", LabelKind.ROTATED, "crack", (30.0, 20.0, 10.0, 4.0, 30.0)),
    ]
    FORMATS["geojson"].write(tmp_path / "g", [task(1, drawn)])
    (file,) = [path for path in (tmp_path / "g").rglob("*") if path.is_file()] if (tmp_path / "g").is_dir() else [tmp_path / "g"]
    shapes = [shapely.from_geojson(json.dumps(each["geometry"])) for each in json.loads(file.read_text())["features"]]
    assert sorted(round(shape.area) for shape in shapes) == [40, 80, 100]
    assert all(shape.is_valid for shape in shapes)
