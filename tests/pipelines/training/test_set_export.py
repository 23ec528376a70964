"""Exports: each peer's own library reads back every payload byte for byte; each export is recorded, whole or not there."""

import io
import json
import struct
import tarfile
import warnings
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from PIL import Image

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.training.array_rules import WindowRule
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.export.run import ExportFormat, ExportOrder, ExportRecord, export_set, exports_of
from pipelines.training.export.samples import ExportSource
from pipelines.training.open import open_set
from tests.fakes.run_core import RunCore
from tests.pipelines.training.test_set_build import FixedClock
from tests.plant.present import present

HALVES = {"train": 0.5, "test": 0.5}
PEERS = "make test-peers fetches it; make setup does not"
Payloads = dict[tuple[str, int], bytes]


def set_of(lake: Path, where: str = "", **options: Any) -> ExportSource:
    chosen = BuildOptions(**{"split": HALVES, **options})
    manifest = build_set(lake_at(lake), "frames", ("camera_frame",), where, seed=4, options=chosen)
    return ExportSource(lake / "sets/frames" / str(manifest.version), manifest)


def exported(lake: Path, form: str, source: ExportSource | None = None, **order: Any) -> tuple[Path, ExportRecord]:
    target = lake.parent / form
    chosen = ExportOrder(**{"form": ExportFormat(form), "recipient": "lab", **order})
    return target, export_set(lake_at(lake), source or set_of(lake), target, chosen, FixedClock())


def payloads(lake: Path, split: str) -> Payloads:
    """What the set itself holds."""
    return {(sample["device"], sample["seq"]): present(sample.payload) for sample in open_set(lake / "sets/frames/1", split)}


def with_boxes(lake: Path) -> ExportSource:
    rows = DeltaTable(lake / "streams/camera_frame").to_pyarrow_table()
    rows = rows.filter([row % 50 != 0 for row in range(len(rows))])
    boxes = [
        [{"x": 2.0, "y": 4.0, "width": 8.0, "height": 6.0, "label": f"c{row % 2}"}] if row % 3 else [] for row in range(len(rows))
    ]
    write_deltalake(
        lake / "streams/camera_frame", rows.append_column("boxes", pa.array(boxes)), mode="overwrite", schema_mode="overwrite"
    )
    return set_of(lake)


def test_webdataset_reads_every_payload_of_an_export(lake: Path) -> None:
    wds = pytest.importorskip("webdataset", reason=PEERS)
    folder, record = exported(lake, "webdataset")
    assert record.rows == 239
    for split in HALVES:
        found: Payloads = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for sample in wds.WebDataset(str(folder / f"{split}-000000.tar"), shardshuffle=False, empty_check=False):
                columns = json.loads(sample["json"])
                found[columns["device"], columns["seq"]] = sample.get("jpg", sample.get("bin"))
        assert found == payloads(lake, split)


def test_a_tar_of_the_export_is_plain_and_the_same_each_time(lake: Path) -> None:
    source = set_of(lake)
    folder, _ = exported(lake, "webdataset", source)
    with tarfile.open(folder / "train-000000.tar") as tar:
        names = tar.getnames()
        assert names[:2] in (["000000000.jpg", "000000000.json"], ["000000000.bin", "000000000.json"])
        assert {member.mtime for member in tar.getmembers()} == {0}
    first = (folder / "train-000000.tar").read_bytes()
    target = lake.parent / "again"
    export_set(lake_at(lake), source, target, ExportOrder(ExportFormat.WEBDATASET, "lab"), FixedClock())
    assert (target / "train-000000.tar").read_bytes() == first


def test_windows_go_to_webdataset_as_npy_and_nowhere_else(driven: Path) -> None:
    rule = WindowRule(2.0, 1.0, 10.0, ("speed", "yaw"))
    manifest = build_set(lake_at(driven), "drives", ("telemetry",), options=BuildOptions(split=HALVES, arrays=rule))
    source = ExportSource(driven / "sets/drives/1", manifest)
    folder, _ = exported(driven, "webdataset", source)
    with tarfile.open(folder / "train-000000.tar") as tar:
        window = np.load(io.BytesIO(present(tar.extractfile("000000003.windows.npy")).read()))
    assert np.array_equal(window, open_set(source.folder)[3].array, equal_nan=True)
    with pytest.raises(RefusedError, match="holds arrays"):
        exported(driven, "mds", source)


