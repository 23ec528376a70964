"""A model's files on disk: which version each change makes active, which files stay, and what is recorded before it happens."""

import errno
import hashlib
import os
import tracemalloc
from pathlib import Path

import msgspec
import pytest
import structlog
from msgspec.structs import replace

from edge_agent.errors import ModelError, RottenModelError
from edge_agent.models.state import Attempt, Installed, StoreState
from edge_agent.models.store import ModelStore
from schemas.model import ImageInput, ModelSpec


def body_of(version: int) -> bytes:
    return b"model %d" % version


def version_of(version: int) -> Installed:
    spec = ModelSpec("bright", version, ImageInput(4, 4))
    return Installed(version, hashlib.sha256(body_of(version)).hexdigest(), spec)


def tried(version: int, count: int = 0, *, is_open: bool = False) -> Attempt:
    return Attempt(version, version_of(version).digest, count, is_open)


def add(store: ModelStore, version: int) -> Installed:
    store.incoming.write_bytes(body_of(version))
    store.add(version_of(version))
    return version_of(version)


def install(store: ModelStore, version: int) -> Installed:
    store.activate(add(store, version))
    return version_of(version)


def state_of(store: ModelStore) -> StoreState:
    """The state without the number of its change."""
    return replace(store.state, generation=0)


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "versions").iterdir()}


def file_names(*versions: int) -> set[str]:
    return {f"{version}-{version_of(version).digest[:16]}.onnx" for version in versions}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


