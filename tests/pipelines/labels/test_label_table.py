"""Labels come back into the lake: found by id, hash or name, added once, resolved, and used by a set."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from typer.testing import CliRunner

from pipelines.commands.label import label_app
from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.exchange import import_labels
from pipelines.labels.matching import LabelOrigin
from pipelines.labels.resolve import current_labels, resolved_classes
from pipelines.labels.table import SCHEMA, read_labels
from pipelines.lake.compact_plan import Small, tiers
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import write_payload_shard
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep
from pipelines.runners.engine import Engine
from pipelines.training.build import wish_of_spec
from pipelines.training.building.versions import Terms, planned
from pipelines.training.manifest import Source
from pipelines.training.spec_file import parse_spec

RUN = CliRunner()
COUNT = 12
SHARD = "payload/camera_frame/1-0.parquet"
BODIES = [f"picture {at}".encode() for at in range(COUNT)]
DIGESTS = [hashlib.sha256(body).hexdigest() for body in BODIES]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Twelve pictures of two cameras; the last two have one file name."""
    root = tmp_path / "shop"
    key = {
        "device": [f"cam-{at % 2}" for at in range(COUNT)],
        "epoch": pa.array([5] * COUNT, pa.int64()),
        "seq": pa.array(range(COUNT), pa.int64()),
    }
    payload = {"payload_sha256": DIGESTS, "payload": pa.array(BODIES, pa.binary())}
    shard = write_payload_shard(root / SHARD, pa.table({**key, **payload}))
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=at) for at in range(COUNT)]
    rows = {
        **key,
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        "file_name": [f"shots/p{min(at, COUNT - 2)}.png" for at in range(COUNT)],
        "width": pa.array([100] * COUNT, pa.int32()),
        "height": pa.array([50] * COUNT, pa.int32()),
        "score": pa.array([at / 10 for at in range(COUNT)]),
        "payload_sha256": DIGESTS,
        "payload_shard": [SHARD] * COUNT,
        "payload_row": pa.array(range(COUNT), pa.int32()),
        "payload_offset": shard.offsets,
        "payload_length": shard.lengths,
    }
    write_deltalake(root / "streams/camera_frame", pa.table(rows))
    return root


def imported(root: Path, path: Path, kind: str = "csv", *more: str) -> dict[str, Any]:
    words = ["import", str(path), "--task", "defect", "--from", "camera_frame", "--as", kind, "--json", "--lake", str(root)]
    done = RUN.invoke(label_app, [*words, *more])
    if done.exception:
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def labels_of(root: Path) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(read_labels(lake_at(root), "defect")[0]))


def write_csv(path: Path, *rows: str, head: str = "sample,sha256,file_name,kind,value,author,made_at") -> Path:
    path.write_text("\n".join((head, *rows)) + "\n")
    return path


def test_images_are_found_by_id_then_by_hash_then_by_a_name_that_one_sample_has(shop: Path, tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "a.csv",
        "camera_frame/cam-1/5/1,,x.png,,dent,ann,",
        f",{DIGESTS[2]},y.png,,dent,ann,",
        ",,C:\\out\\p3.jpg,,ok,ann,",
        ",,camera_frame~cam-0~5~4.png,,ok,ann,",
    )
    done = imported(shop, file)
    assert (done["by_id"], done["by_sha256"], done["by_name"], done["new"]) == (2, 1, 1, 4)
    assert labels_of(shop).sort("seq")["seq"].to_list() == [1, 2, 3, 4]
    assert set(labels_of(shop)["author"]) == {"ann"}
    assert labels_of(shop).sort("seq")["payload_sha256"].to_list() == DIGESTS[1:5]


