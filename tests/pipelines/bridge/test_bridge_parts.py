import hashlib
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bridge.claim import Claim, read_claim, write_claim
from pipelines.bridge.parts import Assembler, Part
from pipelines.bridge.sweep import Sweeper
from schemas.ids import DeviceId, Digest
from schemas.parts import PartHead
from schemas.ranges import Ranges

DEVICE = DeviceId("dev-a")


def digest_of(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest())


def part(content: bytes, low: int, high: int, digest: Digest | None = None, total: int | None = None) -> Part:
    head = PartHead(digest or digest_of(content), low, high - low, total or len(content))
    return Part(DEVICE, head, content[low:high])


def apply(assembler: Assembler, *parts: Part):
    return assembler.apply(DEVICE, parts)


@given(data=st.data(), content=st.binary(min_size=1, max_size=2000))
def test_parts_in_any_order_repeated_and_overlapping_make_the_object(data, content, tmp_path_factory):
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


def test_a_query_for_an_unknown_object_has_nothing(tmp_path):
    state = apply(Assembler(tmp_path), part(b"abc", 0, 0))
    assert (state.have, state.settled, state.error, state.total) == ([], False, "", 3)


def test_a_wrong_hash_discards_the_object_and_says_so(tmp_path):
    assembler = Assembler(tmp_path)
    digest = digest_of(b"right")
    state = apply(assembler, part(b"wrong", 0, 5, digest))
    assert (state.have, state.settled) == ([], False)
    assert "hash" in state.error
    assert not (tmp_path / digest).exists()
    assert apply(assembler, part(b"right", 0, 5)).settled


def test_another_total_starts_the_object_over(tmp_path):
    assembler = Assembler(tmp_path)
    content = os.urandom(100)
    apply(assembler, part(content, 0, 50, total=120))
    state = apply(assembler, part(content, 50, 100))
    assert state.have == [(50, 100)]
    assert apply(assembler, part(content, 0, 50)).settled


def test_bytes_without_a_claim_are_nothing_after_a_crash(tmp_path):
    content = os.urandom(100)
    apply(Assembler(tmp_path), part(content, 0, 50))
    path = tmp_path / ".parts" / DEVICE / digest_of(content)
    with path.open("r+b") as file:  # the crash came between the bytes and the claim
        file.seek(50)
        file.write(bytes(50))
    assert apply(Assembler(tmp_path), part(content, 0, 0)).have == [(0, 50)]
    assert apply(Assembler(tmp_path), part(content, 50, 100)).settled


def test_a_claim_for_bytes_that_are_not_there_is_not_believed(tmp_path):
    path = tmp_path / "object"
    path.write_bytes(b"12345")
    write_claim(path, Claim(10, Ranges.of([(0, 10)])))
    assert read_claim(path) is None
    write_claim(path, Claim(10, Ranges.of([(0, 5)])))
    assert read_claim(path) == Claim(10, Ranges.of([(0, 5)]))


def test_a_torn_claim_is_not_believed(tmp_path):
    path = tmp_path / "object"
    path.write_bytes(b"12345")
    write_claim(path, Claim(10, Ranges.of([(0, 5)])))
    beside = tmp_path / "object.have"
    beside.write_bytes(beside.read_bytes()[:-3])
    assert read_claim(path) is None


def test_an_object_that_would_fill_the_disk_is_refused(tmp_path):
    state = apply(Assembler(tmp_path, reserve_bytes=2**62), part(b"abc", 0, 3))
    assert "no room" in state.error
    assert not (tmp_path / ".parts" / DEVICE).exists()


@pytest.mark.slow
def test_an_object_survives_kills_of_the_bridge_and_is_whole(make_bridge, device):
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


def test_a_wrong_hash_is_answered_over_mqtt(bridge, device):
    bridge.start_connected()
    device.part(b"x" * 1000, 0, 1000, digest="0" * 64)
    device.wait_for_state(lambda state: "hash" in state["error"])
    assert bridge.stop() == 0
    assert bridge.rows() == []


def test_a_large_object_out_of_order_is_hashed_beside_and_told_when_it_is_settled(tmp_path):
    content = os.urandom(300_000)
    assembler = Assembler(tmp_path, inline_bytes=100_000)
    apply(assembler, part(content, 150_000, 300_000))
    waiting = apply(assembler, part(content, 0, 150_000))
    assert (waiting.have, waiting.settled) == ([(0, 300_000)], False) or waiting.settled
    told: list = []
    for _ in range(2_000):
        told += assembler.finished()
        if told:
            break
        apply(assembler, part(content, 0, 0))
    ((device, state),) = told
    assert (device, state.settled) == (DEVICE, True)
    assert (tmp_path / digest_of(content)).read_bytes() == content
    assembler.close()


def test_a_large_object_with_a_false_hash_is_refused_beside_as_well(tmp_path):
    content, lie = os.urandom(300_000), digest_of(b"something else")
    assembler = Assembler(tmp_path, inline_bytes=0)
    apply(assembler, part(content, 150_000, 300_000, digest=lie))
    apply(assembler, part(content, 0, 150_000, digest=lie))
    assembler.close()
    ((_, state),) = assembler.finished()
    assert "send them again" in state.error
    assert not (tmp_path / lie).exists()


def test_parts_that_nobody_continues_are_taken_away_after_their_time(tmp_path):
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