def reopened(store: ModelStore, tmp_path: Path) -> StoreState:
    """What the next start of the agent finds; it is what was in memory."""
    again = ModelStore(tmp_path)
    assert again.state == store.state
    return state_of(again)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_store_is_made_where_there_is_none_and_says_nothing(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        store = ModelStore(tmp_path / "new" / "bright")
        ModelStore(tmp_path / "new" / "bright")
    assert store.state == StoreState()
    assert files(tmp_path / "new" / "bright") == set()
    assert logs == []


def test_a_version_that_was_added_is_recorded_as_tried_and_nothing_points_to_it(store: ModelStore, tmp_path: Path) -> None:
    one = add(store, 7)
    path = tmp_path / "versions" / f"7-{one.digest[:16]}.onnx"
    assert store.path(one) == store.whole(one) == store.held(7, one.digest) == path
    assert store.incoming == tmp_path / "incoming.onnx"
    assert not store.incoming.exists()
    assert path.read_bytes() == body_of(7)
    assert reopened(store, tmp_path) == StoreState(attempts=(tried(7),))
    assert store.add(one) == path, "once more, without a download: it is there"


def test_only_whole_bytes_are_held(store: ModelStore) -> None:
    one = add(store, 1)
    assert store.held(1, "0" * 64) is None
    assert store.held(2, one.digest) is None
    store.path(one).write_bytes(b"other bytes")
    assert store.held(1, one.digest) is None


def test_damaged_bytes_are_replaced_by_the_download(store: ModelStore) -> None:
    store.path(add(store, 1)).write_bytes(b"rotten")
    assert store.whole(add(store, 1)).read_bytes() == body_of(1)


def test_a_version_larger_than_a_block_is_read_to_its_end(store: ModelStore) -> None:
    body = bytes(range(256)) * 4096 * 3 + b"end"
    one = replace(version_of(1), digest=hashlib.sha256(body).hexdigest())
    store.path(one).write_bytes(body)
    assert store.whole(one) == store.path(one)
    store.path(one).write_bytes(body[:-1] + b"D")
    with pytest.raises(RottenModelError, match=r"^version 1 on disk is not what was installed$"):
        store.whole(one)


def test_a_large_version_is_never_in_memory_as_a_whole(store: ModelStore) -> None:
    one = replace(version_of(1), digest=hashlib.sha256(bytes(8 << 20)).hexdigest())
    store.path(one).write_bytes(bytes(8 << 20))
    tracemalloc.start()
    try:
        store.whole(one)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_version_that_cannot_be_read_is_rotten(store: ModelStore) -> None:
    with pytest.raises(RottenModelError, match=r"^version 1 on disk cannot be read: .*No such file") as caught:
        store.whole(version_of(1))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_download_that_is_not_there_is_no_version(store: ModelStore) -> None:
    with pytest.raises(ModelError, match=r"^model version 3 cannot be kept: .*No such file") as caught:
        store.add(version_of(3))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_bytes_and_their_name_are_durable_before_a_version_counts(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.incoming.write_bytes(body_of(1))
    inode = store.incoming.stat().st_ino
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    before = len(list(Path("/proc/self/fd").iterdir()))
    store.add(version_of(1))
    assert synced[-2:] == [inode, (tmp_path / "versions").stat().st_ino]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_state_that_the_disk_refuses_changes_nothing(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(store, 1)
    before = store.state
    message = f"^the state in {tmp_path} cannot be written: .*No space left; the model in force stays$"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(ModelError, match=message) as caught:
            store.confirm()
    assert isinstance(caught.value.__cause__, OSError)
    assert store.state == before
    reopened(store, tmp_path)


def test_each_change_has_the_next_number(store: ModelStore) -> None:
    install(store, 1)
    assert store.state.generation == 2
    store.confirm()
    assert store.state.generation == 3


def test_a_state_that_is_lost_is_logged_and_no_file_is_deleted(store: ModelStore, tmp_path: Path) -> None:
    install(store, 1)
    for path in tmp_path.glob("state*.json"):
        path.write_bytes(b"{")
    with structlog.testing.capture_logs() as logs:
        again = ModelStore(tmp_path)
    assert again.state == StoreState()
    assert files(tmp_path) == file_names(1)
    lines = [line for line in logs if line["event"] != "model_state_damaged"]
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("model_state_lost", "error"),
        ("model_files_unexplained", "warning"),
    ]
    assert lines[0]["folder"] == str(tmp_path)
    assert lines[0]["hint"].startswith("the files of its versions are kept")
    assert lines[1] == {**lines[1], "folder": str(tmp_path / "versions"), "files": sorted(file_names(1)), "count": 1}


def test_of_many_files_that_nothing_explains_eight_are_named_and_all_are_counted(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    for number in range(10):
        (tmp_path / "versions" / f"stray{number}").write_bytes(b"")
    with structlog.testing.capture_logs() as logs:
        ModelStore(tmp_path)
    assert logs[0]["files"] == [f"stray{number}" for number in range(8)]
    assert logs[0]["count"] == 10
    assert len(files(tmp_path)) == 10


@pytest.mark.parametrize("name", ["state.json", "state.copy.json"])
def test_a_damaged_copy_of_the_state_is_written_again_at_the_start(store: ModelStore, tmp_path: Path, name: str) -> None:
    install(store, 1)
    (tmp_path / name).write_bytes(b"{")
    again = ModelStore(tmp_path)
    assert state_of(again) == state_of(store)
    assert again.state.generation == store.state.generation + 1
    assert (tmp_path / "state.json").read_bytes() == (tmp_path / "state.copy.json").read_bytes() != b"{"


def test_whole_copies_are_not_written_again(store: ModelStore, tmp_path: Path) -> None:
    install(store, 1)
    before = (tmp_path / "state.json").stat().st_ino
    ModelStore(tmp_path)
    assert (tmp_path / "state.json").stat().st_ino == before


def test_a_disk_that_refuses_the_repair_does_not_keep_the_agent_from_starting(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(store, 1)
    (tmp_path / "state.json").write_bytes(b"{")
    monkeypatch.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with structlog.testing.capture_logs() as logs:
        again = ModelStore(tmp_path)
    assert again.state == store.state
    (line,) = [line for line in logs if line["event"] == "model_state_not_repaired"]
    assert line["folder"] == str(tmp_path)
    assert "No space left" in line["reason"]
    assert line["log_level"] == "warning"


# -- attempts ---------------------------------------------------------------------------------------------------------


def test_an_attempt_is_counted_before_it_happens_and_uncounted_where_it_does_not_count(store: ModelStore, tmp_path: Path) -> None:
    one = add(store, 1)
    store.begin_attempt(one)
    assert reopened(store, tmp_path).attempts == (tried(1, 1, is_open=True),)
    store.end_attempt(one, counts=True)
    assert reopened(store, tmp_path).attempts == (tried(1, 1),)
    store.begin_attempt(one)
    store.end_attempt(one, counts=False)
    assert reopened(store, tmp_path).attempts == (tried(1, 1),)
    store.end_attempt(one, counts=False)
    store.end_attempt(one, counts=False)
    assert state_of(store).attempts == (tried(1),), "never below none"


def test_adding_a_version_again_keeps_its_count(store: ModelStore) -> None:
    one = add(store, 1)
    store.begin_attempt(one)
    add(store, 1)
    assert state_of(store).attempts == (tried(1, 1),)


def test_attempts_of_other_versions_are_left_alone(store: ModelStore) -> None:
    for version in (1, 2, 3):
        add(store, version)
    store.begin_attempt(version_of(2))
    assert state_of(store).attempts == (tried(1), tried(3), tried(2, 1, is_open=True))
    store.forget_attempts(version_of(3))
    assert state_of(store).attempts == (tried(1), tried(2, 1, is_open=True))


def test_attempts_that_the_agents_end_left_open_are_closed_once(store: ModelStore) -> None:
    for version in (1, 2):
        add(store, version)
    store.begin_attempt(version_of(2))
    assert store.close_open_attempts() == (tried(2, 1, is_open=True),)
    assert state_of(store).attempts == (tried(1), tried(2, 1))
    before = store.state
    assert store.close_open_attempts() == ()
    assert store.state == before


def test_beside_the_newest_the_last_eight_versions_that_were_tried_are_known(store: ModelStore) -> None:
    for version in range(1, 12):
        add(store, version)
    assert state_of(store).attempts == tuple(tried(version) for version in range(3, 12))


# -- which version is active ------------------------------------------------------------------------------------------


def test_a_new_version_is_on_probation_and_the_proven_one_stays(store: ModelStore, tmp_path: Path) -> None:
    first = install(store, 1)
    assert reopened(store, tmp_path) == StoreState(first, on_probation=True, is_running=True)
    store.confirm()
    assert reopened(store, tmp_path) == StoreState(first, is_running=True)
    second = install(store, 2)
    assert reopened(store, tmp_path) == StoreState(second, first, on_probation=True, is_running=True)
    assert files(tmp_path) == file_names(1, 2)
    third = install(store, 3)
    assert reopened(store, tmp_path) == StoreState(third, first, on_probation=True, is_running=True), "2 never proved itself"
    assert files(tmp_path) == file_names(1, 3)
    store.confirm()
    fourth = install(store, 4)
    assert reopened(store, tmp_path) == StoreState(fourth, third, on_probation=True, is_running=True)
    assert files(tmp_path) == file_names(3, 4)


def test_a_version_that_is_given_up_is_refused_and_the_one_before_it_runs(store: ModelStore, tmp_path: Path) -> None:
    first = install(store, 1)
    store.confirm()
    install(store, 2)
    store.begin_attempt(version_of(2))
    add(store, 5)
    store.go_back("too slow")
    expected = StoreState(first, None, (2,), rolled_back=True, reason="too slow", is_running=True, attempts=(tried(5),))
    assert reopened(store, tmp_path) == expected
    assert files(tmp_path) == file_names(1, 5)
    store.go_back("too slow as well")
    expected = StoreState(None, None, (1, 2), rolled_back=True, reason="too slow as well", is_running=True, attempts=(tried(5),))
    assert reopened(store, tmp_path) == expected
    store.note_stop()
    store.go_back("nothing is left")
    assert state_of(store) == replace(expected, reason="nothing is left", is_running=False)


def test_a_rotten_version_goes_out_of_force_and_is_not_refused(store: ModelStore, tmp_path: Path) -> None:
    first = install(store, 1)
    store.confirm()
    store.refuse(9, "unfit")
    install(store, 2)
    store.drop_rotten("a bit flipped")
    expected = StoreState(first, None, (9,), reason="a bit flipped", is_running=True, attempts=(tried(2),))
    assert reopened(store, tmp_path) == expected
    assert files(tmp_path) == file_names(1, 2), "what cannot be read now may be readable later"


def test_nothing_rotten_is_dropped_where_nothing_runs(store: ModelStore) -> None:
    add(store, 1)
    store.drop_rotten("nothing there")
    assert state_of(store) == StoreState(reason="nothing there", attempts=(tried(1),))


def test_a_refused_version_is_no_longer_tried_and_all_else_stays(store: ModelStore, tmp_path: Path) -> None:
    first = install(store, 1)
    for version in (4, 5):
        add(store, version)
    store.refuse(5, "unfit")
    store.refuse(3, "unfit too")
    store.refuse(3, "unfit again")
    expected = StoreState(first, None, (3, 5), on_probation=True, reason="unfit again", is_running=True, attempts=(tried(4),))
    assert reopened(store, tmp_path) == expected
    assert files(tmp_path) == file_names(1, 4)


def test_a_reason_is_kept_up_to_500_characters(store: ModelStore) -> None:
    install(store, 1)
    store.refuse(9, "r" * 501)
    assert store.state.reason == "r" * 500
    store.drop_rotten("d" * 501)
    assert store.state.reason == "d" * 500
    store.go_back("b" * 501)
    assert store.state.reason == "b" * 500


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("is_running", [True, False])
@pytest.mark.parametrize("on_probation", [True, False])
def test_an_abnormal_end_counts_against_a_version_on_probation(
    store: ModelStore, *, counts: bool, is_running: bool, on_probation: bool
) -> None:
    first = install(store, 1)
    if not on_probation:
        store.confirm()
    if not is_running:
        store.note_stop()
    before = store.state
    store.note_start(counts=counts)
    speaks_against_it = counts and is_running and on_probation
    assert state_of(store) == StoreState(first, on_probation=on_probation, starts=int(speaks_against_it), is_running=True)
    assert (store.state.generation > before.generation) is (speaks_against_it or not is_running)


def test_abnormal_ends_add_up_until_the_version_proves_itself(store: ModelStore) -> None:
    install(store, 1)
    for _ in range(2):
        store.note_start(counts=True)
    assert [store.count_death(), store.count_death()] == [1, 2]
    assert (store.state.starts, store.state.deaths) == (2, 2)
    store.confirm()
    assert (store.state.starts, store.state.deaths) == (0, 0)


def test_a_stop_in_order_is_recorded_once(store: ModelStore) -> None:
    install(store, 1)
    store.note_stop()
    before = store.state
    assert not before.is_running
    store.note_stop()
    assert store.state == before


def test_a_file_that_cannot_be_deleted_stays_on_the_list_until_it_can(store: ModelStore, tmp_path: Path) -> None:
    first = install(store, 1)
    store.path(first).unlink()
    store.path(first).mkdir()
    with structlog.testing.capture_logs() as logs:
        store.refuse(9, "unfit")
        assert logs == []
        store.go_back("too slow")
    (name,) = file_names(1)
    (line,) = logs
    assert line["event"] == "model_file_not_deleted"
    assert line["log_level"] == "warning"
    assert line["file"] == name
    assert name in line["reason"]
    assert store.state.retired == (name,)
    assert ModelStore(tmp_path).state == store.state
    store.path(first).rmdir()
    assert ModelStore(tmp_path).state.retired == ()
    store.refuse(8, "unfit")
    assert len(store.state.retired) == 0


def test_a_retired_file_that_is_tried_again_is_on_the_list_no_more(store: ModelStore) -> None:
    first, second = install(store, 1), version_of(2)
    for one in (first, second):
        store.path(one).unlink(missing_ok=True)
        store.path(one).mkdir()
    store.begin_attempt(second)
    store.go_back("too slow")
    store.refuse(2, "unfit")
    assert set(store.state.retired) == file_names(1, 2)
    store.path(first).rmdir()
    add(store, 1)
    assert set(store.state.retired) == file_names(2)


def test_a_name_on_the_list_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"")
    (tmp_path / "state.json").write_bytes(msgspec.json.encode(StoreState(generation=1, retired=("../kept",))))
    ModelStore(tmp_path)
    assert (tmp_path / "kept").exists()
