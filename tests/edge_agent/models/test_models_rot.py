"""Rot is not malice: flipped bits and torn files cost a fetch at most, never a version and never both models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.models import loader
from edge_agent.models.model_process import ModelProcess
from edge_agent.models.state import NAMES, Attempt, Installed, StateFile, StoreState
from edge_agent.models.store import ModelStore
from schemas.model import ModelSpec
from tests.fakes import model_repository as fake
from tests.fakes.model_repository import frames, picture
from tests.plant.present import present

_SPEC = ModelSpec("bright", 1, fake.IMAGE)
_STATE = StoreState(
    active=Installed(2, "b" * 64, _SPEC),
    previous=Installed(1, "a" * 64, _SPEC),
    refused=(3, 4),
    on_probation=True,
    starts=1,
    reason="why",
    attempts=(Attempt(5, "c" * 64, 1, True),),
)


@pytest.fixture
def two(core: "fake.Core", tmp_path: Path) -> Iterator["fake.Device"]:
    """A device with version 2 proven and version 1 to go back to."""
    device = fake.Device(core, tmp_path / "state")
    for body in (fake.tiny_model(), fake.tiny_model(0.1)):
        device.want(core.publish(body))
        device.clock.sleep(10_000)
        device.settle()
    yield device
    device.close()


def _flip(path: Path, place: int) -> None:
    body = bytearray(path.read_bytes())
    body[place % len(body)] ^= 1 << (place % 8)
    path.write_bytes(bytes(body))


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "versions").iterdir())


@pytest.mark.parametrize("region", [0, 3, 5])
def test_a_flipped_bit_in_the_proven_model_is_fetched_again_and_refuses_nothing(
    core: "fake.Core", two: "fake.Device", tmp_path: Path, region: int
) -> None:
    two.close()
    store = two.updater.store
    path = store.path(present(store.state.active))
    _flip(path, region * path.stat().st_size // 6)
    again = fake.Device(core, tmp_path / "state")
    assert again.version == 1
    assert again.updater.annotate(frames(picture(250))).columns["model_version"] == [1]
    assert again.want(core.repository.models()[1]) == "active"
    (report,) = again.updater.report()
    assert (report.version, report.refused) == (2, ())
    again.close()


@pytest.mark.parametrize("damage", [lambda path: _flip(path, 40), lambda path: path.write_bytes(b""), Path.unlink])
def test_both_models_damaged_are_fetched_again(
    core: "fake.Core", two: "fake.Device", tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    two.close()
    for path in (tmp_path / "state/models/bright/versions").iterdir():
        damage(path)
    again = fake.Device(core, tmp_path / "state")
    (report,) = again.updater.report()
    assert (report.state, report.version, report.refused) == ("none", 0, ())
    assert again.updater.annotate(frames(picture(250))).columns == {"camera": ["c"]}
    assert again.want(core.repository.models()[1]) == "active"
    assert again.updater.report()[0].refused == ()
    assert again.updater.annotate(frames(picture(250))).columns["model_version"] == [2]
    again.close()


def test_a_model_that_rots_while_it_is_tried_is_fetched_again_and_not_refused(
    core: "fake.Core", device: "fake.Device", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, turns = core.publish(), iter(range(10))

    class Rotting(ModelProcess):
        def start(self) -> None:
            if next(turns) == 0:
                (path,) = (tmp_path / "state/models/bright/versions").iterdir()
                path.write_bytes(b"x" + path.read_bytes()[1:])
            super().start()

    monkeypatch.setattr(loader, "ModelProcess", Rotting)
    assert device.want(published) == "blocked"
    device.clock.sleep(60)
    device.settle()
    (report,) = device.updater.report()
    assert (report.state, report.refused) == ("active", ())


@pytest.mark.parametrize("name", NAMES)
def test_a_bit_flipped_anywhere_or_a_torn_end_of_one_copy_of_the_state_changes_nothing(tmp_path: Path, name: str) -> None:
    file = StateFile(tmp_path)
    file.write(_STATE)
    good = (tmp_path / name).read_bytes()
    for place in range(len(good)):
        damaged = good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :]
        (tmp_path / name).write_bytes(damaged if place % 3 else good[:place])
        assert StateFile(tmp_path).read().state == _STATE


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
def test_an_older_copy_of_the_state_is_never_taken_for_the_newer(tmp_path: Path, data: st.DataObject) -> None:
    file = StateFile(tmp_path)
    states = [msgspec.structs.replace(_STATE, generation=generation, starts=generation) for generation in (1, 2, 3)]
    for state in states:
        file.write(state)
    old = data.draw(st.sampled_from(states[:2]))
    name = data.draw(st.sampled_from(NAMES))
    spare = tmp_path / "spare"
    spare.mkdir(exist_ok=True)
    StateFile(spare).write(old)
    (tmp_path / name).write_bytes((spare / name).read_bytes())
    found = StateFile(tmp_path).read()
    assert found.state == states[2]
    assert not found.is_whole


def test_a_damaged_copy_is_written_again_at_the_next_start(core: "fake.Core", two: "fake.Device", tmp_path: Path) -> None:
    two.close()
    folder = tmp_path / "state/models/bright"
    (folder / NAMES[0]).write_bytes(b"\0" * 100)
    store = ModelStore(folder)
    assert (folder / NAMES[0]).read_bytes() == (folder / NAMES[1]).read_bytes()
    assert store.state.active is not None


@pytest.mark.parametrize("damage", [b"", b"\0" * 500, b"{}", b"null", b'{"active":', b"\xff\xfe"])
def test_without_a_state_nothing_is_deleted(core: "fake.Core", two: "fake.Device", tmp_path: Path, damage: bytes) -> None:
    two.close()
    folder = tmp_path / "state/models/bright"
    before = _files(folder)
    assert len(before) == 2
    for name in NAMES:
        (folder / name).write_bytes(damage)
    again = fake.Device(core, tmp_path / "state")
    assert _files(folder) == before
    core.requests.clear()
    assert again.want(core.repository.models()[1]) == "active"
    assert not any('.onnx"' in request for request in core.requests)
    assert _files(folder) == before
    again.close()


def test_the_sweep_deletes_nothing_that_it_cannot_explain(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    versions = tmp_path / "state/models/bright/versions"
    (versions / "7-0123456789abcdef.onnx").write_bytes(b"of whom")
    (versions / "notes.txt").write_text("mine")
    for body in (fake.tiny_model(), fake.tiny_model(0.1), fake.tiny_model(0.2)):
        device.want(core.publish(body))
        device.clock.sleep(10_000)
        device.settle()
    names = {path.name.partition("-")[0] for path in versions.iterdir()}
    assert names == {"7", "notes.txt", "2", "3"}


def test_a_state_of_the_previous_release_is_read(core: "fake.Core", two: "fake.Device", tmp_path: Path) -> None:
    two.close()
    folder = tmp_path / "state/models/bright"
    old = msgspec.to_builtins(two.updater.store.state)
    for name in ("generation", "is_running", "deaths", "attempts", "retired"):
        del old[name]
    (folder / NAMES[1]).unlink()
    (folder / NAMES[0]).write_bytes(msgspec.json.encode(old))
    again = fake.Device(core, tmp_path / "state")
    assert again.version == 2
    assert present(again.updater.store.state.previous).version == 1
    again.close()


def test_what_an_older_release_wrote_last_is_believed_over_an_older_copy(tmp_path: Path) -> None:
    StateFile(tmp_path).write(msgspec.structs.replace(_STATE, generation=9))
    older = {"active": msgspec.to_builtins(_STATE.previous), "refused": [2]}
    (tmp_path / NAMES[0]).write_bytes(msgspec.json.encode(older))
    found = StateFile(tmp_path).read().state
    assert (found.active, found.refused) == (_STATE.previous, (2,))


@pytest.mark.parametrize("region", [0, 4, 7, 11])
def test_rotten_metadata_of_the_repository_are_fetched_again(
    core: "fake.Core", two: "fake.Device", tmp_path: Path, region: int
) -> None:
    two.close()
    for path in sorted((tmp_path / "state/models/bright/metadata").rglob("*.json")):
        if not path.is_symlink():
            _flip(path, region * path.stat().st_size // 12)
    again = fake.Device(core, tmp_path / "state")
    assert again.want(core.publish(fake.tiny_model(0.3))) == "active"
    assert again.version == 3
    again.close()


def test_a_file_that_cannot_be_read_is_not_deleted(core: "fake.Core", two: "fake.Device", tmp_path: Path) -> None:
    two.close()
    folder = tmp_path / "state/models/bright"
    path = two.updater.store.path(present(two.updater.store.state.active))
    aside = tmp_path / "aside"
    path.rename(aside)
    path.mkdir()  # reading it fails, whoever tries
    again = fake.Device(core, tmp_path / "state")
    assert again.version == 1
    again.close()
    path.rmdir()
    aside.rename(path)
    third = fake.Device(core, tmp_path / "state")
    core.requests.clear()
    assert third.want(core.repository.models()[1]) == "active"
    assert not any('.onnx"' in request for request in core.requests)
    assert len(_files(folder)) == 2
    third.close()
    assert path.is_file()
