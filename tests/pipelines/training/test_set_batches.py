"""An epoch as batches of arrays: every sample once, exact states, filters, pictures, and what cannot be read."""

import hashlib
import io
import json
import os
import pickle
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.training.batches import BatchOptions, Int64s, SetBatches, decode_image
from pipelines.training.manifest import encode_manifest, load_manifest
from pipelines.training.open import open_set
from pipelines.training.order import EpochOrder, EpochState, Tail
from pipelines.training.permutation import Permutation
from pipelines.training.sample import Sample
from tests.pipelines.training.conftest import jpeg
from tests.pipelines.training.test_set_build import built, rot

ALL = {"train": 1.0}


class Numbers:
    """A source whose samples are their own numbers: for orders without files."""

    def chunks(self, indexes: Int64s) -> Iterator[list[Sample]]:
        yield [Sample(index, None, self) for index in indexes.tolist()]

    has_payload = False

    def payloads(self, indexes: Int64s) -> list[bytes]:
        raise AssertionError(f"no payloads of {indexes} here")

    def mark_compared(self, indexes: Int64s) -> None:
        """They are not compared with anything."""

    def trusted(self) -> "Numbers":
        return self

    def names(self, indexes: Int64s) -> dict[str, np.ndarray]:
        return {"index": indexes}

    def expect(self, indexes: Int64s) -> None:
        """Nothing is far away."""

    def array_batch(self, indexes: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def take(self, indexes: Int64s, columns: Sequence[str]) -> pa.Table:
        raise AssertionError(f"no columns {columns} of {indexes} here")

    def row(self, index: int) -> dict[str, int]:
        return {"index": index}

    def value(self, index: int, column: str) -> int:
        return self.row(index)[column]


@settings(deadline=None)
@given(st.integers(1, 120), st.integers(1, 17), st.data())
def test_any_ranks_batch_sizes_and_stops_give_every_sample_exactly_once(count: int, size: int, data: st.DataObject) -> None:
    permutation, position, seen = Permutation(count, 5, 1), 0, []
    while position < count:
        world, taken = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
        ranks = [
            SetBatches(
                Numbers(),
                EpochOrder(permutation, rank, world, position, Tail.UNEVEN),
                BatchOptions(size),
                EpochState("d", "train", 5, 1, position),
            )
            for rank in range(world)
        ]
        for batches in ranks:
            seen += [index for number in range(min(taken, len(batches))) for index in batches[number]["index"].tolist()]
        position = ranks[0].state_after(taken).position
    assert Counter(seen) == Counter(range(count))


def test_batches_carry_payloads_and_columns_of_the_same_samples(lake: Path) -> None:
    split = open_set(built(lake, split=ALL))
    seen = []
    for batch in split.numpy(32, seed=3, columns=["brightness", "lane", "label", "event_time"]):
        for at, index in enumerate(batch["index"].tolist()):
            sample = split[index]
            assert (batch["payload"][at], batch["brightness"][at], batch["label"][at]) == (
                sample.payload, sample["brightness"], sample["label"],
            )  # fmt: skip
            assert np.isnan(batch["lane"][at]) if sample["lane"] is None else batch["lane"][at] == sample["lane"]
            seen.append(index)
    assert sorted(seen) == list(range(239))


def test_ranks_have_the_same_number_of_batches(lake: Path) -> None:
    split = open_set(built(lake, split=ALL))
    for world in (1, 2, 3, 7):
        assert len({len(split.numpy(10, rank=rank, world=world)) for rank in range(world)}) == 1
    assert len(split.numpy(50)) == 5
    assert len(split.numpy(50, drop_last=True)) == 4


def test_a_filter_is_resolved_once_and_resumes_exactly(lake: Path) -> None:
    split = open_set(built(lake, split=ALL)).filter("has('dark') AND brightness >= 10")
    assert {sample["brightness"] for sample in split} == {10.0, 20.0}
    epoch = split.numpy(8, seed=1)
    first = np.concatenate([epoch[number]["index"] for number in range(3)])
    rest = split.numpy(8, epoch=epoch.state_after(3))
    indexes = np.concatenate([first, *(batch["index"] for batch in rest)])
    assert len(indexes) == len(split) == len(set(indexes.tolist()))
    with pytest.raises(RefusedError, match="another set, split or filter"):
        open_set(split.folder).numpy(8, epoch=epoch.state_after(3))
    assert len(split.filter("brightness = 10")) + len(split.filter("brightness = 20")) == len(split)


def test_batches_may_be_sent_to_another_process(lake: Path) -> None:
    batches = open_set(built(lake, split=ALL)).numpy(16, seed=2)
    twin = pickle.loads(pickle.dumps(batches))
    assert twin[3]["index"].tolist() == batches[3]["index"].tolist()
    assert twin[3]["payload"] == batches[3]["payload"]


def test_pictures_become_one_array_of_pixels(lake: Path) -> None:
    split = open_set(built(lake, "NOT (epoch = 0) AND payload_length > 0", split=ALL))
    batch = split.numpy(8, image=(24, 32))[0]
    assert (batch["payload"].shape, batch["payload"].dtype) == ((8, 24, 32, 3), np.uint8)
    assert batch["payload"][0].tolist() == decode_image(split[int(batch["index"][0])].payload, 24, 32).tolist()
    assert split.numpy(8, image=(12, 16))[0]["payload"].shape == (8, 12, 16, 3)


def test_grey_and_transparent_pictures_become_rgb() -> None:
    for mode, colour in (("L", 90), ("RGBA", (90, 90, 90, 255))):
        body = io.BytesIO()
        Image.new(mode, (8, 8), colour).save(body, "PNG")
        assert decode_image(body.getvalue(), 8, 8)[3, 3].tolist() == [90, 90, 90]


@pytest.mark.parametrize("body", [b"", b"GIF89a", b"<svg/>", jpeg(1)[:200], b"\xff\xd8\xff"])
def test_what_is_no_whole_picture_is_named(body: bytes) -> None:
    with pytest.raises(CorruptLakeError):
        decode_image(body, 8, 8)


def test_a_sample_that_cannot_be_read_ends_the_epoch_or_is_skipped_and_counted(lake: Path) -> None:
    folder = built(lake, split=ALL)
    index = next(at for at, sample in enumerate(open_set(folder)) if sample.payload)
    rot(folder, index)
    with pytest.raises(CorruptLakeError, match=f"sample {index} "):
        list(open_set(folder).numpy(64))
    batches = open_set(folder).numpy(64, on_bad="skip")
    seen = [at for batch in batches for at in batch["index"].tolist()]
    assert (sorted(seen), batches.skipped) == ([at for at in range(239) if at != index], 1)


def test_an_undecodable_picture_is_skipped_and_counted(lake: Path) -> None:
    split = open_set(built(lake, split=ALL))
    empty = sum(1 for sample in split if not sample.payload)
    batches = split.numpy(64, image=(24, 32), on_bad="skip")
    assert sum(len(batch["payload"]) for batch in batches) == 239 - empty
    assert batches.skipped == empty > 0


def test_without_torch_the_loader_says_what_to_do(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.data", None)
    with pytest.raises(RefusedError, match=r"needs PyTorch; install torch, or use \.numpy"):
        open_set(built(lake, split=ALL)).torch(8)


def test_a_state_of_the_release_before_is_of_the_same_set(lake: Path) -> None:
    """Its digest is that of the manifest's bytes, whatever fields this release knows besides."""
    folder = built(lake, split=ALL)
    path = folder / "manifest.json"
    old = json.loads(path.read_bytes())
    for key in ("groups", "coverage", "line", "notes"):
        del old[key]
    body = json.dumps(old, indent=1).encode()
    path.chmod(0o644)
    path.write_bytes(body)
    state = EpochState(hashlib.sha256(body).hexdigest()[:16], "train", 3, 0, 200)
    assert sum(len(batch["index"]) for batch in open_set(folder).numpy(16, epoch=state)) == 39


def test_batches_for_compiled_functions_are_arrays_of_one_shape_without_end(lake: Path) -> None:
    split = open_set(built(lake, split=ALL))
    batches = list(islice(split.jax(100, seed=1, columns=["brightness", "label"]), 5))
    assert [sorted(batch) for batch in batches] == [["brightness", "index"]] * 5
    assert {batch["brightness"].shape for batch in batches} == {(100,)}
    assert batches[0]["index"].tolist() != batches[2]["index"].tolist()
    with pytest.raises(RefusedError, match="a batch of 500 is more than there is"):
        split.jax(500)


def test_rows_go_to_every_table_that_people_use(lake: Path) -> None:
    split = open_set(built(lake, split=ALL)).filter("brightness > 10")
    wanted = split.to_arrow(["brightness", "label"])
    assert split.to_polars(["brightness", "label"]).to_arrow()["brightness"].to_pylist() == wanted["brightness"].to_pylist()
    assert split.to_pandas(["brightness"])["brightness"].tolist() == wanted["brightness"].to_pylist()
    relation = split.to_duckdb(["brightness"])
    assert relation.aggregate("count(*), min(brightness)").fetchall() == [(len(split), 20.0)]
    with pytest.raises(RefusedError, match="no column nothing"):
        split.to_arrow(["nothing"])


@pytest.mark.parametrize(("check", "compared"), [(1.0, 239), (0.25, 60), (0.001, 1)])
def test_a_share_of_the_reads_is_compared(lake: Path, check: float, compared: int) -> None:
    folder = built(lake, split=ALL)
    for index in range(239):
        if open_set(folder, check="never")[index].payload:
            rot(folder, index)
    batches = open_set(folder, check=check).numpy(239, on_bad="skip")
    assert len(batches[0]["index"]) == 239 - batches.skipped
    assert abs(batches.skipped - compared) <= 6


@pytest.mark.parametrize("check", [0.0, -1, 1.5, "sometimes", "share"])
def test_a_rule_that_cannot_be_is_refused(lake: Path, check: str | float) -> None:
    with pytest.raises(RefusedError, match="check: "):
        open_set(built(lake), check=check)


def test_five_thousand_shards_are_each_opened_once(lake: Path) -> None:
    """Whatever the process had as a limit of open files before."""
    folder = built(lake, "seq < 2", split=ALL)
    many, opens = folder.parent / "many", Counter[str]()
    _multiply(folder, many, 5_000)
    split = open_set(many, check="never")
    sys.addaudithook(lambda event, values: opens.update([str(values[0])]) if event == "open" else None)
    for epoch in range(2):
        assert sum(1 for _ in split.shuffled(1, epoch)) == len(split)
    shards = [count for name, count in opens.items() if name.endswith(".parquet") and "/" not in name]
    assert (len(shards), max(shards)) == (5_000, 1)


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is done to shards in a kernel that says everything is on disk: ("ahead" or "read", offset), in order."""
    done: list[tuple[str, int]] = []
    pread = os.pread

    def read(number: int, length: int, offset: int) -> bytes:
        done.append(("read", offset))
        return pread(number, length, offset)

    def advise(_number: int, offset: int, _length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            done.append(("ahead", offset))

    def probe(*_arguments: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "pread", read)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "preadv", probe)
    return done


@pytest.mark.parametrize(("size", "workers"), [(4, 1), (16, 1), (16, 3), (100, 2)])
def test_a_disk_is_told_of_samples_across_the_batches_of_a_worker(
    lake: Path, cold: list[tuple[str, int]], size: int, workers: int
) -> None:
    """Each is announced once, and while samples are left there are always as many under way as keep a disk busy."""
    batches = open_set(built(lake, "payload_length > 0", split=ALL)).numpy(size, seed=2)
    cold.clear()
    for worker in range(workers):
        mine = [number for number in range(len(batches)) if number % workers == worker]
        other = pickle.loads(pickle.dumps(batches))
        announced = read = own = 0
        for number in mine:
            other.expect(number + workers, workers)
            own += len(other[number]["index"])
        log, cold[:] = list(cold), []
        assert Counter(kind for kind, _ in log) == {"ahead": own, "read": own}
        assert len({offset for kind, offset in log if kind == "ahead"}) == own
        for kind, _ in log:
            announced, read = announced + (kind == "ahead"), read + (kind == "read")
            assert kind == "ahead" or announced >= min(own, read + min(size, 60))


def test_a_disk_is_told_of_samples_across_the_blocks_of_an_epoch(
    lake: Path, cold: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.training.batches._ORDER_BLOCK", 80)
    monkeypatch.setattr("pipelines.training.payloads._CHUNK_ROWS", 4)
    split = open_set(built(lake, "payload_length > 0", split=ALL))
    cold.clear()
    assert len(list(split.shuffled(2))) == len(split)
    assert Counter(kind for kind, _ in cold) == {"ahead": len(split), "read": len(split)}
    announced, read = 0, 0
    for kind, _ in cold:
        announced, read = announced + (kind == "ahead"), read + (kind == "read")
        assert kind == "ahead" or announced >= min(len(split), read + 60)


def test_a_large_payload_is_announced_in_pieces(lake: Path, cold: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one announcement a kernel may fetch no more than its read-ahead, which is 128 KiB where nobody changed it."""
    monkeypatch.setattr("pipelines.training.payloads._ANNOUNCED_BYTES", 500)
    monkeypatch.setattr("pipelines.training.payloads._AHEAD_BYTES", 6_000)
    monkeypatch.setattr("pipelines.training.payloads._CHUNK_BYTES", 1_000)
    split = open_set(built(lake, "payload_length > 0", split=ALL))
    cold.clear()
    total = sum(len(sample.payload or b"") for sample in split)
    pieces = [offset for kind, offset in cold if kind == "ahead"]
    assert total // 500 <= len(pieces) == len(set(pieces)) <= total // 500 + len(split)
    # So many bytes are under way, not so many samples.
    first = [kind for kind, _ in cold].index("read")
    assert first <= 6_000 // 500 + 6


def _multiply(folder: Path, target: Path, count: int) -> None:
    """A set of so many shards, all of them hard links to the one of a set."""
    manifest = load_manifest(folder / "manifest.json")
    shard, index = manifest.shards[0], manifest.indexes[0]
    target.mkdir()
    entries = tuple(msgspec.structs.replace(shard, path=f"train-{number:05d}.parquet") for number in range(count))
    for entry in entries:
        (target / entry.path).hardlink_to(folder / shard.path)
    rows = pa.ipc.open_file(str(folder / index.path)).read_all()
    whole = pa.concat_tables([rows] * count).combine_chunks()
    with pa.OSFile(str(target / index.path), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole)
    size = (target / index.path).stat().st_size
    grown = msgspec.structs.replace(manifest, shards=entries, indexes=(msgspec.structs.replace(index, bytes=size),))
    (target / "manifest.json").write_bytes(encode_manifest(grown))