def test_an_image_without_a_sample_or_with_several_is_refused_unless_partial(shop: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", ",,p1.png,,ok,,", ",,p10.png,,ok,,", ",,stranger.png,,ok,,")
    with pytest.raises(RefusedError, match=r"no sample: stranger.png; 1 images have several samples by that name: p10.png"):
        imported(shop, file)
    with pytest.raises(NotFoundError):
        labels_of(shop)
    done = imported(shop, file, "csv", "--partial")
    assert (done["new"], done["unmatched"], done["ambiguous"]) == (1, ["stranger.png"], ["p10.png"])


def test_the_same_file_twice_adds_nothing_and_a_folder_adds_only_new_files(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "yolo"
    folder.mkdir()
    (folder / "classes.txt").write_text("ok\ndent\n")
    (folder / "p1.txt").write_text("1 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n")
    assert [imported(shop, folder, "yolo")["new"] for _ in range(2)] == [2, 0]
    (folder / "p2.txt").write_text("0 0.1 0.1 0.1 0.1\n")
    assert imported(shop, folder, "yolo")["new"] == 1
    assert labels_of(shop).sort("seq")["geometry"].to_list()[0] == pytest.approx([40.0, 15.0, 20.0, 20.0])


@pytest.mark.slow
def test_a_hundred_thousand_labels_are_one_file_and_one_commit(tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "many")
    samples = pa.table({
        "stream": ["camera_frame"] * 20_000, "device": ["cam"] * 20_000, "epoch": pa.array([1] * 20_000, pa.int64()),
        "seq": pa.array(range(20_000), pa.int64()), "file_name": [f"p{at}.png" for at in range(20_000)],
    })  # fmt: skip
    file = tmp_path / "many.csv"
    lines = (f"p{at % 20_000}.png,box,dent,{at % 50} 1 4 4" for at in range(100_000))
    file.write_text("\n".join(("file_name,kind,value,geometry", *lines)))
    origin = LabelOrigin("defect", "ann", now_us=1)
    assert [import_labels(lake, file, "csv", samples, origin).new for _ in range(2)] == [100_000, 0]
    table, version = read_labels(lake, "defect")
    assert (len(table), version, len(list((lake.root / "labels/defect").glob("*.parquet")))) == (100_000, 1, 1)


def test_a_later_label_of_the_same_author_supersedes_the_earlier_one(shop: Path, tmp_path: Path) -> None:
    imported(shop, write_csv(tmp_path / "a.csv", ",,p1.png,,ok,ann,", ",,p1.png,,dent,bob,"))
    imported(shop, write_csv(tmp_path / "b.csv", ",,p1.png,,dent,ann,"))
    table = labels_of(shop)
    assert len(table) == 3
    (superseded,) = table.filter(pl.col("supersedes").list.len() > 0)["supersedes"].to_list()
    assert superseded == table.filter(pl.col("value") == "ok")["label_id"].to_list()


def test_nothing_here_is_a_row_only_where_somebody_says_so(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "p1.png"}], "annotations": [], "categories": []}))
    done = imported(shop, file, "coco")
    assert done["labels"] == 0
    assert list(done["losses"].values()) == [1]
    assert imported(shop, file, "coco", "--empty-is-nothing")["new"] == 1
    assert labels_of(shop)["kind"].to_list() == ["nothing"]


@pytest.mark.parametrize("numbers", ["1 2 3", "nan 0 4 4", "0 0 -4 4", "1 1 inf 4"])
def test_numbers_that_draw_nothing_are_refused(shop: Path, tmp_path: Path, numbers: str) -> None:
    file = write_csv(tmp_path / "a.csv", f"p1.png,box,dent,{numbers}", head="file_name,kind,value,geometry")
    with pytest.raises(RefusedError, match=r"p1\.png.*correct the file"):
        imported(shop, file)


def test_shares_of_polygons_and_turned_boxes_become_pixels_of_the_picture(shop: Path, tmp_path: Path) -> None:
    for name, line in (("yolo-seg", "0 0 0 0.5 0 0.5 1"), ("yolo-obb", "0 0.2 0.4 0.4 0.4 0.4 0.6 0.2 0.6")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "classes.txt").write_text("dent\n")
        (folder / "p1.txt").write_text(f"{line}\n")
        assert imported(shop, folder, name)["new"] == 1
    table = labels_of(shop).sort("kind")
    assert table["kind"].to_list() == ["polygon", "rotated"]
    # Pictures are 100 x 50 px: the turned box goes from (20, 20) to (40, 30).
    assert table["geometry"].to_list() == [pytest.approx([0, 0, 50, 0, 50, 50]), pytest.approx([30, 25, 20, 10, 0])]


