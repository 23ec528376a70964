"""Which samples to look at next: alike, rare, uncertain, disagreeing; the index is never the truth."""

import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from pipelines.commands.root import app
from pipelines.errors import NotFoundError, PipelineError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import write_payload_shard
from pipelines.mining import picks
from pipelines.mining.index import EmbeddingIndex
from pipelines.mining.key_index import KeyIndex
from pipelines.mining.rows import RowFilter, StreamRows
from pipelines.mining.vectors import embedding_column, unit_vectors
from pipelines.training.thin import mixed_numbers, row_numbers

RUN = CliRunner(env={"COLUMNS": "200"})
SHARD = "payload/camera_frame/000000000001-0.parquet"
START = datetime(2026, 1, 1, tzinfo=UTC)
SHAPES = ("circle", "square", "cross")


def picture(shape: str, seed: int) -> np.ndarray:
    """A generated picture: one shape, a little moved and grey by chance."""
    random = np.random.default_rng(seed)
    image = Image.new("L", (32, 32), int(random.integers(0, 40)))
    draw = ImageDraw.Draw(image)
    x, y = (int(step) for step in random.integers(8, 12, 2))
    shade = int(random.integers(180, 255))
    if shape == "circle":
        draw.ellipse((x - 6, y - 6, x + 10, y + 10), fill=shade)
    elif shape == "square":
        draw.rectangle((x - 6, y - 6, x + 10, y + 10), outline=shade, width=3)
    elif shape == "cross":
        draw.line((x - 6, y - 6, x + 12, y + 12), fill=shade, width=3)
        draw.line((x - 6, y + 12, x + 12, y - 6), fill=shade, width=3)
    else:
        image = Image.fromarray(random.integers(0, 255, (32, 32), dtype=np.uint8))
    return np.asarray(image)


def embedding(pixels: np.ndarray) -> bytes:
    """A real, small embedding: the low frequencies of the picture's edges, as an untrained network would see them."""
    down, across = np.gradient(pixels.astype(np.float64))
    spectrum = np.abs(np.fft.rfft2(np.hypot(down, across)))[:6, :6].ravel()
    coarse = pixels.reshape(8, 4, 8, 4).mean(axis=(1, 3)).ravel() / 255
    return np.concatenate((np.log1p(spectrum) - np.log1p(spectrum).mean(), coarse)).astype("<f4").tobytes()


def jpeg(pixels: np.ndarray) -> bytes:
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "JPEG", quality=90)
    return body.getvalue()


def frames(kinds: list[str], first: int = 0) -> pa.Table:
    count = len(kinds)
    pixels = [picture(kind, first + at) for at, kind in enumerate(kinds)]
    bodies = [jpeg(each) for each in pixels]
    random = np.random.default_rng(first)
    return pa.table({
        "device": [f"cam-{at % 3}" for at in range(first, first + count)],
        "epoch": pa.array([1] * count, pa.int64()),
        "seq": pa.array(range(first, first + count), pa.int64()),
        "event_time": pa.array([START + timedelta(seconds=at) for at in range(first, first + count)], pa.timestamp("us", "UTC")),
        "shape": kinds,
        "view_embedding": pa.array([embedding(each) for each in pixels], pa.binary()),
        "predicted_label": kinds,
        "predicted_score": random.uniform(0.5, 1.0, count),
        "payload": pa.array(bodies, pa.binary()),
        "payload_sha256": [hashlib.sha256(body).hexdigest() for body in bodies],
    })  # fmt: skip


