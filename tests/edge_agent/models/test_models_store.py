"""A model's files on disk: one pointer to whole versions, and nothing else that stays."""

import errno
import hashlib
import os
import tracemalloc
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import ModelError, ModelUnfitError
from edge_agent.models.state import Installed, StoreState
from edge_agent.models.store import ModelStore
from schemas.model import ImageInput, ModelSpec

STEPS = st.lists(
    st.tuples(st.sampled_from(["activate", "confirm", "start", "back", "refuse", "reopen"]), st.integers(1, 4)), max_size=12
)


def body_of(version: int) -> bytes:
    return b"model %d" % version


def version_of(version: int) -> Installed:
    spec = ModelSpec("bright", version, ImageInput(4, 4))
    return Installed(version, hashlib.sha256(body_of(version)).hexdigest(), spec)


def install(store: ModelStore, version: int) -> Installed:
    one = version_of(version)
    store.incoming.write_bytes(body_of(version))
    store.add(one)
    store.activate(one)
    return one


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "versions").iterdir()}


@given(STEPS)
def test_the_pointer_and_the_files_agree_with_a_model_of_them(tmp_path_factory: pytest.TempPathFactory, steps) -> None:
    folder = tmp_path_factory.mktemp("store") / "models" / "bright"
    store = ModelStore(folder)
    expected = StoreState()
    for step, number in steps:
        now = msgspec.structs.asdict(expected)
        if step == "activate":
            proven = expected.previous if expected.on_probation else expected.active
            expected = StoreState(install(store, number), proven, expected.refused, on_probation=True)
        elif step == "confirm":
            store.confirm()
            expected = StoreState(**{**now, "on_probation": False, "starts": 0})
        elif step == "start":
            store.count_start()
            expected = StoreState(**{**now, "starts": expected.starts + 1})
        elif step == "back":
            store.go_back(f"why {number}")
            given_up = () if expected.active is None else (expected.active.version,)
            refused = tuple(sorted({*expected.refused, *given_up}))
            expected = StoreState(expected.previous, None, refused, rolled_back=True, reason=f"why {number}")
        elif step == "refuse":
            store.refuse(number, f"unfit {number}")
            refused = tuple(sorted({*expected.refused, number}))
            expected = StoreState(**{**now, "refused": refused, "reason": f"unfit {number}"})
        else:
            store = ModelStore(folder)
        assert store.state == expected
        assert ModelStore(folder).state == expected
        kept = [one for one in (expected.active, expected.previous) if one is not None]
        assert names(folder) == {f"{one.version}-{one.digest[:16]}.onnx" for one in kept}
        for one in kept:
            assert store.whole(one).read_bytes() == body_of(one.version)


def test_files_lie_where_the_release_before_put_them(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "bright")
    one = version_of(7)
    store.incoming.write_bytes(body_of(7))
    assert store.incoming == tmp_path / "bright" / "incoming.onnx"
    assert store.add(one) == store.path(one) == tmp_path / "bright" / "versions" / f"7-{one.digest[:16]}.onnx"
    assert not store.incoming.exists()
    store.activate(one)
    state = msgspec.json.decode((tmp_path / "bright" / "state.json").read_bytes(), type=StoreState)
    assert state == store.state == StoreState(one, on_probation=True)


def test_a_version_goes_on_disk_before_anything_points_to_it(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.incoming.write_bytes(body_of(1))
    store.add(version_of(1))
    assert store.state == StoreState()
    assert names(tmp_path) == {store.path(version_of(1)).name}
    assert ModelStore(tmp_path).state == StoreState()
    assert names(tmp_path) == set(), "what nothing points to goes when the agent starts"


def test_a_version_larger_than_a_block_is_read_to_its_end(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    body = bytes(range(256)) * 4096 * 3 + b"end"
    one = msgspec.structs.replace(version_of(1), digest=hashlib.sha256(body).hexdigest())
    store.path(one).write_bytes(body)
    assert store.whole(one) == store.path(one)
    store.path(one).write_bytes(body[:-1] + b"D")
    with pytest.raises(ModelUnfitError, match=r"^version 1 on disk is not what was installed$"):
        store.whole(one)


def test_a_large_version_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    one = msgspec.structs.replace(version_of(1), digest=hashlib.sha256(bytes(8 << 20)).hexdigest())
    store.path(one).write_bytes(bytes(8 << 20))
    tracemalloc.start()
    try:
        store.whole(one)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_version_on_probation_gives_way_to_the_one_that_was_proven(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = install(store, 1)
    store.confirm()
    install(store, 2)
    third = install(store, 3)
    assert store.state == StoreState(third, first, on_probation=True), "2 never proved itself"
    store.go_back("too slow")
    assert store.state == StoreState(first, None, (3,), rolled_back=True, reason="too slow")
    assert names(tmp_path) == {store.path(first).name}
    store.go_back("too slow as well")
    assert store.state == StoreState(None, None, (1, 3), rolled_back=True, reason="too slow as well")
    assert names(tmp_path) == set()


def test_a_version_that_cannot_be_read_is_unfit(tmp_path: Path) -> None:
    with pytest.raises(ModelUnfitError, match=r"^version 1 on disk cannot be read: .*No such file") as caught:
        ModelStore(tmp_path).whole(version_of(1))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_download_that_is_not_there_is_no_version(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model version 3 cannot be kept: .*No such file") as caught:
        ModelStore(tmp_path).add(version_of(3))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_bytes_and_their_name_are_durable_before_a_version_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path)
    store.incoming.write_bytes(body_of(1))
    inode = store.incoming.stat().st_ino
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    before = len(list(Path("/proc/self/fd").iterdir()))
    store.add(version_of(1))
    assert synced == [inode, (tmp_path / "versions").stat().st_ino]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pointer_that_the_disk_refuses_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path)
    install(store, 1)
    before = store.state
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(
            ModelError, match=r"/state\.json cannot be written: .*No space left; the model in force stays$"
        ) as caught:
            store.confirm()
    assert isinstance(caught.value.__cause__, OSError)
    assert store.state == before == ModelStore(tmp_path).state


@pytest.mark.parametrize("body", [b"", b"{", b'{"starts": "many"}', b"\xff"])
def test_a_state_that_cannot_be_read_is_set_aside_and_said(tmp_path: Path, body: bytes) -> None:
    store = ModelStore(tmp_path)
    install(store, 1)
    (tmp_path / "state.json").write_bytes(body)
    with structlog.testing.capture_logs() as logs:
        again = ModelStore(tmp_path)
    assert again.state == StoreState()
    assert names(tmp_path) == set()
    assert (tmp_path / "state.broken").read_bytes() == body
    assert not (tmp_path / "state.json").exists()
    (line,) = logs
    assert line["log_level"] == "error"
    assert line["event"].startswith("model")
    assert line["event"].islower()
    assert line["aside"] == str(tmp_path / "state.broken")


def test_a_first_start_says_nothing(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        assert ModelStore(tmp_path / "new" / "bright").state == StoreState()
    assert logs == []


def test_a_reason_is_kept_up_to_500_characters(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    install(store, 1)
    store.refuse(9, "r" * 501)
    assert store.state.reason == "r" * 500
    store.go_back("b" * 501)
    assert store.state.reason == "b" * 500


def test_a_version_that_another_hand_removed_is_gone_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path)
    stray = tmp_path / "versions" / "stray.onnx"
    stray.write_bytes(b"x")
    listed = list((tmp_path / "versions").iterdir())
    monkeypatch.setattr(Path, "iterdir", lambda _folder: iter([*listed, *listed]))
    store.refuse(1, "unfit")
    assert not stray.exists()
