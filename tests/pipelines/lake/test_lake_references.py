"""What a row, a manifest or a table's log names is read below the lake alone; a refusal names the row."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from pipelines.errors import BadReferenceError, CorruptLakeError, NotFoundError
from pipelines.imaging.graph import cut_chips
from pipelines.imaging.store import SlideRef
from pipelines.ingest.tabulate import check_payloads
from pipelines.inspect.stored import committed_payloads, fresh_payloads
from pipelines.lake.compact import compact_table
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload, write_payload_shard
from pipelines.lake.quarantined import Where, heads, open_rows
from pipelines.lake.reference import referred_path
from pipelines.lake.table import open_table
from pipelines.policy.contact_sheet import Sheet
from pipelines.policy.preview import ExampleRow, blocks, sample_row
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.catalogue import list_sets
from pipelines.training.open import open_set
from schemas.contract import ChipSpec, PayloadSpec
from schemas.ids import DeviceId, Digest, SampleKey, StreamName
from tests.pipelines.ingest.test_ingest_on_s3 import RemoteCore, core, make_core, s3  # noqa: F401  # fixtures of a neighbour

SECRET = b"-----BEGIN PRIVATE KEY-----"
FIRST = 340  # where the first payload of the shard lies
SHARD = "payload/camera_frame/000000000001-0.parquet"
NAMES = {
    "up": "../secret",
    "up, deeper": "payload/../../secret",
    "up at the end": "payload/camera_frame/..",
    "absolute": "{outside}/secret",
    "twice absolute": "/{outside}/secret",
    "scheme": "file://{outside}/secret",
    "bucket": "s3://other/secret",
    "link": "payload/camera_frame/link",
    "link called as a shard": "payload/camera_frame/link.parquet",
    "link in a folder": "payload/away/secret",
    "pipe": "payload/camera_frame/pipe",
    "folder": "payload/camera_frame",
    "here": "./payload/camera_frame/000000000001-0.parquet",
    "nothing": "",
    "NUL": "payload/camera_frame/a\0b",
}


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A lake with one shard of payloads, and a secret next to it that links in the lake lead to."""
    root = tmp_path / "lake"
    (tmp_path / "secret").write_bytes(SECRET)
    keys = {"device": ["cam-1"] * 3, "epoch": [5] * 3, "seq": [1, 2, 3]}
    write_payload_shard(root / SHARD, pa.table({**keys, "payload": pa.array([b"one", b"two", b"three"], pa.binary())}))
    folder = (root / SHARD).parent
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "link.parquet").symlink_to(tmp_path / "secret")
    (root / "payload" / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return root


def hostile(lake: Path, kind: str) -> str:
    return NAMES[kind].format(outside=lake.parent)


def rows_of(shard: str | None) -> pa.Table:
    """Two rows; the second one refers to `shard` as a whole file of the secret's size."""
    places = {
        "payload_shard": pa.array([SHARD, shard], pa.string()),
        "payload_row": pa.array([0, 0], pa.int32()),
        "payload_offset": pa.array([FIRST, 0], pa.int64()),
        "payload_length": pa.array([3, len(SECRET)], pa.int64()),
        "payload_sha256": pa.array([None] * 2, pa.string()),
    }
    key = {"device": ["cam-1", "cam-9"], "epoch": [5, 5], "seq": [1, 77], "tags": [["a"], ["b"]], "tag_rules": [["r"], ["r"]]}
    return pa.table({**key, "event_time": pa.array([1, 2], pa.timestamp("us", "UTC")), **places})


def commit(lake: Path, table: pa.Table, name: str = "streams/camera_frame") -> None:
    write_deltalake(lake / name, table.slice(1, 1))


@pytest.mark.parametrize("kind", NAMES)
def test_no_payload_is_read_outside_the_lake_and_the_refusal_names_its_row(lake: Path, kind: str) -> None:
    with pytest.raises(BadReferenceError, match=r"sample cam-9/5/77"):
        read_payload(lake_at(lake), hostile(lake, kind), 0, len(SECRET), 0, "sample cam-9/5/77")


@pytest.mark.parametrize("by_path", [False, True], ids=["opened", "by path"])
def test_a_second_name_of_a_private_file_is_refused_where_others_may_write(lake: Path, by_path: bool) -> None:
    folder = (lake / SHARD).parent
    name = str(SHARD.rpartition("/")[0] + "/second.bin")
    (lake.parent / "secret").chmod(0o600)
    (lake / name).hardlink_to(lake.parent / "secret")
    folder.chmod(0o775)
    with pytest.raises(BadReferenceError, match="second name"):
        referred_path(lake_at(lake), name, "a row") if by_path else read_payload(lake_at(lake), name, 0, len(SECRET), 0, "a row")
    folder.chmod(0o755)  # only its owner could have made it: a backup by hard links, or a backfill
    assert read_payload(lake_at(lake), name, 0, len(SECRET), 0, "a row") == SECRET


@pytest.mark.parametrize("numbers", [(-1, 3, 0), (2, 3, 0), (8, -3, 0), (8, 3, -1)])
def test_numbers_that_no_file_has_are_refused(lake: Path, numbers: tuple[int, int, int]) -> None:
    with pytest.raises(BadReferenceError):
        read_payload(lake_at(lake), SHARD, *numbers)


def test_a_length_beyond_the_file_takes_no_memory(lake: Path) -> None:
    with pytest.raises(CorruptLakeError):
        read_payload(lake_at(lake), SHARD, 8, 1 << 60, 0)


@pytest.mark.parametrize("kind", ["up", "absolute", "scheme", "link", "link called as a shard", "link in a folder", "pipe"])
@pytest.mark.parametrize("where", ["set", "sheet", "inspector", "compaction"])
def test_every_reader_of_a_hostile_row_refuses_it(lake: Path, tmp_path: Path, kind: str, where: str) -> None:
    rows = rows_of(hostile(lake, kind))
    commit(lake, rows)
    row = rows.slice(1, 1).to_pylist()[0]
    outcome = tmp_path / "out.html"
    actions: dict[str, Callable[[], object]] = {
        "set": lambda: build_set(lake_at(lake), "views", ("camera_frame",), options=BuildOptions(split={"train": 1.0})),
        "sheet": lambda: Sheet(lake_at(lake), "page", [ExampleRow(row, ("b",))]).write(outcome),
        "inspector": lambda: committed_payloads(lake_at(lake), rows)(1),
        "compaction": lambda: _compacted(lake, rows),
    }
    with pytest.raises(BadReferenceError) as caught:
        actions[where]()
    assert SECRET.decode() not in str(caught.value)
    assert where == "compaction" or "cam-9/5/77" in str(caught.value)
    assert not outcome.exists()
    assert not any(SECRET in path.read_bytes() for path in (lake / "sets").rglob("*") if path.is_file())


def _compacted(lake: Path, rows: pa.Table) -> object:
    for _ in range(9):
        write_deltalake(lake / "streams/camera_frame", rows.slice(1, 1), mode="append")
    return compact_table(lake_at(lake), "streams/camera_frame", min_files=2)


@pytest.mark.parametrize("kind", ["up", "absolute", "link", "link in a folder"])
def test_no_image_is_cut_into_chips_from_outside(lake: Path, kind: str) -> None:
    key = SampleKey(DeviceId("cam-9"), StreamName("slide"), 5, 77)
    slide = SlideRef(key, Digest("0" * 64), hostile(lake, kind), 0, len(SECRET), ChipSpec("s256", 256, 0, 0), 1)
    with pytest.raises(Exception, match=r"cam-9/5/77"):
        cut_chips(lake_at(lake), 1, (slide,), 1_000_000)


@pytest.mark.parametrize("digest", ["../secret", "../../etc/passwd", "{outside}/secret", "x", "f" * 64])
def test_a_digest_that_a_device_sends_names_no_file_but_an_object(lake: Path, digest: str) -> None:
    (lake / "objects").mkdir()
    (lake / "objects" / ("f" * 64)).symlink_to(lake.parent / "secret")
    reference = digest.format(outside=lake.parent)
    rows = pa.table({"payload": pa.array([None], pa.binary()), "payload_sha256": [reference]})
    _, reasons = check_payloads(lake_at(lake), rows, PayloadSpec(("image/jpeg",), max_bytes=1 << 20))
    assert reasons[0].as_py() is not None
    with pytest.raises(CorruptLakeError):
        fresh_payloads(lake_at(lake), rows)(0)


@pytest.mark.parametrize(
    "path", ["../../secret.parquet", "{outside}/secret.parquet", "file://{outside}/secret.parquet", "link.parquet"]
)
@pytest.mark.parametrize("reader", ["set", "preview", "sample", "compaction"])
def test_a_data_file_that_the_table_s_log_names_elsewhere_is_not_read(lake: Path, path: str, reader: str) -> None:
    rows = rows_of(None)
    commit(lake, rows)
    pq.write_table(rows.slice(1, 1), lake.parent / "secret.parquet")
    table = lake / "streams/camera_frame"
    (table / "link.parquet").symlink_to(lake.parent / "secret.parquet")
    add = {
        "path": path.format(outside=lake.parent),
        "size": (lake.parent / "secret.parquet").stat().st_size,
        "partitionValues": {},
        "modificationTime": 1,
        "dataChange": True,
        "stats": json.dumps({"numRecords": 1}),
    }
    for version in range(1, 10):
        entry = {**add, "path": add["path"] if version == 1 else f"./{version}/../{add['path']}"} if reader != "set" else add
        (table / "_delta_log" / f"{version:020d}.json").write_text(json.dumps({"add": entry}) + "\n")
    actions: dict[str, Callable[[], object]] = {
        "set": lambda: build_set(lake_at(lake), "views", ("camera_frame",), options=BuildOptions(split={"train": 1.0})),
        "preview": lambda: list(blocks(lake_at(lake), "camera_frame", ["device"], None)),
        "sample": lambda: sample_row(lake_at(lake), "camera_frame", "nobody/1/1"),
        "compaction": lambda: compact_table(lake_at(lake), "streams/camera_frame", min_files=2),
    }
    with pytest.raises(BadReferenceError, match="log of streams/camera_frame"):
        actions[reader]()


def test_a_quarantine_whose_file_is_a_link_is_not_shown_or_replayed(lake: Path) -> None:
    (lake.parent / "q").mkdir()
    write_deltalake(lake / "quarantine", pa.table({"id": ["1"], "reason": ["x"], "run": [1]}))
    assert open_table(lake_at(lake), "quarantine") is not None
    file = next((lake / "quarantine").glob("*.parquet"))
    file.rename(lake.parent / "q" / file.name)
    file.symlink_to(lake.parent / "q" / file.name)
    for action in (lambda: heads(lake_at(lake), Where()), lambda: open_rows(lake_at(lake), ["1"], 10, 1000)):
        with pytest.raises(BadReferenceError, match="quarantine"):
            action()


@pytest.mark.parametrize("planted", ["landing/b", "streams/camera_frame/x.parquet", "payload", "objects"])
def test_maintenance_lists_and_deletes_nothing_through_a_link(tmp_path: Path, planted: str) -> None:
    root, elsewhere = tmp_path / "lake", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "000000000001.arrows").write_bytes(SECRET)
    (root / planted).parent.mkdir(parents=True)
    (root / planted).symlink_to(elsewhere)
    for parent in {planted, planted.split("/", maxsplit=1)[0]}:
        with pytest.raises(BadReferenceError, match="link"):
            lake_at(root).files(parent)
    assert [path.name for path in elsewhere.iterdir()] == ["000000000001.arrows"]


