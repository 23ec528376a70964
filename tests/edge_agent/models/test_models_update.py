"""A device runs only a model the signing keys vouch for, always has one that works, and goes back by itself."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from PIL import Image
from tuf.api.metadata import Metadata

from edge_agent.capture.batch import SampleBatch
from edge_agent.models.state import StoreState
from edge_agent.models.store import ModelStore
from pipelines.rollout.pieces import PieceAnswer
from schemas.model import ModelSpec, golden_input
from tests.fakes import model_repository as fake


def picture(level: int, size: int = 20) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), level).save(out, "PNG")
    return out.getvalue()


def frames(*payloads: bytes | Path | None) -> SampleBatch:
    return SampleBatch(list(range(len(payloads))), {"camera": ["c"] * len(payloads)}, list(payloads))


@pytest.fixture
def core(tmp_path: Path) -> "fake.Core":
    return fake.Core(tmp_path / "core")


@pytest.fixture
def device(core: "fake.Core", tmp_path: Path) -> "fake.Device":
    return fake.Device(core, tmp_path / "state")


# -- the way it should go -------------------------------------------------------------------------------------------------


def test_a_signed_model_is_installed_and_annotates_pictures(core: "fake.Core", device: "fake.Device") -> None:
    assert device.updater.annotate(frames(picture(9))).columns == {"camera": ["c"]}
    assert device.want(core.publish()) == "active"
    got = device.updater.annotate(frames(picture(250), None, picture(3), b"no picture")).columns
    assert got["predicted_label"] == ["bright", None, "dark", None]
    assert got["model_version"] == [1, None, 1, None]
    assert got["model_name"] == ["bright", None, "bright", None]
    assert got["predicted_score"][0] == pytest.approx(250 / 255)
    assert device.updater.counts == {"inferences": 2, "failures": 0, "unreadable": 1}


def test_a_model_in_many_pieces_arrives_whole(core: "fake.Core", device: "fake.Device") -> None:
    assert device.want(core.publish(fake.tiny_model(padding=400_000))) == "active"
    assert sum('"targets/' in request for request in core.requests) == 13


def test_lost_answers_are_asked_for_again(core: "fake.Core", device: "fake.Device") -> None:
    published = core.publish()
    lost = set[str]()

    def lose(request: str, found: PieceAnswer) -> PieceAnswer | None:
        fresh = request not in lost
        lost.add(request)
        return None if fresh else found

    core.tamper = lose
    assert device.want(published) == "active"


def test_the_model_of_before_the_restart_runs_without_the_core(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    device.want(core.publish())
    core.tamper = lambda _request, _found: None
    again = fake.Device(core, tmp_path / "state")
    assert again.updater.annotate(frames(picture(250))).columns["predicted_label"] == ["bright"]


def test_an_older_version_that_is_still_signed_may_be_desired(core: "fake.Core", device: "fake.Device") -> None:
    first, second = core.publish(), core.publish(fake.tiny_model(0.1))
    assert device.want(second) == "active"
    assert device.want(first, "back") == "active"
    assert device.version == 1


def test_all_root_keys_may_change(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    metadata = core.folder / "metadata"
    root = Metadata.from_file(str(metadata / "1.root.json"))
    old = core.repository._keys.signers("root")
    for signer in old:
        root.signed.revoke_key(signer.public_key.keyid, "root")
    keys = core.repository._keys.folder
    for path in keys.glob("root-*.pem"):
        path.unlink()
    spare = keys / "spare"
    type(core.repository._keys)(spare).generate(fake.KeyPlan())
    for path in spare.glob("root-*.pem"):
        path.rename(keys / path.name)
    fresh = core.repository._keys.signers("root")
    for signer in fresh:
        root.signed.add_key(signer.public_key, "root")
    root.signed.version = 2
    root.signatures.clear()
    for signer in (*old, *fresh):
        root.sign(signer, append=True)
    root.to_file(str(metadata / "2.root.json"))
    assert device.want(core.publish(fake.tiny_model(0.1))) == "active"
    assert device.version == 2


# -- attacks: each is refused, and the old model keeps running -------------------------------------------------------------


def _flip(found: PieceAnswer) -> PieceAnswer:
    return replace(found, body=bytes([found.body[0] ^ 1]) + found.body[1:])


def _altered_target(core: "fake.Core", _tmp: Path) -> None:
    core.tamper = lambda request, found: _flip(found) if '"targets/' in request and found.body else found


def _endless_target(core: "fake.Core", _tmp: Path) -> None:
    def grow(request: str, found: PieceAnswer) -> PieceAnswer:
        if '"targets/' not in request:
            return found
        length = msgspec.json.decode(request)["length"]
        return replace(found, total=1 << 40, body=b"x" * length)

    core.tamper = grow


def _endless_timestamp(core: "fake.Core", _tmp: Path) -> None:
    def grow(request: str, found: PieceAnswer) -> PieceAnswer:
        length = msgspec.json.decode(request)["length"]
        return replace(found, total=1 << 40, body=b"x" * length) if "timestamp" in request else found

    core.tamper = grow


def _cut_target(core: "fake.Core", _tmp: Path) -> None:
    def cut(request: str, found: PieceAnswer) -> PieceAnswer:
        short = len(found.body) - 7
        return replace(found, total=short, body=found.body[:short]) if '"targets/' in request else found

    core.tamper = cut


def _unsigned_targets(core: "fake.Core", _tmp: Path) -> None:
    path = core.folder / "metadata" / "3.targets.json"
    path.write_text(path.read_text().replace('"bright/2.onnx"', '"bright/9.onnx"'))


def _foreign_repository(core: "fake.Core", tmp: Path) -> None:
    foreign = fake.Core(tmp / "foreign")
    foreign.publish()
    foreign.publish(fake.tiny_model(0.3))
    core.folder = foreign.folder


def _expired_timestamp(core: "fake.Core", _tmp: Path) -> None:
    core.clock.ahead_s = -30 * 86_400
    assert core.repository.publish("other", fake.tiny_model(), fake.IMAGE).spec.version == 1


def _mixed_snapshot(core: "fake.Core", _tmp: Path) -> None:
    metadata = core.folder / "metadata"
    shutil.copy(metadata / "2.snapshot.json", metadata / "3.snapshot.json")


def _other_model(core: "fake.Core", _tmp: Path) -> None:
    core.repository.publish("other", fake.tiny_model(), fake.IMAGE)


ATTACKS: dict[str, Callable[["fake.Core", Path], None]] = {
    "altered target of equal length": _altered_target,
    "endless target": _endless_target,
    "endless timestamp": _endless_timestamp,
    "target cut short": _cut_target,
    "targets metadata changed without the key": _unsigned_targets,
    "foreign repository": _foreign_repository,
    "expired timestamp": _expired_timestamp,
    "snapshot of another time": _mixed_snapshot,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_the_keys_do_not_vouch_for_is_refused_and_the_old_model_runs_on(
    core: "fake.Core", device: "fake.Device", tmp_path: Path, attack: str
) -> None:
    device.want(core.publish())
    second = core.publish(fake.tiny_model(0.2))
    ATTACKS[attack](core, tmp_path)
    assert device.want(second) == "refused"
    (report,) = device.updater.report()
    assert report.version == 1
    assert report.reason
    assert device.updater.annotate(frames(picture(250))).columns["model_version"] == [1]


def test_metadata_that_go_back_are_refused(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    first = core.publish()
    shutil.copytree(core.folder, tmp_path / "then")
    second = core.publish(fake.tiny_model(0.2))
    assert device.want(second) == "active"
    core.folder = tmp_path / "then"
    assert device.want(first, "back") == "refused"
    assert "BadVersionNumberError" in device.updater.report()[0].reason
    assert device.version == 2


def test_a_target_signed_as_another_model_is_refused(core: "fake.Core", device: "fake.Device") -> None:
    other = core.repository.publish("other", fake.tiny_model(), fake.IMAGE)
    disguised = replace(other, spec=msgspec.structs.replace(other.spec, name="bright"))
    assert device.want(disguised) == "refused"
    assert "signed as other version 1" in device.updater.report()[0].reason


def test_a_refused_model_is_taken_once_the_repository_is_put_right(core: "fake.Core", device: "fake.Device") -> None:
    published = core.publish()
    _altered_target(core, Path())
    assert device.want(published) == "refused"
    core.tamper = lambda _request, found: found
    device.settle()
    assert device.version == 0
    device.clock.sleep(60)
    device.settle()
    assert device.version == 1


def test_a_core_that_is_away_is_no_refusal(core: "fake.Core", device: "fake.Device") -> None:
    published = core.publish()
    core.tamper = lambda _request, _found: None
    assert device.want(published) == "none"


# -- vouched for, but unfit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "golden"),
    [
        (b"no ONNX at all", (0.0,)),
        (fake.tiny_model(), (0.5, 0.9)),
        (fake.tiny_model(), (0.5,)),
        (fake.tiny_model(float("nan")), (0.5, 0.5)),
    ],
    ids=["does not load", "answers otherwise", "answers another count", "answers NaN"],
)
def test_a_model_that_fails_its_self_test_is_refused_for_good(
    core: "fake.Core", device: "fake.Device", tmp_path: Path, body: bytes, golden: tuple[float, ...]
) -> None:
    device.want(core.publish())
    unfit = core.publish(body, golden=golden)
    assert device.want(unfit) == "refused"
    asked = len(core.requests)
    device.clock.sleep(100_000)
    device.settle()
    assert len(core.requests) == asked
    again = fake.Device(core, tmp_path / "state")
    assert again.want(unfit) == "refused"
    assert again.updater.report()[0].refused == (2,)
    assert again.version == 1


def test_a_model_that_fails_on_probation_is_given_up_for_the_one_before(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    device.want(core.publish(fake.tiny_model(0.1)))
    device.updater._classifier._session = None
    device.updater.annotate(frames(*[picture(1)] * 5))
    (report,) = device.updater.report()
    assert (report.state, report.version, report.refused) == ("rolled_back", 1, (2,))
    assert device.updater.annotate(frames(picture(250))).columns["model_version"] == [1]


def test_bad_pictures_do_not_speak_against_a_model(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    device.updater.annotate(frames(*[b"torn"] * 50))
    assert device.updater.report()[0].state == "active"


def test_a_model_past_probation_is_not_given_up(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    device.updater._classifier._session = None
    device.updater.annotate(frames(*[picture(1)] * 50))
    assert device.updater.report()[0].state == "active"
    assert device.updater.counts["failures"] == 50


def test_a_model_that_keeps_killing_the_agent_is_given_up(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    device.want(core.publish(fake.tiny_model(0.1)))
    states = [fake.Device(core, tmp_path / "state").updater.report()[0] for _ in range(4)]
    assert [(report.state, report.version) for report in states] == [("active", 2)] * 3 + [("rolled_back", 1)]


def test_while_a_version_is_on_probation_the_proven_one_stays_to_go_back_to(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    for bias in (0.1, 0.2):
        device.want(core.publish(fake.tiny_model(bias)))
    device.updater._store.go_back("test")
    assert device.version == 1


def test_a_rotten_model_on_disk_gives_way_to_the_one_before(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    device.want(core.publish(fake.tiny_model(0.1)))
    store = device.updater._store
    path = store.path(store.state.active)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert fake.Device(core, tmp_path / "state").version == 1


def test_an_unreadable_state_is_set_aside_and_the_model_fetched_again(
    core: "fake.Core", device: "fake.Device", tmp_path: Path
) -> None:
    published = core.publish()
    device.want(published)
    (tmp_path / "state/models/bright/state.json").write_bytes(b"\0\0")
    again = fake.Device(core, tmp_path / "state")
    assert again.updater.report()[0].state == "none"
    assert again.want(published) == "active"


def test_a_model_above_the_device_s_limit_is_refused_before_it_is_fetched(core: "fake.Core", tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state", max_bytes=100)
    assert device.want(core.publish()) == "refused"
    assert not any('"targets/' in request for request in core.requests)


def test_the_golden_input_touches_all_of_its_range() -> None:
    values = golden_input(10_000)
    assert min(values) < 0.001
    assert max(values) > 0.999
    assert len(set(values)) == 10_000


def test_desired_states_for_others_or_of_nonsense_change_nothing(core: "fake.Core", device: "fake.Device") -> None:
    for body in (b"", b"{}", b'{"rollout":"r","name":"other","version":1,"target":"other/1.onnx","issued_ms":1}', b"\xff"):
        device.updater.on_desired(body)
    device.settle()
    assert core.requests == []


# -- SIGKILL --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_device_killed_anywhere_in_an_install_always_has_a_model_that_works(core: "fake.Core", tmp_path: Path) -> None:
    models = [core.publish(fake.tiny_model(bias / 100, padding=50_000)) for bias in range(4)]
    state = tmp_path / "state"
    assert fake.Device(core, state, max_starts=10_000).want(models[0]) == "active"
    script = Path(__file__).parents[2] / "fakes" / "install_loop.py"
    seen: set[int] = set()
    for turn in range(12):
        process = subprocess.Popen(
            [sys.executable, str(script), str(core.folder), str(core.root), str(state)], stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * turn)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = ModelStore(state / "models" / "bright")
        assert store.state.active is not None
        assert store.whole(store.state.active).is_file()
        after = fake.Device(core, state, max_starts=10_000)
        assert after.updater.annotate(frames(picture(250))).columns["predicted_label"] == ["bright"]
        seen.add(after.version)
    assert len(seen) > 1


def test_a_state_survives_its_own_encoding() -> None:
    spec = ModelSpec("bright", 1, fake.IMAGE)
    state = StoreState(active=fake_installed(spec), refused=(1, 2), on_probation=True, starts=3)
    assert msgspec.json.decode(msgspec.json.encode(state), type=StoreState) == state


def fake_installed(spec: ModelSpec) -> object:
    from edge_agent.models.state import Installed

    return Installed(1, "0" * 64, spec)
