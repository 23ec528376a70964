"""Payload shards: what pread gives is what Parquet says."""

import hashlib
import os
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import TrailingHash, group_bounds, read_payload, write_payload_shard
from pipelines.lake.payload_batch import PayloadRefs, read_payloads

BODIES = st.binary(max_size=300) | st.integers(2_000, 40_000).map(bytes)


def rows_of(payloads: list[bytes]) -> pa.Table:
    return pa.table({
        "device": pa.array([f"cam-{i % 3}" for i in range(len(payloads))], pa.string()),
        "epoch": pa.array([7] * len(payloads), pa.int64()),
        "seq": pa.array(range(len(payloads)), pa.int64()),
        "payload_sha256": pa.array([hashlib.sha256(body).hexdigest() for body in payloads], pa.string()),
        "payload": pa.array(payloads, pa.binary()),
    })  # fmt: skip


def check(path: Path, payloads: list[bytes]) -> None:
    shard = write_payload_shard(path, rows_of(payloads))
    assert pq.read_table(path).column("payload").to_pylist() == payloads
    assert shard.rows == len(payloads)
    assert shard.bytes == path.stat().st_size
    assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for row, body in enumerate(payloads):
        offset, length = shard.offsets[row].as_py(), shard.lengths[row].as_py()
        with path.open("rb") as file:
            assert os.pread(file.fileno(), length, offset) == body
        assert read_payload(lake_at(path.parent), path.name, offset, length, row) == body


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=40))
def test_every_offset_read_by_pread_gives_the_value_that_parquet_gives(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]
) -> None:
    check(tmp_path_factory.mktemp("shard") / "a.parquet", payloads)


@pytest.mark.parametrize("size", [0, 1, 126_000, 33 * 1024 * 1024])
def test_values_of_any_size_lie_where_the_offsets_say(tmp_path: Path, size: int) -> None:
    check(tmp_path / "a.parquet", [b"before", os.urandom(size), b"", b"after"])


def test_more_rows_than_one_row_group_keep_one_page_for_each_group(tmp_path: Path) -> None:
    check(tmp_path / "a.parquet", [b"%d" % i for i in range(2_500)])
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 3


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = rows_of([os.urandom(500) for _ in range(50)])
    assert write_payload_shard(tmp_path / "a.parquet", rows).sha256 == write_payload_shard(tmp_path / "b.parquet", rows).sha256


def test_a_wrong_offset_is_noticed_and_the_row_is_read_the_slow_way(tmp_path: Path) -> None:
    shard = write_payload_shard(tmp_path / "a.parquet", rows_of([b"one", b"three"]))
    assert read_payload(lake_at(tmp_path), "a.parquet", shard.offsets[1].as_py() + 1, 5, 1) == b"three"


def test_a_missing_a_cut_and_a_foreign_file_are_distinguished_from_data(tmp_path: Path) -> None:
    with pytest.raises(CorruptLakeError, match="cannot be opened"):
        read_payload(lake_at(tmp_path), "absent.parquet", 4, 1, 0)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptLakeError, match="restore"):
        read_payload(lake_at(tmp_path), "cut.parquet", 4, 1, 0)
    (tmp_path / "object").write_bytes(b"12345")
    assert read_payload(lake_at(tmp_path), "object", 0, 5, 0) == b"12345"
    with pytest.raises(CorruptLakeError, match="5 bytes where 6"):
        read_payload(lake_at(tmp_path), "object", 0, 6, 0)


def test_a_null_payload_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    rows = rows_of([b"x"]).set_column(4, "payload", pa.array([None], pa.binary()))
    with pytest.raises(RefusedError, match="no payload"):
        write_payload_shard(tmp_path / "a.parquet", rows)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 10), st.integers(1, 200))
def test_row_groups_cover_all_rows_in_order_within_their_limits(lengths: list[int], rows: int, size: int) -> None:
    bounds = group_bounds(np.array(lengths, np.int64), rows, size)
    assert [i for low, high in bounds for i in range(low, high)] == list(range(len(lengths)))
    for low, high in bounds:
        assert high - low <= rows
        assert high - low == 1 or sum(lengths[low:high]) + 4 * (high - low) <= size


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(BODIES, min_size=1, max_size=90), min_size=1, max_size=3),
    st.randoms(),
)
def test_many_payloads_at_once_are_those_that_come_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[bytes]], random: Random
) -> None:
    """Rows of several shards in any order, whole objects among them."""
    folder = tmp_path_factory.mktemp("lake")
    (folder / "objects").mkdir()
    (folder / "objects/whole").write_bytes(b"a whole object")
    places = [("objects/whole", 0, 14, 0, b"a whole object")]
    for number, bodies in enumerate(shards):
        written = write_payload_shard(folder / f"{number}.parquet", rows_of(bodies))
        columns = (written.offsets.to_pylist(), written.lengths.to_pylist(), range(len(bodies)), bodies)
        places += [(f"{number}.parquet", *place) for place in zip(*columns, strict=True)]
    places = random.sample(places, random.randint(1, len(places)))
    offsets, lengths, rows = (np.array([place[at] for place in places], np.int64) for at in (1, 2, 3))
    refs = PayloadRefs([place[0] for place in places], offsets, lengths, rows, str)
    assert read_payloads(lake_at(folder), refs).to_pylist() == [place[4] for place in places]


def test_of_many_payloads_one_with_a_wrong_offset_is_read_the_slow_way_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard = write_payload_shard(tmp_path / "a.parquet", rows_of([b"first", b"other", b"third"]))
    offsets = np.array([shard.offsets[0].as_py(), shard.offsets[1].as_py() + 2, shard.offsets[2].as_py()], np.int64)
    lengths, rows = np.full(3, 5, np.int64), np.arange(3, dtype=np.int64)
    assert read_payloads(lake_at(tmp_path), PayloadRefs(["a.parquet"] * 3, offsets, lengths, rows, str)).to_pylist() == [
        b"first", b"other", b"third",
    ]  # fmt: skip
    with pytest.raises(CorruptLakeError, match=r"gone\.parquet.*sample 1"):
        read_payloads(
            lake_at(tmp_path), PayloadRefs(["a.parquet", "gone.parquet", "a.parquet"], offsets, lengths, rows, "sample {}".format)
        )


def test_of_many_payloads_one_with_another_sha256_is_named(tmp_path: Path) -> None:
    bodies = [os.urandom(100) for _ in range(40)]
    shard = write_payload_shard(tmp_path / "a.parquet", rows_of(bodies))
    digests: list[str | None] = [hashlib.sha256(body).hexdigest() for body in bodies]
    places = (shard.offsets.to_numpy(), shard.lengths.to_numpy(), np.arange(40), "sample {}".format)
    digests[7] = None
    assert read_payloads(lake_at(tmp_path), PayloadRefs(["a.parquet"] * 40, *places, digests)).to_pylist() == bodies
    digests[9] = digests[8]
    with pytest.raises(CorruptLakeError, match=r"sample 9: .* its sha256 is another"):
        read_payloads(lake_at(tmp_path), PayloadRefs(["a.parquet"] * 40, *places, digests))


def test_a_file_is_hashed_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.touch()
    trailing = TrailingHash(path)
    with path.open("ab") as file:
        for size in (3, 9_000_000, 1, 17_000_000, 0, 5):
            file.write(os.urandom(size))
            file.flush()
            trailing.follow()
    assert trailing.finish() == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