@pytest.fixture
def a_set(lake: Path) -> Path:
    rows = rows_of(SHARD)
    whole = rows.set_column(rows.schema.get_field_index("payload_length"), "payload_length", pa.array([3, 3], pa.int64()))
    whole = whole.set_column(
        whole.schema.get_field_index("payload_offset"), "payload_offset", pa.array([FIRST, FIRST], pa.int64())
    )
    write_deltalake(lake / "streams/camera_frame", whole)
    manifest = build_set(lake_at(lake), "views", ("camera_frame",), options=BuildOptions(split={"train": 1.0}))
    return lake / "sets/views" / str(manifest.version)


def test_a_set_is_read_through_a_link_to_its_folder(lake: Path, a_set: Path) -> None:
    (lake.parent / "alias").symlink_to(a_set)
    assert [sample.payload for sample in open_set(lake.parent / "alias")] == [b"one", b"one"]


@pytest.mark.parametrize("name", ["train-00000.parquet", "train.index.arrow", "manifest.json"])
def test_a_file_of_a_set_that_is_a_link_is_refused(lake: Path, a_set: Path, name: str) -> None:
    a_set.chmod(0o755)
    elsewhere = lake.parent / name
    shutil.move(a_set / name, elsewhere)
    (a_set / name).symlink_to(elsewhere)
    with pytest.raises(BadReferenceError, match="link"):
        open_set(a_set)[0]  # it is read
    if name == "train-00000.parquet":
        with pytest.raises(BadReferenceError, match="link"):
            open_set(a_set).verify()
        with pytest.raises(BadReferenceError, match="link"):
            open_set(a_set).to_arrow(["payload"])  # columns alone stand in the index