def write_frames(root: Path, rows: pa.Table, number: int = 1) -> None:
    name = f"payload/camera_frame/{number:012d}-0.parquet"
    shard = write_payload_shard(root / name, rows.select(["device", "epoch", "seq", "payload_sha256", "payload"]))
    placed = rows.drop_columns(["payload"])
    placed = placed.append_column("payload_shard", pa.array([name] * len(rows)))
    placed = placed.append_column("payload_row", pa.array(range(len(rows)), pa.int32()))
    placed = placed.append_column("payload_offset", shard.offsets).append_column("payload_length", shard.lengths)
    write_deltalake(root / "streams/camera_frame", placed, mode="append")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Two files of 60 frames each; frame 100 is noise, frame 17 is a circle that a model calls a cross."""
    root = tmp_path / "lake"
    kinds = [SHAPES[at % 3] for at in range(120)]
    kinds[100] = "noise"
    first, second = frames(kinds[:60]), frames(kinds[60:], 60)
    labels = list(first["predicted_label"].to_pylist())
    labels[18] = "cross"
    at = first.schema.get_field_index("predicted_label")
    first = first.set_column(at, "predicted_label", pa.array(labels)).append_column("shape_label", pa.array(kinds[:60]))
    second = second.append_column("shape_label", pa.array(kinds[60:]))
    write_frames(root, first)
    write_frames(root, second, 2)
    return root


def mined(root: Path, command: str, *words: str) -> list[dict[str, object]]:
    done = RUN.invoke(app, [command, *words, "--from", "camera_frame", "--lake", str(root), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])["samples"]
    return found


def seqs(found: list[dict[str, object]]) -> list[int]:
    return [int(str(each["sample"]).rsplit("/", 1)[1]) for each in found]


def stream_and_index(root: Path, lists_from: int = 50_000) -> tuple[StreamRows, EmbeddingIndex]:
    rows = StreamRows(lake_at(root), "camera_frame")
    return rows, EmbeddingIndex(rows, "view_embedding", lists_from)


def test_the_samples_most_like_a_circle_are_circles_and_not_itself(shapes: Path) -> None:
    found = mined(shapes, "similar", "cam-0/1/30", "-n", "12")
    assert len(found) == 12
    assert 30 not in seqs(found)
    assert sum(SHAPES[seq % 3] == "circle" for seq in seqs(found)) >= 10
    scores = [float(str(each["score"])) for each in found]
    assert scores == sorted(scores, reverse=True)


def test_several_examples_find_what_is_like_any_of_them(shapes: Path) -> None:
    found = seqs(mined(shapes, "similar", "cam-0/1/30", "camera_frame/cam-1/1/31", "-n", "20"))
    assert {SHAPES[seq % 3] for seq in found} >= {"circle", "square"}
    assert not {30, 31} & set(found)


def test_an_expression_limits_what_is_found(shapes: Path) -> None:
    assert {seq % 3 for seq in seqs(mined(shapes, "similar", "cam-0/1/30", "--where", "shape = 'cross'"))} == {2}


def test_the_frame_like_no_other_is_the_rarest(shapes: Path) -> None:
    assert seqs(mined(shapes, "rare", "-n", "3"))[0] == 100
    assert seqs(mined(shapes, "rare", "-n", "3", "--references", "10", "--seed", "4"))[0] == 100


def test_copies_of_an_oddity_do_not_hide_each_other(shapes: Path) -> None:
    write_frames(shapes, copies_of_noise(), 3)
    assert {100, 200, 201} <= set(seqs(mined(shapes, "rare", "-n", "4", "--references", "40")))


def copies_of_noise() -> pa.Table:
    rows = frames(["noise", "noise"], 200)
    same = pa.array([embedding(picture("noise", 100))] * 2, pa.binary())
    at = rows.schema.get_field_index("view_embedding")
    return rows.set_column(at, "view_embedding", same).append_column("shape_label", pa.array(["noise"] * 2))


def test_the_least_sure_frames_come_first(shapes: Path) -> None:
    table = DeltaTable(shapes / "streams/camera_frame").to_pyarrow_table()
    scores = dict(zip(table["seq"].to_pylist(), table["predicted_score"].to_pylist(), strict=True))
    assert seqs(mined(shapes, "uncertain", "-n", "5")) == sorted(scores, key=lambda seq: scores[seq])[:5]


def test_frames_that_two_models_call_differently_are_found(shapes: Path) -> None:
    (found,) = mined(shapes, "disagreeing")
    assert (seqs([found]), found["facts"]["predicted_label"], found["facts"]["shape_label"]) == ([18], "cross", "circle")  # type: ignore[index]


def test_people_are_a_side_that_a_model_can_disagree_with(shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("sample,kind,value\ncamera_frame/cam-0/1/3,class,square\ncamera_frame/cam-0/1/6,class,circle\n")
    words = ["label", "import", str(file), "--task", "form", "--from", "camera_frame", "--as", "csv", "--author", "ann"]
    done = RUN.invoke(app, [*words, "--lake", str(shapes)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert seqs(mined(shapes, "disagreeing", "--between", "predicted_label", "--task", "form")) == [3]


def test_deleted_and_damaged_segments_are_made_again_and_give_the_same(shapes: Path) -> None:
    before = mined(shapes, "similar", "cam-0/1/30")
    folder = shapes / "cache/similar/camera_frame/view_embedding"
    segments = sorted(folder.iterdir())
    assert len(segments) == 2
    segments[0].write_bytes(segments[0].read_bytes()[:100])
    segments[1].unlink()
    assert mined(shapes, "similar", "cam-0/1/30") == before


def test_rows_deleted_from_the_lake_never_appear_and_their_segment_goes(shapes: Path) -> None:
    nearest = mined(shapes, "similar", "cam-0/1/30", "-n", "1")[0]
    DeltaTable(shapes / "streams/camera_frame").delete(f"seq = {seqs([nearest])[0]}")
    assert seqs([nearest])[0] not in seqs(mined(shapes, "similar", "cam-0/1/30", "-n", "200"))
    assert len(list((shapes / "cache/similar/camera_frame/view_embedding").iterdir())) == 2


def test_rows_deleted_from_the_lake_leave_the_caches_at_the_next_rare(shapes: Path) -> None:
    """What was deleted must not stay on a disk: neither its vector nor the hash of its name."""
    assert seqs(mined(shapes, "rare", "-n", "1")) == [100]
    DeltaTable(shapes / "streams/camera_frame").delete("seq >= 60")
    assert 100 not in seqs(mined(shapes, "rare", "-n", "200"))
    files = [path for path in (shapes / "cache").rglob("*") if path.is_file()]
    assert {path.parent.relative_to(shapes / "cache").parts[0] for path in files} == {"keys", "similar"}
    assert len(files) == 2


def test_a_list_of_names_that_is_damaged_or_of_other_rows_is_not_believed(shapes: Path) -> None:
    rows, index = stream_and_index(shapes)
    keys = KeyIndex(rows)
    names = ["cam-1/1/61", "camera_frame/cam-0/1/30"]
    before = keys.find(names)
    assert rows.fetch(before, ("device", "seq")).to_pydict() == {"device": ["cam-1", "cam-0"], "seq": [61, 30]}
    first, second = sorted((shapes / "cache/keys/camera_frame").iterdir())
    first.write_bytes(first.read_bytes()[:50])
    whole = np.load(second)
    np.save(second, np.stack((whole[0] + np.uint64(1), whole[1])))
    after = KeyIndex(rows).find(names)
    assert (after.file.tolist(), after.row.tolist()) == (before.file.tolist(), before.row.tolist())
    assert np.load(first).shape == (2, 60)
    with pytest.raises(NotFoundError, match="no sample cam-0/1/999"):
        keys.find(["cam-0/1/999"])
    with pytest.raises(RefusedError, match="a sample is named device/epoch/seq"):
        keys.find([f"cam-0/1/{2**70}"])
    assert index.units(after)[0].all()


def test_the_rarest_are_those_that_comparing_each_with_the_references_finds(tmp_path: Path) -> None:
    """The sample of references hangs on keys alone, and lists give the same as flat segments."""
    random = np.random.default_rng(5)
    vectors = random.normal(size=(3_000, 16)).astype("<f4")
    rows = pa.table({
        "device": [f"cam-{at % 7}" for at in range(3_000)],
        "epoch": pa.array([1] * 3_000, pa.int64()),
        "seq": pa.array(range(3_000), pa.int64()),
        "view_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 16),
    })  # fmt: skip
    found = {}
    for name, files, lists_from in (("one", 1, 50_000), ("many", 4, 50_000), ("lists", 3, 500)):
        for part in np.array_split(np.arange(3_000), files):
            write_deltalake(tmp_path / name / "streams/camera_frame", rows.take(pa.array(part)), mode="append")
        stream, index = stream_and_index(tmp_path / name, lists_from)
        picked = picks.rare(stream, index, KeyIndex(stream), 20, RowFilter(stream, "seq < 2500"), seed=3, references=200)
        found[name] = [pick.sample for pick in picks.describe(stream, picked)[0]]
    assert found["one"] == found["many"] == found["lists"]
    units = unit_vectors(rows["view_embedding"], 16).units
    numbers = mixed_numbers(row_numbers(rows, 0, "name"), 3, "rare").astype(np.float64)
    references = np.argsort(numbers, kind="stable")[:200]
    cosine = units @ units[references].T
    cosine[references, np.arange(200)] = -1
    wanted = np.argsort(cosine.max(axis=1)[:2_500], kind="stable")[:20]
    assert [int(name.rsplit("/", 1)[1]) for name in found["one"]] == wanted.tolist()


def test_rows_added_later_are_found_at_once(shapes: Path) -> None:
    mined(shapes, "similar", "cam-0/1/30")
    twin = frames(["circle"], 30)
    twin = twin.set_column(twin.schema.get_field_index("device"), "device", pa.array(["cam-9"]))
    write_frames(shapes, twin.append_column("shape_label", pa.array(["circle"])), 3)
    first = mined(shapes, "similar", "cam-0/1/30")[0]
    assert first["sample"] == "camera_frame/cam-9/1/30"
    assert float(str(first["score"])) == pytest.approx(1.0, abs=1e-5)


def test_lists_find_nearly_what_comparing_all_finds_and_exactly_with_exact(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    centres = random.normal(size=(40, 16))
    vectors = (centres[random.integers(0, 40, 4_000)] + 0.4 * random.normal(size=(4_000, 16))).astype("<f4")
    rows = pa.table({
        "device": ["cam-0"] * 4_000,
        "epoch": pa.array([1] * 4_000, pa.int64()),
        "seq": pa.array(range(4_000), pa.int64()),
        "view_embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 16),
    })  # fmt: skip
    write_deltalake(tmp_path / "streams/camera_frame", rows)
    stream, index = stream_and_index(tmp_path, lists_from=1_000)
    assert index.sync().vectors == 4_000
    units = unit_vectors(rows["view_embedding"], 16).units
    hits = 0
    for at in range(0, 4_000, 200):
        true = np.argsort(-(units @ units[at]), kind="stable")[:10]
        assert index.search(units[at], 10, is_exact=True).row.tolist() == true.tolist()
        hits += len(set(index.search(units[at], 10).row.tolist()) & set(true.tolist()))
    assert hits >= 190
    only = RowFilter(stream, "seq >= 3990")
    assert set(index.search(units[0], 20, only).row.tolist()) == set(range(3_990, 4_000))


def test_vectors_that_are_null_zero_infinite_or_of_another_length_are_left_out_and_counted() -> None:
    good = np.array([3, 4], "<f4").tobytes()
    odd = [good, None, bytes(8), np.array([np.inf, 1], "<f4").tobytes(), bytes(12), b"abc"]
    found = unit_vectors(pa.chunked_array([pa.array([b"sliced off", *odd], pa.binary()).slice(1)]), 2)
    assert (found.rows.tolist(), found.units.tolist(), found.skipped) == ([0], [pytest.approx([0.6, 0.8])], 5)
    assert unit_vectors(pa.array([[3.0, 4.0], None, [1.0]], pa.list_(pa.float32())), 2).rows.tolist() == [0]


def test_a_stream_without_embeddings_or_with_several_says_so() -> None:
    with pytest.raises(RefusedError, match="no column that ends with _embedding"):
        embedding_column(pa.schema([("speed", pa.float64())]))
    both = pa.schema([("a_embedding", pa.binary()), ("b_embedding", pa.binary())])
    with pytest.raises(RefusedError, match="several embedding columns"):
        embedding_column(both)
    assert embedding_column(both, "b_embedding") == "b_embedding"
    with pytest.raises(RefusedError, match="no embedding column"):
        embedding_column(both, "speed")


def test_a_sample_that_is_not_there_or_not_named_so_is_an_error(shapes: Path) -> None:
    rows, _ = stream_and_index(shapes)
    with pytest.raises(NotFoundError, match="no sample cam-0/1/999"):
        rows.find(["cam-0/1/999"])
    with pytest.raises(RefusedError, match="a sample is named device/epoch/seq"):
        rows.find(["cam-0"])
    with pytest.raises(RefusedError, match="two sides are needed"):
        picks.disagreeing(rows, ("shape_label",), 5, RowFilter(rows))


def test_a_contact_sheet_shows_the_pictures_with_their_scores(shapes: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "alike.html"
    mined(shapes, "similar", "cam-0/1/30", "-n", "6", "--sheet", str(sheet))
    page = sheet.read_text()
    assert page.count('src="data:image/jpeg;base64,') == 6
    assert "cosine" in page


def test_picks_become_a_label_queue_without_what_is_labelled_already(shapes: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labels.csv"
    first = str(mined(shapes, "similar", "cam-0/1/30", "-n", "1")[0]["sample"])
    labelled.write_text(f"sample,kind,value\n{first},class,circle\n")
    words = ["label", "import", str(labelled), "--task", "form", "--from", "camera_frame", "--as", "csv", "--author", "ann"]
    RUN.invoke(app, [*words, "--lake", str(shapes)], catch_exceptions=False)
    todo = tmp_path / "todo.json"
    picked = mined(shapes, "similar", "cam-0/1/30", "-n", "5", "--queue", "form", "--as", "coco", "-o", str(todo))
    assert first not in {each["sample"] for each in picked}
    assert len(json.loads(todo.read_text())["images"]) == 5


def test_a_list_of_picks_is_a_source_of_a_set_and_of_a_queue(shapes: Path, tmp_path: Path) -> None:
    ids = tmp_path / "picked.txt"
    mined(shapes, "similar", "cam-0/1/30", "-n", "30", "--ids", str(ids))
    spec = tmp_path / "alike.yaml"
    spec.write_text(
        "id: alike\nsources: [{stream: camera_frame, samples_from: picked.txt}]\n"
        "split: {group: [seq], shares: {train: 0.8, test: 0.2}}\n"
    )
    done = RUN.invoke(app, ["set", "build", str(spec), "--lake", str(shapes), "--json"], catch_exceptions=False)
    manifest = json.loads(done.stdout)
    assert manifest["sources"][0]["rows"] == 30
    assert manifest["spec"]["sources"][0]["samples"] == ids.read_text().split()
    queue = ["label", "queue", "--task", "form", "--from", "camera_frame", "--as", "csv", "-o", str(tmp_path / "todo.csv")]
    done = RUN.invoke(app, [*queue, "--samples", str(ids), "-n", "4", "--lake", str(shapes)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    order = [line.split(",")[0] for line in (tmp_path / "todo.csv").read_text().splitlines()[1:]]
    assert order == ids.read_text().split()[:4]


@pytest.mark.parametrize(
    ("listed", "reason"),
    [("cam/1/2", "names no sample"), ("other/cam/1/2", "lists no sample of camera_frame"), ("", "lists no sample")],
)
def test_a_list_that_names_no_samples_of_the_stream_is_refused(shapes: Path, tmp_path: Path, listed: str, reason: str) -> None:
    (tmp_path / "picked.txt").write_text(listed)
    spec = tmp_path / "alike.yaml"
    spec.write_text("id: alike\nsources: [{stream: camera_frame, samples_from: picked.txt}]\n")
    done = RUN.invoke(app, ["set", "plan", str(spec), "--lake", str(shapes)])
    assert isinstance(done.exception, PipelineError)
    assert reason in str(done.exception)
