import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from pipelines.bridge.parts import Assembler, Part, Sweeper
from pipelines.bridge.parts_room import ReceivedRanges, read_received, write_received
from schemas.ids import DeviceId, Digest
from schemas.parts import PartHead
from schemas.ranges import Ranges
from tests.pipelines.bridge.conftest import BridgeProcess, Device

DEVICE = DeviceId("dev-a")


def digest_of(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest())


def part(content: bytes, low: int, high: int, digest: Digest | None = None, total: int | None = None) -> Part:
    head = PartHead(digest or digest_of(content), low, high - low, total or len(content))
    return Part(DEVICE, head, content[low:high])


def apply(assembler: Assembler, *parts: Part) -> Any:
    return assembler.apply(DEVICE, parts)


@given(data=st.data(), content=st.binary(min_size=1, max_size=2000))
def test_parts_in_any_order_repeated_and_overlapping_make_the_object(
    data: DataObject, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    objects = tmp_path_factory.mktemp("objects")
    assembler = Assembler(objects)
    size = len(content)
    step = data.draw(st.integers(max(1, size // 6), size))
    spans = [(low, min(low + step, size)) for low in range(0, size, step)]
    extra = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=3))
    spans += [(min(pair), max(pair)) for pair in extra]
    have = Ranges()
    for low, high in data.draw(st.permutations(spans)):
        if data.draw(st.booleans()):
            assembler = Assembler(objects)  # as after a restart: nothing remembered but what the disk holds
        state = apply(assembler, part(content, low, high))
        have = have.union([(low, high)])
        assert state.have == list(have)
        assert state.settled == have.covers(0, size)
        if state.settled:
            break
    assert (objects / digest_of(content)).read_bytes() == content
    assert list((objects / ".parts" / DEVICE).iterdir()) == []
    assert apply(assembler, part(content, 0, 0)).settled


def test_a_query_for_an_unknown_object_has_nothing(tmp_path: Path) -> None:
    state = apply(Assembler(tmp_path), part(b"abc", 0, 0))
    assert (state.have, state.settled, state.error, state.total) == ([], False, "", 3)


def test_a_wrong_hash_discards_the_object_and_says_so(tmp_path: Path) -> None:
    assembler = Assembler(tmp_path)
    digest = digest_of(b"right")
    state = apply(assembler, part(b"wrong", 0, 5, digest))
    assert (state.have, state.settled) == ([], False)
    assert "hash" in state.error
    assert not (tmp_path / digest).exists()
    assert apply(assembler, part(b"right", 0, 5)).settled


def test_another_total_starts_the_object_over(tmp_path: Path) -> None:
    assembler = Assembler(tmp_path)
    content = os.urandom(100)
    apply(assembler, part(content, 0, 50, total=120))
    state = apply(assembler, part(content, 50, 100))
    assert state.have == [(50, 100)]
    assert apply(assembler, part(content, 0, 50)).settled


def test_bytes_without_a_claim_are_nothing_after_a_crash(tmp_path: Path) -> None:
    content = os.urandom(100)
    apply(Assembler(tmp_path), part(content, 0, 50))
    path = tmp_path / ".parts" / DEVICE / digest_of(content)
    with path.open("r+b") as file:  # the crash came between the bytes and the claim
        file.seek(50)
        file.write(bytes(50))
    assert apply(Assembler(tmp_path), part(content, 0, 0)).have == [(0, 50)]
    assert apply(Assembler(tmp_path), part(content, 50, 100)).settled


def test_a_claim_for_bytes_that_are_not_there_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"12345")
    write_received(path, ReceivedRanges(10, Ranges.of([(0, 10)])))
    assert read_received(path) is None
    write_received(path, ReceivedRanges(10, Ranges.of([(0, 5)])))
    assert read_received(path) == ReceivedRanges(10, Ranges.of([(0, 5)]))


def test_a_torn_claim_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"12345")
    write_received(path, ReceivedRanges(10, Ranges.of([(0, 5)])))
    ranges = tmp_path / "object.have"
    ranges.write_bytes(ranges.read_bytes()[:-3])
    assert read_received(path) is None


def test_an_object_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    state = apply(Assembler(tmp_path, reserve_bytes=2**62), part(b"abc", 0, 3))
    assert "no room" in state.error
    assert not (tmp_path / ".parts" / DEVICE).exists()