def test_bytes_that_changed_since_and_unknown_sizes_are_counted(shop: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", f"camera_frame/cam-1/5/1,{DIGESTS[9]},,,ok,ann,")
    done = imported(shop, file)
    assert "bytes are others now" in next(iter(done["losses"]))
    assert labels_of(shop)["payload_sha256"].to_list() == [DIGESTS[9]]


def label_rows(*judgements: tuple[int, str, str, str, int]) -> pa.Table:
    """Rows by (seq, author, role, value, minute)."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    fixed = {"stream": "s", "device": "d", "epoch": 1, "imported_at": start, "supersedes": [], "state": "submitted"}
    rows = [
        {
            **fixed,
            "label_id": f"{at:03d}",
            "seq": seq,
            "kind": "class" if value else "nothing",
            "value": value,
            "author": author,
            "role": role,
            "made_at": start + timedelta(minutes=minute),
        }
        for at, (seq, author, role, value, minute) in enumerate(judgements)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def resolved(table: pa.Table, rule: Any) -> dict[int, str]:
    found = resolved_classes(table, rule)
    return dict(zip(found["seq"].to_pylist(), found["value"].to_pylist(), strict=True))


def test_the_latest_label_counts_and_a_reviewer_before_all() -> None:
    table = label_rows(
        (1, "a", "annotator", "ok", 1),
        (1, "b", "annotator", "dent", 2),
        (2, "r", "reviewer", "ok", 1),
        (2, "a", "annotator", "dent", 9),
        (3, "a", "annotator", "", 1),
    )
    assert resolved(table, "latest") == {1: "dent", 2: "ok", 3: "nothing"}


def test_a_majority_counts_each_author_once_and_a_tie_gives_no_class() -> None:
    table = label_rows(
        (1, "a", "annotator", "ok", 1),
        (1, "a", "annotator", "ok", 2),
        (1, "b", "annotator", "dent", 3),
        (1, "c", "annotator", "dent", 1),
        (2, "a", "annotator", "ok", 1),
        (2, "b", "annotator", "dent", 1),
    )
    assert resolved(table, "majority") == {1: "dent"}
    assert resolved_classes(table, "majority")["agreement"].to_pylist() == [pytest.approx(2 / 3)]


def test_a_set_takes_its_classes_from_a_task_at_a_pinned_version(shop: Path, tmp_path: Path) -> None:
    imported(shop, write_csv(tmp_path / "a.csv", *(f",,p{at}.png,,{('ok', 'dent')[at % 2]},ann," for at in range(6))))
    version = read_labels(lake_at(shop), "defect")[1]
    imported(shop, write_csv(tmp_path / "b.csv", ",,p1.png,,ok,bob,2026-05-01T00:00:00Z"))

    def classes(pinned: str) -> tuple[list[str], tuple[Source, ...], tuple[str, ...]]:
        spec = parse_spec(f"id: a\nsources: [{{stream: camera_frame}}]\npayload: false\nlabel: {{task: defect{pinned}}}\n")
        with planned(lake_at(shop), wish_of_spec(spec), Terms(Engine())) as plan:
            rows = pa.concat_tables([part.rows() for part in plan.parts]).sort_by("seq")
            return rows["label"].to_pylist(), plan.sources, plan.notes

    assert classes(f", version: {version}")[0] == ["ok", "dent", "ok", "dent", "ok", "dent"]
    values, sources, notes = classes("")
    assert len(values) == 6
    assert sources[-1] == Source("labels/defect", version + 1, 6)
    assert any("1 rows have labels that differ between authors" in note for note in notes)
    assert f"labels of task defect at version {version + 1} by the rule latest; labelled by ann 6, bob 1" in " ".join(notes)
    spec = parse_spec("id: a\nsources: [{stream: camera_frame}]\nlabel: {task: other}\n")
    with (
        pytest.raises(NotFoundError, match="no labels for task other"),
        planned(lake_at(shop), wish_of_spec(spec), Terms(Engine())),
    ):
        pass


def test_a_queue_gives_unlabelled_samples_with_id_and_hash_and_their_pictures(shop: Path, tmp_path: Path) -> None:
    imported(shop, write_csv(tmp_path / "a.csv", ",,p0.png,,ok,ann,"))
    words = ["--task", "defect", "--from", "camera_frame", "--as", "csv", "-o", str(tmp_path / "out/q.csv"), "--lake", str(shop)]
    (tmp_path / "out").mkdir()
    done = RUN.invoke(label_app, ["queue", *words, "-n", "3", "--by", "score", "--pictures"])
    assert done.exit_code == 0, done.output
    queued = pl.read_csv(tmp_path / "out/q.csv")
    assert queued["sample"].to_list() == [f"camera_frame/cam-{at % 2}/5/{at}" for at in (1, 2, 3)]
    assert queued["sha256"].to_list() == DIGESTS[1:4]
    assert (tmp_path / "out/images/camera_frame~cam-1~5~1.png").read_bytes() == BODIES[1]
    filled = write_csv(tmp_path / "f.csv", *(f"{sample},,,,dent,ann," for sample in queued["sample"]))
    assert imported(shop, filled)["by_id"] == 3


def test_an_export_holds_the_labels_and_comes_back_by_id(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "yolo"
    folder.mkdir()
    (folder / "classes.txt").write_text("ok\ndent\n")
    (folder / "p1.txt").write_text("1 0.5 0.5 0.2 0.4\n")
    imported(shop, folder, "yolo")
    for kind, name in (
        ("coco", "out.json"),
        ("voc", "voc"),
        ("yolo", "y"),
        ("labelme", "l"),
        ("csv", "o.csv"),
        ("cvat", "o.xml"),
        ("datumaro", "d.json"),
        ("geojson", "g"),
        ("label-studio", "s.json"),
    ):
        words = [
            "export",
            "--task",
            "defect",
            "--from",
            "camera_frame",
            "--as",
            kind,
            "-o",
            str(tmp_path / name),
            "--lake",
            str(shop),
        ]
        done = RUN.invoke(label_app, words)
        assert done.exit_code == 0, done.output
        assert "1 samples, 1 labels" in done.stdout
        assert imported(shop, tmp_path / name, kind)["by_id"] == 1
    boxes = labels_of(shop)["geometry"].to_list()
    assert boxes == [pytest.approx([40.0, 15.0, 20.0, 20.0])] * 10


def test_maintenance_puts_small_files_of_labels_together_and_every_version_stays_readable(shop: Path, tmp_path: Path) -> None:
    """Sets and runs pin versions of labels for good: what compaction replaced is never vacuumed."""
    for at in range(18):
        value = f"class-{at}" if at % 3 else "ok"
        imported(shop, write_csv(tmp_path / f"{at}.csv", f",,p{at % 4}.png,class,{value},ann,", f",,p5.png,class,c{at},bob,"))
    lake = lake_at(shop)
    versions = range(read_labels(lake, "defect")[1] + 1)
    before = {version: read_labels(lake, "defect", version)[0].sort_by("label_id") for version in versions[-18:]}
    now, folder = labels_of(shop), shop / "labels/defect"
    files = {path.name for path in folder.glob("*.parquet")}
    assert len(files) == 18
    for _ in range(2):
        maintain(lake, Keep(0, 0, 0, 0, 0))
    (made,) = {path.name for path in folder.glob("*.parquet")} - files
    assert DeltaTable(folder).file_uris() == [str(folder / made)]
    after = labels_of(shop)
    assert after.sort("label_id").equals(now.sort("label_id"))
    assert current_labels(after.to_arrow()).sort("label_id").equals(current_labels(now.to_arrow()).sort("label_id"))
    for version, table in before.items():
        assert read_labels(lake, "defect", version)[0].sort_by("label_id").equals(table)
    again = imported(shop, tmp_path / "3.csv")
    assert again["new"] == 0
    imported(shop, write_csv(tmp_path / "last.csv", ",,p5.png,class,dent,bob,"))
    latest = resolved_classes(read_labels(lake, "defect")[0]).to_pylist()
    assert {row["value"] for row in latest if row["seq"] == 5} == {"dent"}
    assert max(len(each) for each in labels_of(shop)["supersedes"].to_list()) == 1


def test_labels_are_put_together_in_tiers_so_that_old_files_stay_few() -> None:
    fresh = [Small(f"{at:012d}.parquet", 1, 10) for at in range(16)]
    made = [Small(f"compact-{at}.parquet", 16, 160) for at in range(15)]
    assert tiers([*made, *fresh], 16) == [tuple(fresh)]
    assert tiers([*made, *fresh[:3], Small("compact-x.parquet", 16, 160)], 16) == [
        (*sorted(made), Small("compact-x.parquet", 16, 160))
    ]