def test_parquet_for_hugging_face_has_every_payload_and_a_card(lake: Path) -> None:
    folder, _ = exported(lake, "huggingface", set_of(lake, "brightness > 0"))
    card = (folder / "README.md").read_text()
    configs = yaml.safe_load(card.split("---")[1])["configs"][0]
    assert configs["data_files"] == [{"split": split, "path": f"data/{split}-*.parquet"} for split in HALVES]
    assert "camera_frame at version 0" in card
    for split in HALVES:
        rows = pq.read_table(folder / f"data/{split}-00000.parquet")
        features = json.loads(rows.schema.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"}
        assert set(features) == set(rows.column_names)
        found = {(row["device"], row["seq"]): row["image"]["bytes"] for row in rows.to_pylist()}
        assert found == payloads(lake, split)


def test_hugging_face_datasets_loads_the_export(lake: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason=PEERS)
    folder, _ = exported(lake, "huggingface", set_of(lake, "brightness > 0"))
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in HALVES} == {split: len(payloads(lake, split)) for split in HALVES}
    assert isinstance(loaded["train"][0]["image"], Image.Image)


def test_croissant_is_valid_and_its_records_are_those_of_the_set(lake: Path) -> None:
    croissant = pytest.importorskip("mlcroissant", reason=PEERS)
    folder, _ = exported(lake, "huggingface")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = croissant.Dataset(jsonld=str(folder / "croissant.json"))
        assert not dataset.metadata.ctx.issues.errors
        records = list(dataset.records("train-00000"))
    assert {(row["train-00000/device"].decode(), row["train-00000/seq"]) for row in records} == set(payloads(lake, "train"))


def test_tfrecord_reads_every_payload_of_an_export(lake: Path) -> None:
    tfrecord = pytest.importorskip("tfrecord", reason=PEERS)
    folder, _ = exported(lake, "tfrecord")
    for split in HALVES:
        kinds = {"payload": "byte", "device": "byte", "seq": "int", "brightness": "float", "event_time": "int"}
        found: Payloads = {}
        for row in tfrecord.tfrecord_loader(str(folder / f"{split}-000000.tfrecord"), None, kinds):
            found[bytes(row["device"]).decode(), int(row["seq"][0])] = bytes(row["payload"])
            assert row["event_time"][0] == round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)
            assert row["brightness"].dtype == np.float32
        assert found == payloads(lake, split)


def test_lance_reads_every_payload_of_an_export(lake: Path) -> None:
    lance = pytest.importorskip("lance", reason=PEERS)
    folder, _ = exported(lake, "lance")
    for split in HALVES:
        rows = lance.dataset(str(folder / f"{split}.lance")).to_table(columns=["device", "seq", "payload"]).to_pylist()
        assert {(row["device"], row["seq"]): row["payload"] for row in rows} == payloads(lake, split)


def test_an_mds_shard_is_laid_out_as_its_index_says(lake: Path) -> None:
    """Streaming itself needs torch; this decoder follows its reader: offsets, sizes of what varies, values in order."""
    folder, _ = exported(lake, "mds")
    for split in HALVES:
        (shard,) = json.loads((folder / split / "index.json").read_text())["shards"]
        body = (folder / split / shard["raw_data"]["basename"]).read_bytes()
        assert len(body) == shard["raw_data"]["bytes"]
        count = struct.unpack_from("<I", body)[0]
        found: Payloads = {}
        for at in range(count):
            begin, end = struct.unpack_from("<II", body, 4 * (1 + at))
            row = mds_row(body[begin:end], shard)
            found[row["device"].decode(), struct.unpack("<q", row["seq"])[0]] = row["payload"]
        assert found == payloads(lake, split)


def mds_row(body: bytes, shard: dict[str, Any]) -> dict[str, bytes]:
    varying = [size for size in shard["column_sizes"] if size is None]
    lengths = iter(np.frombuffer(body, "<u4", len(varying)).tolist())
    row, at = {}, 4 * len(varying)
    for name, size in zip(shard["column_names"], shard["column_sizes"], strict=True):
        length = next(lengths) if size is None else size
        row[name], at = body[at : at + length], at + length
    assert at == len(body)
    return row


