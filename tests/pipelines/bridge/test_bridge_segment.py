import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catchment.runtime.clock import SystemClock
from pipelines.bridge.landing import Landing, recover_folder, whole_prefix
from pipelines.bridge.rows import SEGMENT_SCHEMA, LandingRow, rows_to_batch
from pipelines.bridge.segment import OpenSegment, open_path, read_segment, sealed_path
from pipelines.errors import ConfigError, CorruptLakeError
from schemas.envelope import Span
from tests.plant.present import present

texts = st.text(st.characters(codec="utf-8"), max_size=20)
spans = st.builds(Span, st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 1_000_000))
up_rows = st.builds(
    LandingRow,
    received_us=st.integers(0, 2**52),
    kind=st.sampled_from(["up", "reported"]),
    topic=texts,
    payload=st.binary(max_size=300),
    device=st.none() | texts,
    stream=st.none() | texts,
    content_type=st.none() | texts,
    properties=st.lists(st.tuples(texts, texts), max_size=4),
    span=st.none() | spans,
)
rows = up_rows | st.builds(LandingRow, st.just(1), st.just("refused"), texts, st.binary(max_size=50), refusal=texts)


def row(number: int, size: int = 40) -> LandingRow:
    return LandingRow(number, "up", f"catchment/up/d/s{number}", os.urandom(size), "d", "s", "application/json", [("a", "b")])


def write(folder: Path, groups: list[list[LandingRow]], number: int = 1) -> OpenSegment:
    segment = OpenSegment(folder, number)
    for group in groups:
        segment.append(rows_to_batch(group))
        segment.sync()
    return segment


def payloads(path: Path) -> list[bytes]:
    return [value for batch in read_segment(path) for value in batch.column("payload").to_pylist()]


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.lists(rows, min_size=1, max_size=4), max_size=4))
def test_a_sealed_segment_gives_back_every_row_as_it_was_written(
    groups: list[list[LandingRow]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("segment")
    path = write(folder, groups).seal()
    read = [value for batch in read_segment(path) for value in batch.to_pylist()]
    written = [one for group in groups for one in group]
    assert [value["payload"] for value in read] == [one.payload for one in written]
    assert [value["topic"] for value in read] == [one.topic for one in written]
    assert [value["refusal"] for value in read] == [one.refusal for one in written]
    assert [[(p["name"], p["value"]) for p in value["properties"]] for value in read] == [list(o.properties) for o in written]
    assert [(v["epoch"], v["first_seq"], v["count"]) for v in read] == [
        (o.span.epoch, o.span.first_seq, o.span.count) if o.span else (None, None, None) for o in written
    ]


def test_any_arrow_tool_opens_a_sealed_segment(tmp_path: Path) -> None:
    path = write(tmp_path, [[row(1), row(2)], [row(3)]]).seal()
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        table = reader.read_all()
    assert table.schema.equals(SEGMENT_SCHEMA)
    assert table.num_rows == 3


def test_a_cut_at_any_byte_leaves_a_prefix_of_whole_batches(tmp_path: Path) -> None:
    groups = [[row(1), row(2)], [row(3)], [row(4), row(5), row(6)]]
    write(tmp_path, groups)
    whole = open_path(tmp_path, 1).read_bytes()
    cut_file = tmp_path / "cut"
    kept = []
    for cut in range(len(whole) + 1):
        cut_file.write_bytes(whole[:cut])
        good_bytes, messages, _ = whole_prefix(cut_file)
        assert good_bytes <= cut
        kept.append(messages)
    assert kept == sorted(kept)
    assert set(kept) == {0, 2, 3, 6}


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1))
def test_recovery_seals_the_whole_batches_and_sets_the_torn_tail_aside(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    groups = [[row(1), row(2)], [row(3)], [row(4)]]
    write(folder, groups)
    path = open_path(folder, 1)
    whole = path.read_bytes()
    os.truncate(path, int(share * len(whole)))
    number, found = recover_folder(folder)
    sealed = sealed_path(folder, 1)
    kept = payloads(sealed) if sealed.exists() else []
    assert kept in [[one.payload for group in groups[:k] for one in group] for k in range(len(groups) + 1)]
    assert number == (2 if kept else 1)
    assert sum(one.torn_bytes for one in found) == sum(path.stat().st_size for path in folder.glob("torn/*"))
    assert not list(folder.glob("*.open"))


def test_a_rotten_byte_anywhere_is_noticed_or_harmless(tmp_path: Path) -> None:
    groups = [[row(1, 100)], [row(2, 100), row(3, 100)]]
    path = write(tmp_path, groups).seal()
    whole = path.read_bytes()
    written = [one for batch in read_segment(path) for one in batch.to_pylist()]
    unnoticed = []
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        try:
            read = [one for batch in read_segment(path) for one in batch.to_pylist()]
        except CorruptLakeError:
            continue
        if read != written:
            unnoticed.append(place)
    assert unnoticed == []


def test_pages_lost_to_a_power_cut_in_the_last_batch_are_noticed(tmp_path: Path) -> None:
    segment = write(tmp_path, [[row(1, 9000)]])
    durable = segment.durable_bytes
    segment.append(rows_to_batch([row(2, 9000)]))
    path = open_path(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[durable + 4096 : durable + 8192] = bytes(4096)
    path.write_bytes(content)
    assert whole_prefix(path)[:2] == (durable, 1)


def test_a_sealed_segment_cut_between_batches_is_corrupt(tmp_path: Path) -> None:
    segment = write(tmp_path, [[row(1)]])
    durable = segment.durable_bytes
    segment.append(rows_to_batch([row(2)]))
    path = segment.seal()
    os.truncate(path, durable)
    with pytest.raises(CorruptLakeError, match="end-of-stream"):
        payloads(path)


def test_numbers_go_on_when_every_sealed_segment_was_taken_away(tmp_path: Path) -> None:
    for _ in range(3):
        landing = Landing(tmp_path, 10**6, 10**6, SystemClock())
        landing.append([row(1)])
        landing.close()
        for path in tmp_path.glob("*.arrows"):
            path.unlink()
    landing = Landing(tmp_path, 10**6, 10**6, SystemClock())
    landing.append([row(1)])
    assert landing.seal() == sealed_path(tmp_path, 4)
    landing.close()


def test_a_segment_is_sealed_when_it_is_large(tmp_path: Path) -> None:
    landing = Landing(tmp_path, 1, 10**6, SystemClock())
    landing.append([row(1)])
    assert landing.seal_if_due() == sealed_path(tmp_path, 1)
    assert landing.seal_if_due() is None
    landing.close()


def test_after_a_failed_disk_what_was_durable_is_sealed_and_the_rest_is_cut(tmp_path: Path) -> None:
    landing = Landing(tmp_path, 10**6, 10**6, SystemClock())
    landing.append([row(1)])
    present(landing._open).append(rows_to_batch([row(2)]))  # written, never synced
    landing.restart()
    assert len(payloads(sealed_path(tmp_path, 1))) == 1
    landing.append([row(3)])
    landing.close()
    assert len(payloads(sealed_path(tmp_path, 2))) == 1


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    landing = Landing(tmp_path, 1, 1, SystemClock())
    with pytest.raises(ConfigError, match=r"bridge\.id"):
        Landing(tmp_path, 1, 1, SystemClock())
    landing.close()
