"""A device runs only a model the signing keys vouch for, always has one that works, and goes back by itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata

from edge_agent.models.state import Installed, StoreState
from edge_agent.models.store import ModelStore
from pipelines.rollout.keys import KeyPlan
from pipelines.rollout.server import PieceAnswer
from schemas.model import ModelSpec
from tests.fakes import model_repository as fake
from tests.fakes.model_repository import frames, picture


def test_a_signed_model_is_installed_and_annotates_pictures(core: "fake.Core", device: "fake.Device") -> None:
    assert device.updater.annotate(frames(picture(9))).columns == {"camera": ["c"]}
    assert device.want(core.publish()) == "active"
    got = device.updater.annotate(frames(picture(250), None, picture(3), b"no picture")).columns
    assert got["predicted_label"] == ["bright", None, "dark", None]
    assert got["model_version"] == [1, None, 1, None]
    assert got["model_name"] == ["bright", None, "bright", None]
    assert got["predicted_score"][0] == pytest.approx(250 / 255)
    assert device.updater.counts == {"inferences": 2, "failures": 0, "unreadable": 1, "skipped": 0, "late": 0, "deaths": 0}


def test_a_model_in_many_pieces_arrives_whole(core: "fake.Core", device: "fake.Device") -> None:
    assert device.want(core.publish(fake.tiny_model(padding=400_000))) == "active"
    assert sum('.onnx"' in request for request in core.requests) == 13


def test_lost_answers_are_requested_again(core: "fake.Core", device: "fake.Device") -> None:
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
    old = core.keys.signers("root")
    for signer in old:
        root.signed.revoke_key(signer.public_key.keyid, "root")
    keys = core.keys.folder
    for path in keys.glob("root-*.pem"):
        path.unlink()
    spare = keys / "spare"
    type(core.keys)(spare).generate(KeyPlan())
    for path in spare.glob("root-*.pem"):
        path.rename(keys / path.name)
    fresh = core.keys.signers("root")
    for signer in fresh:
        root.signed.add_key(signer.public_key, "root")
    root.signed.version = 2
    root.signatures.clear()
    for signer in (*old, *fresh):
        root.sign(signer, append=True)
    root.to_file(str(metadata / "2.root.json"))
    assert device.want(core.publish(fake.tiny_model(0.1))) == "active"
    assert device.version == 2


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
        for _ in range(1 + turn % 3):
            process.stdout.readline()
        time.sleep(0.1 * turn)
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


def fake_installed(spec: ModelSpec) -> Installed:
    return Installed(1, "0" * 64, spec)