def test_pycocotools_reads_the_boxes_and_pictures_of_an_export(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason=PEERS)
    folder, _ = exported(lake, "coco", with_boxes(lake), boxes="boxes")
    found = coco.COCO(str(folder / "annotations/instances_train.json"))
    assert {category["name"] for category in found.loadCats(found.getCatIds())} == {"c0", "c1"}
    split = open_set(lake / "sets/frames/1")
    for image in found.loadImgs(found.getImgIds()):
        sample = split[image["id"] - 1]
        assert (folder / "train" / image["file_name"]).read_bytes() == sample.payload
        assert [box["bbox"] for box in found.imgToAnns[image["id"]]] == [[2.0, 4.0, 8.0, 6.0]] * len(sample["boxes"])
        assert (image["width"], image["height"]) == (32, 24)


def test_yolo_labels_are_centres_and_sizes_as_shares_of_the_picture(lake: Path) -> None:
    folder, _ = exported(lake, "yolo", with_boxes(lake), boxes="boxes")
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data["names"] == {0: "c0", 1: "c1"}
    split = open_set(lake / "sets/frames/1")
    for index in range(len(split)):
        label = (folder / f"labels/train/{index:09d}.txt").read_text().split()
        boxes = split[index]["boxes"]
        assert [float(side) for side in label[1:]] == pytest.approx([6 / 32, 7 / 24, 8 / 32, 6 / 24] if boxes else [], abs=1e-6)
        assert label[:1] == ([boxes[0]["label"][-1]] if boxes else [])
        assert (folder / f"images/train/{index:09d}.jpg").read_bytes() == split[index].payload


def test_each_export_is_recorded_with_recipient_and_expiry(lake: Path) -> None:
    _, record = exported(lake, "webdataset", recipient="University of X", expires=date(2030, 1, 1))
    manifest = open_set(lake / "sets/frames/1").manifest
    assert exports_of(lake_at(lake), manifest) == [record]
    assert (record.recipient, record.expires, record.version) == ("University of X", date(2030, 1, 1), 1)
    assert record.files == len(list((lake.parent / "webdataset").iterdir()))


def test_a_rotten_payload_ends_an_export_and_leaves_nothing(lake: Path) -> None:
    source = set_of(lake)
    shard = source.folder / source.manifest.shards[0].path
    shard.chmod(0o644)
    body = bytearray(shard.read_bytes())
    at = body.index(b"\xff\xd8\xff") + 200
    body[at] ^= 1
    shard.write_bytes(body)
    with pytest.raises(CorruptLakeError):
        exported(lake, "webdataset", source)
    assert exports_of(lake_at(lake), source.manifest) == []
    assert not [path for path in lake.parent.iterdir() if "webdataset" in path.name]


def test_the_command_exports_and_lists_what_went_out(lake: Path, run_core: RunCore) -> None:
    set_of(lake)
    target = lake.parent / "out"
    words = ["set", "export", "frames", str(target), "--to", "tfrecord", "--lake", str(lake)]
    for options, message in (
        ([], "--recipient"),
        (["--recipient", "lab", "--expires", "tomorrow"], "a day like"),
        (["--recipient", "lab", "--expires", "2020-01-01"], "is past"),
    ):
        refused = run_core(*words, *options)
        assert (refused.code, message in refused.err, target.exists()) == (3, True, False)
    done = run_core(*words, "--recipient", "lab", "--expires", "2031-01-01")
    assert (done.code, "239 samples" in done.out) == (0, True), done.err
    listed = run_core("set", "exports", "frames", "--json", "--lake", str(lake))
    assert json.loads(listed.out)[0]["expires"] == "2031-01-01"
    assert "is there already" in run_core(*words, "--recipient", "lab").err


@pytest.mark.parametrize(("form", "message"), [("coco", "name the column of boxes"), ("yolo", "name the column of boxes")])
def test_a_format_of_boxes_needs_their_column(lake: Path, form: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        exported(lake, form)


def test_litdata_reads_every_payload_of_an_export(lake: Path) -> None:
    pytest.importorskip("torch", reason=PEERS)
    litdata = pytest.importorskip("litdata", reason=PEERS)
    folder, _ = exported(lake, "litdata")
    for split in HALVES:
        found: Payloads = {}
        for row in litdata.StreamingDataset(str(folder / split)):
            found[row["device"], row["seq"]] = row["payload"]
            assert json.loads(row["columns"])["seq"] == row["seq"]
        assert found == payloads(lake, split)
