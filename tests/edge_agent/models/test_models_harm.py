"""No model takes the agent down: what kills, hangs or starves does so in a process of its own, at most twice."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from edge_agent.errors import ConfigError
from edge_agent.models import loader, model_process
from edge_agent.models.state import Attempt, Installed
from edge_agent.models.store import ModelStore
from tests.fakes import bad_models
from tests.fakes import model_repository as fake
from tests.fakes.model_repository import frames, picture
from tests.plant.present import present

_HARM = {"takes 400 MB": bad_models.hungry_model(), "never ends": bad_models.endless_model()}


@pytest.fixture
def proven(core: "fake.Core", tmp_path: Path) -> Iterator["fake.Device"]:
    """A device on which version 1 has proved itself."""
    device = fake.Device(core, tmp_path / "state", max_ms=500)
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    yield device
    device.close()


@pytest.mark.parametrize("harm", _HARM)
def test_a_model_that_harms_at_load_is_refused_after_two_attempts_and_the_good_one_answers(
    core: "fake.Core", proven: "fake.Device", harm: str
) -> None:
    bad = core.publish(_HARM[harm], golden=())
    assert proven.want(bad) == "refused"
    (report,) = proven.updater.report()
    assert (report.version, report.refused) == (1, (2,))
    assert "2 attempts" in report.reason
    assert proven.updater.annotate(frames(picture(250))).columns["model_version"] == [1]
    request_count = len(core.requests)
    proven.clock.sleep(100_000)
    proven.settle()
    assert len(core.requests) == request_count


@pytest.mark.parametrize("mood", ["hangs", "eats"])
def test_a_model_whose_process_dies_twice_on_probation_gives_way_to_the_proven_one(
    core: "fake.Core", proven: "fake.Device", mood: str
) -> None:
    assert proven.want(core.publish(bad_models.moody_model(mood), golden=())) == "active"
    for _ in range(2):
        got = proven.updater.annotate(frames(picture(250), picture(1), picture(250))).columns["model_version"]
        assert got == [2, None, None]
        proven.settle()
        proven.clock.sleep(30)
        proven.settle()
    (report,) = proven.updater.report()
    assert (report.state, report.version, report.refused) == ("rolled_back", 1, (2,))
    assert proven.updater.annotate(frames(picture(250))).columns["model_version"] == [1]
    assert proven.updater.counts["deaths"] == 2
    assert proven.updater.counts["skipped"] == 2


def test_a_proven_model_whose_process_crashes_is_started_again_and_never_refused(
    core: "fake.Core", proven: "fake.Device"
) -> None:
    for turn in range(4):
        os.kill(present(present(present(proven.updater.running).process).pid), signal.SIGSEGV)
        proven.updater.annotate(frames(picture(250)))
        proven.settle()
        proven.clock.sleep(100)
        proven.settle()
        if proven.updater.running.process is None:  # on a busy machine the death is noticed a round later
            proven.clock.sleep(100)
            proven.settle()
        assert proven.updater.annotate(frames(picture(250))).columns["model_version"] == [1], turn
    (report,) = proven.updater.report()
    assert (report.state, report.version, report.refused) == ("active", 1, ())


def test_while_its_process_is_gone_pictures_are_counted_and_the_reason_is_reported(
    core: "fake.Core", proven: "fake.Device"
) -> None:
    for _ in range(3):
        os.kill(present(present(present(proven.updater.running).process).pid), signal.SIGABRT)
        proven.updater.annotate(frames(picture(250)))
        proven.settle()
        if proven.updater.running.process is None:
            break
    got = proven.updater.annotate(frames(picture(250), None)).columns
    assert got["model_version"] == [None, None]
    assert proven.updater.counts["skipped"] == 1
    assert "SIGABRT" in proven.updater.report()[0].reason


@pytest.mark.parametrize("harm", _HARM)
def test_an_agent_killed_twice_while_it_tries_a_model_refuses_that_one_and_not_the_good_one(
    core: "fake.Core", proven: "fake.Device", tmp_path: Path, harm: str
) -> None:
    bad = core.publish(_HARM[harm], golden=())
    store = proven.updater.store
    spec = msgspec.structs.replace(bad.spec)
    installed = Installed(2, "0" * 64, spec)
    for turn in (1, 2):
        store = ModelStore(tmp_path / "state/models/bright")
        store.begin_attempt(installed)  # and here the agent is killed
        again = fake.Device(core, tmp_path / "state")
        (report,) = again.updater.report()
        assert (report.version, report.refused) == (1, (2,) if turn == 2 else ())
        again.close()
    again = fake.Device(core, tmp_path / "state")
    assert again.want(bad) == "refused"
    assert again.version == 1
    again.close()


def test_a_kill_while_another_version_is_tried_does_not_count_against_one_on_probation(core: "fake.Core", tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state", max_starts=1)
    device.want(core.publish())
    for version in range(2, 6):
        store = ModelStore(tmp_path / "state/models/bright")
        store.begin_attempt(Installed(version, "0" * 64, present(store.state.active).spec))
        device = fake.Device(core, tmp_path / "state", max_starts=1)
        assert device.version == 1
    assert device.updater.store.state.starts == 0


def test_orderly_restarts_do_not_count_against_a_version_on_probation(core: "fake.Core", tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state", max_starts=1)
    device.want(core.publish())
    for _ in range(4):
        device.close()
        device = fake.Device(core, tmp_path / "state", max_starts=1)
    assert device.version == 1
    device.close()


def test_a_stop_in_the_middle_of_a_trial_is_no_attempt(core: "fake.Core", proven: "fake.Device", tmp_path: Path) -> None:
    installed = proven.updater.store.state.active
    proven.updater._loader.close()
    bad = core.publish(bad_models.endless_model(), golden=())
    proven.want(bad)
    assert proven.updater.report()[0].refused == ()
    assert proven.updater.store.state.attempts_of(2) == 0
    assert proven.updater.store.state.active == installed


def test_an_attempt_is_on_disk_before_the_model_is_loaded(
    core: "fake.Core", proven: "fake.Device", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Attempt, ...]] = []

    class Watching(model_process.ModelProcess):
        def start(self) -> None:
            seen.append(ModelStore(tmp_path / "state/models/bright").state.attempts)
            super().start()

    monkeypatch.setattr(loader, "ModelProcess", Watching)
    assert proven.want(core.publish(fake.tiny_model(0.1))) == "active"
    assert [(tried.version, tried.count, tried.is_open) for (tried,) in seen] == [(2, 1, True)]
    assert ModelStore(tmp_path / "state/models/bright").state.attempts == ()


def test_a_picture_that_is_too_large_or_no_picture_does_not_end_the_process(
    core: "fake.Core", device: "fake.Device", tmp_path: Path
) -> None:
    device.want(core.publish())
    pid = present(present(device.updater.running).process).pid
    large = tmp_path / "large.png"
    large.write_bytes(_large_picture("1", 10_001))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n"
    unreadable: list[bytes | Path] = [
        large,
        large.read_bytes(),
        _large_picture("RGB", 7_000),
        svg,
        postscript,
        tmp_path / "absent",
        b"",
    ]
    got = device.updater.annotate(frames(*unreadable, picture(250)))
    assert got.columns["model_version"] == [None] * len(unreadable) + [1]
    assert device.updater.counts["unreadable"] == len(unreadable)
    assert present(present(device.updater.running).process).pid == pid


def _large_picture(mode: str, side: int) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (side, side)).save(out, "PNG", compress_level=1)
    return out.getvalue()


@pytest.mark.slow
def test_the_agent_s_own_process_never_imports_what_a_model_needs(core: "fake.Core", tmp_path: Path) -> None:
    published = core.publish()
    script = Path(__file__).parents[2] / "fakes" / "install_once.py"
    arguments = [str(core.folder), str(core.root), str(tmp_path / "state"), published.target]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "active 1 imported: none"


def test_a_missing_extra_is_an_error_of_the_configuration(
    core: "fake.Core", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_process, "_NEEDED", ("no_such_module",))
    with pytest.raises(ConfigError, match=r"no_such_module is missing; install catchment\[infer\]"):
        fake.Device(core, tmp_path / "state")


def test_the_bad_models_are_well_formed() -> None:
    for body in (*_HARM.values(), *(bad_models.moody_model(mood) for mood in ("fails", "hangs", "eats"))):
        bad_models.check(body)
        assert len(body) < 1_000