@pytest.mark.slow
def test_an_object_survives_kills_of_the_bridge_and_is_whole(make_bridge: Callable[..., BridgeProcess], device: Device) -> None:
    bridge = make_bridge()
    bridge.start_connected()
    content = random.Random(3).randbytes(6_000_000)
    step = 300_000
    for low in range(0, len(content), step):
        device.part(content, low, step)
        if low % (5 * step) == 0:
            bridge.kill()
            bridge.start_connected()
    device.part(content, 0, 0)
    device.wait_for_state(lambda state: state["settled"])
    digest = hashlib.sha256(content).hexdigest()
    assert (bridge.lake / "objects" / digest).read_bytes() == content
    claimed = [state["have"] for state in device.states()]
    assert claimed[-1] == [[0, len(content)]]


def test_a_wrong_hash_is_answered_over_mqtt(bridge: BridgeProcess, device: Device) -> None:
    bridge.start_connected()
    device.part(b"x" * 1000, 0, 1000, digest="0" * 64)
    device.wait_for_state(lambda state: "hash" in state["error"])
    assert bridge.stop() == 0
    assert bridge.rows() == []


def test_a_large_object_out_of_order_is_hashed_beside_and_reported_when_it_is_settled(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    assembler = Assembler(tmp_path, inline_bytes=100_000)
    apply(assembler, part(content, 150_000, 300_000))
    waiting = apply(assembler, part(content, 0, 150_000))
    assert (waiting.have, waiting.settled) == ([(0, 300_000)], False) or waiting.settled
    settled: list[Any] = []
    for _ in range(2_000):
        settled += assembler.finished()
        if settled:
            break
        apply(assembler, part(content, 0, 0))
    ((device, state),) = settled
    assert (device, state.settled) == (DEVICE, True)
    assert (tmp_path / digest_of(content)).read_bytes() == content
    assembler.close()


def test_a_large_object_with_a_false_hash_is_refused_beside_as_well(tmp_path: Path) -> None:
    content, lie = os.urandom(300_000), digest_of(b"something else")
    assembler = Assembler(tmp_path, inline_bytes=0)
    apply(assembler, part(content, 150_000, 300_000, digest=lie))
    apply(assembler, part(content, 0, 150_000, digest=lie))
    assembler.close()
    ((_, state),) = assembler.finished()
    assert "send them again" in state.error
    assert not (tmp_path / lie).exists()


def test_parts_that_nobody_continues_are_taken_away_after_their_time(tmp_path: Path) -> None:
    content = os.urandom(1_000)
    assembler = Assembler(tmp_path)
    apply(assembler, part(content, 0, 500))
    fresh = os.urandom(1_000)
    apply(assembler, part(fresh, 0, 500))
    old = tmp_path / ".parts" / DEVICE / digest_of(content)
    for path in (old, old.with_name(old.name + ".have")):
        os.utime(path, (1_000_000, 1_000_000))
    sweeper = Sweeper(tmp_path, assembler, keep_s=3_600)
    sweeper.sweep_if_due(0.0)
    assert (sweeper.swept, sweeper.swept_bytes) == (1, 500)
    assert {path.name for path in old.parent.iterdir()} == {digest_of(fresh), digest_of(fresh) + ".have"}
    assert apply(assembler, part(content, 0, 0)).have == []


class Small:
    """A disk with so many bytes free, less what lies in the folder."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._folder, self._size_bytes = folder, size_bytes

    def __call__(self) -> int:
        used = sum(path.stat().st_blocks * 512 for path in self._folder.rglob("*") if path.is_file())
        return int(self._size_bytes - used)


def on_small_disk(folder: Path, size_bytes: int, **more: Any) -> Assembler:
    assembler = Assembler(folder, **more)
    assembler.room._free_bytes = Small(folder, size_bytes)
    return assembler


def test_room_is_looked_at_for_every_part_and_what_does_not_fit_waits(tmp_path: Path) -> None:
    contents = [os.urandom(4_000_000) for _ in range(6)]
    assembler = on_small_disk(tmp_path, 6_400_000)
    states = [apply(assembler, part(content, 0, 1_000_000)) for content in contents]
    assert [bool(state.have) for state in states] == [True] + [False] * 5
    assert all(state.wait_ms > 0 and "no room" in state.error for state in states[1:])
    for low in range(1_000_000, 4_000_000, 1_000_000):
        last = apply(assembler, part(contents[0], low, low + 1_000_000))
    assert last.settled
    assert assembler.room.deferred == 5


def test_a_disk_that_filled_up_meanwhile_lets_parts_wait_without_an_error_and_keeps_what_is_there(tmp_path: Path) -> None:
    content = os.urandom(4_000_000)
    assembler = on_small_disk(tmp_path, 6_400_000)
    apply(assembler, part(content, 0, 1_000_000))
    (tmp_path / "something else").write_bytes(bytes(5_000_000))
    state = apply(assembler, part(content, 1_000_000, 2_000_000))
    assert (state.have, state.error) == ([(0, 1_000_000)], "")
    assert state.wait_ms > 0
    assert "no room" in state.reason
    assert apply(assembler, part(content, 0, 0)).have == [(0, 1_000_000)]  # a query is answered
    (tmp_path / "something else").unlink()
    assert apply(assembler, part(content, 1_000_000, 2_000_000)).have == [(0, 2_000_000)]


def test_what_is_declared_and_never_brought_keeps_nobody_out(tmp_path: Path) -> None:
    assembler = on_small_disk(tmp_path, 500 * 1024 * 1024)
    for number in range(200):
        head = PartHead(Digest(f"{number:064x}"), 0, 1, 400 * 1024 * 1024)
        assembler.apply(DeviceId("flood"), [Part(DeviceId("flood"), head, b"x")])
    content = os.urandom(300_000)
    assert apply(assembler, part(content, 0, 300_000)).settled


def test_tiny_parts_of_huge_objects_are_counted_in_blocks_and_their_pieces_are_bounded(tmp_path: Path) -> None:
    assembler = Assembler(tmp_path, max_device_bytes=2_200_000, max_pieces=100)

    def head(offset: int) -> PartHead:
        return PartHead(Digest("0" * 64), offset, 1, 2_000_000)

    parts = [Part(DEVICE, head(offset), b"x") for offset in range(0, 2_000_000, 1_000)]
    state = assembler.apply(DEVICE, parts)
    assert "pieces" in str(state.reason)
    for offset in range(0, 1_200_000, 10_000):
        state = assembler.apply(DEVICE, [Part(DEVICE, head(offset), b"x")])
    assert len(state.have) == 100
    stored = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())
    assert assembler.room.disk_bytes >= stored - 16_384
    wide = Assembler(tmp_path, max_device_bytes=2_200_000, max_pieces=100)
    assert wide.room.disk_bytes == assembler.room.disk_bytes  # counted again at a start
    other = PartHead(Digest("1" * 64), 0, 1, 2_000_000)
    refused = wide.apply(DEVICE, [Part(DEVICE, other, b"x")])
    assert "may take 2200000" in refused.error
    assert wide.apply(DeviceId("dev-b"), [Part(DeviceId("dev-b"), other, b"x")]).have == [(0, 1)]


def test_an_object_in_many_pieces_from_before_is_still_filled(tmp_path: Path) -> None:
    content, assembler = os.urandom(8_000), Assembler(tmp_path, max_pieces=10_000)
    for low in range(0, 400, 4):
        apply(assembler, part(content, low, low + 2))
    assembler = Assembler(tmp_path, max_pieces=10)
    assert len(apply(assembler, part(content, 2, 6)).have) == 99
    assert "pieces" in apply(assembler, part(content, 500, 501)).reason
    assert apply(assembler, part(content, 0, 8_000)).settled


def test_a_device_that_has_objects_enough_under_way_begins_no_other(tmp_path: Path) -> None:
    assembler = Assembler(tmp_path, max_open=2)
    contents = [os.urandom(100) for _ in range(3)]
    states = [apply(assembler, part(content, 0, 50)) for content in contents]
    assert [state.error for state in states[:2]] == ["", ""]
    assert "2 objects of this device are unfinished" in states[2].error
    assert apply(assembler, part(contents[0], 50, 100)).settled
    assert apply(assembler, part(contents[2], 0, 100)).settled


def test_one_device_s_large_hashes_do_not_queue_before_another_s(tmp_path: Path) -> None:
    assembler = Assembler(tmp_path, inline_bytes=0)
    contents = [os.urandom(200_000) for _ in range(5)]
    for content in contents:
        apply(assembler, part(content, 100_000, 200_000))
        apply(assembler, part(content, 0, 100_000))
    assert len(assembler._hashing) == 1
    settled: list[Any] = []
    while len(settled) < 5:
        settled += assembler.finished()
        for content in contents:
            apply(assembler, part(content, 0, 0))
    assert all(state.settled for _, state in settled)
    assembler.close()