@pytest.mark.parametrize("path", ["../../../../secret", "{outside}/secret", "payload/x", "..", "file:secret"])
def test_a_manifest_that_names_a_file_elsewhere_is_no_manifest(lake: Path, a_set: Path, path: str) -> None:
    manifest = a_set / "manifest.json"
    document = msgspec.json.decode(manifest.read_bytes())
    for entry in document["shards"] + document["indexes"]:
        entry["path"] = path.format(outside=lake.parent)
    a_set.chmod(0o755)
    manifest.unlink()
    manifest.write_bytes(msgspec.json.encode(document))
    with pytest.raises(CorruptLakeError, match="malformed"):
        open_set(a_set)
    with pytest.raises(CorruptLakeError, match="malformed"):
        list_sets(lake_at(lake))


@pytest.mark.parametrize("name", ["../secret", "payload/../../other/secret", "/etc/passwd", "s3://other/x", "a//b"])
def test_a_reference_that_leads_out_of_a_bucket_s_lake_is_refused_before_it_is_requested(
    core: RemoteCore,  # noqa: F811  # the fixture
    name: str,
) -> None:
    listed_count = len(core.remote.listed("payload"))
    with pytest.raises(BadReferenceError, match="sample a/1/2"):
        read_payload(lake_at(core.root), name, 0, 3, 0, "sample a/1/2")
    assert len(core.remote.listed("payload")) == listed_count


def test_a_missing_payload_is_still_missing_and_not_refused(lake: Path) -> None:
    with pytest.raises(CorruptLakeError, match="restore it") as caught:
        read_payload(lake_at(lake), "payload/camera_frame/gone.parquet", 8, 3, 0)
    assert not isinstance(caught.value, BadReferenceError)
    with pytest.raises(NotFoundError):
        open_set(lake / "sets/none/1")


def test_a_lake_whose_root_is_a_link_is_read(lake: Path) -> None:
    (lake.parent / "alias").symlink_to(lake)
    assert read_payload(lake_at(lake.parent / "alias"), SHARD, FIRST, 3, 0) == b"one"
