"""Each format writes labels and reads them back: equal, up to what its loss table counts."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.drawn import Drawn, LabelKind, LabelTask
from pipelines.labels.exchange import FORMATS
from pipelines.labels.formats.coco import counts_of_text
from pipelines.labels.formats.masks import mask_of, runs_of

WIDTH, HEIGHT = 64, 48
VALUES = st.sampled_from(["scratch", "dent", "crack öl", "a, b"])
NUMBERS = st.integers(0, 40).map(float)
HALVES = st.integers(0, 80).map(lambda twice: twice / 2)
HOLDS = {
    "coco": {LabelKind.BOX, LabelKind.POLYGON, LabelKind.MASK, LabelKind.CLASS, LabelKind.NOTHING},
    "csv": set(LabelKind),
    "labelme": {LabelKind.BOX, LabelKind.POLYGON, LabelKind.POLYLINE, LabelKind.POINTS, LabelKind.CLASS},
    "masks": {LabelKind.MASK},
    "voc": {LabelKind.BOX},
    "yolo": {LabelKind.BOX},
}
WITH_AUTHOR = {"csv"}


def shape(kind: LabelKind) -> st.SearchStrategy[tuple[float, ...]]:
    if kind is LabelKind.BOX:
        return st.tuples(
            HALVES.filter(lambda x: x < 20), HALVES.filter(lambda y: y < 20), NUMBERS.filter(bool), HALVES.filter(bool)
        ).map(lambda box: (box[0], box[1], min(box[2], 40.0), min(box[3], 27.0)))
    if kind is LabelKind.MASK:
        return st.integers(0, 2**20).map(lambda seed: runs_of(np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.9))
    if kind in (LabelKind.CLASS, LabelKind.NOTHING):
        return st.just(())
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
        numbers = tuple(number * size for number, size in zip(numbers, (WIDTH, HEIGHT) * 2, strict=True))
    rounded = tuple(round(number, 3) for number in numbers)
    return (image.rsplit(".", 1)[0], found.kind, found.value, rounded, found.author if with_author else "")


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_labels_come_back_equal_up_to_the_loss_table(name: str, data: st.DataObject) -> None:
    kinds = [LabelKind.MASK] if name == "masks" else list(LabelKind)
    drawn = st.lists(st.sampled_from(kinds).flatmap(label), max_size=1 if name == "masks" else 5)
    tasks = [task(number, data.draw(drawn)) for number in range(3)]
    if name in {"labelme", "coco"}:  # a flag, or that there is nothing, is there once
        tasks = [msgspec.structs.replace(each, labels=distinct(each.labels)) for each in tasks]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"labels{FORMATS[name].suffix}"
        losses = FORMATS[name].write(path, tasks)
        found = FORMATS[name].read(path)
    with_author = name in WITH_AUTHOR
    held = [(each.name, one) for each in tasks for one in each.labels if one.kind in HOLDS[name]]
    lost = sum(len(each.labels) for each in tasks) - len(held)
    back = [(one.image, one) for one in found.labels if one.value or one.kind is LabelKind.NOTHING]
    assert sorted(essence(image, one, with_author=with_author) for image, one in back) == sorted(
        essence(image, one, with_author=with_author) for image, one in held
    )
    assert sum(count for reason, count in losses.items() if "does not know" in reason) == lost


def test_masks_are_the_same_after_run_lengths() -> None:
    mask = np.random.default_rng(1).random((13, 7)) > 0.5
    for each in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
        assert (mask_of(runs_of(each)) == each).all()
    with pytest.raises(RefusedError, match="do not fill"):
        mask_of((4.0, 4.0, 3.0))


def test_coco_masks_are_read_in_compressed_text_too() -> None:
    # pycocotools.mask.encode of a 4 x 4 array with the two middle columns set: counts 4, 8, 4.
    assert counts_of_text("484") == [4, 8, 4]


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
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(RefusedError, match=message):
        FORMATS[name].read(tmp_path / file if FORMATS[name].suffix else tmp_path)
    with pytest.raises(NotFoundError):
        FORMATS[name].read(tmp_path / "absent" / "x")
