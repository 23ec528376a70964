"""Orders between releases: the agent before follows this core's messages, and this agent follows those of the core before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.documents.trust import DocumentTrust
from edge_agent.rules.policy_store import PolicyStore, read_seen
from pipelines.director import DocumentSigner, parse_key, write_key
from pipelines.policy.edge import signed_message
from schemas.edge_policy import EdgeAction, EdgePolicy, EdgeRule
from schemas.rollout import DesiredModels, decode_desired
from tests.e2e.test_old_and_new import BEFORE
from tests.fakes.director import FakeDirector, HandClock, wanted

pytestmark = pytest.mark.slow

RULE = EdgeRule("stands", '"speed_mps" < ?', EdgeAction.DROP, (1.0,))
# What the release before does, by its own code: no Python file, so that a rename of ours never reaches it.
PROGRAMS = Path(__file__).with_name("release_before")
OLD_RULES = (PROGRAMS / "rules.old").read_text()
OLD_DESIRED = (PROGRAMS / "desired.old").read_text()
OLD_CORE = (PROGRAMS / "core.old").read_text()


class Releases:
    """The keys, a device's state, and the code of the release before."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._tree = tree
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir()
        self.key = folder / "policy.pem"
        self.public_key = write_key(self.key)

    def run_old(self, code: str, *arguments: object) -> str:
        environment = os.environ | {"PYTHONPATH": str(self._tree)}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=self._tree, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    def old_agent(self, *messages: Path) -> list[object]:
        """Version in force, refused, why."""
        found: list[object] = json.loads(self.run_old(OLD_RULES, self.public_key, self.state, *messages))
        return found

    def old_core(self, version: int) -> Path:
        """What it publishes."""
        folder = self.folder / f"old-{version}"
        folder.mkdir()
        self.run_old(OLD_CORE + "print('made')", self.key, folder, version)
        return folder

    def new_core(self, version: int) -> Path:
        """The message of this core's `policy push`."""
        path = self.folder / f"new-{version}"
        signer = DocumentSigner([parse_key(self.key.read_bytes())])
        path.write_bytes(signed_message(EdgePolicy(version, 0, {"vehicle_telemetry": (RULE,)}), signer))
        return path

    def new_agent(self, *messages: Path) -> PolicyStore:
        trust = DocumentTrust((self.public_key,), "car-1")
        store = PolicyStore(trust, (self.public_key,), self.state, HandClock())
        for path in messages:
            store.on_message(path.read_bytes())
            assert store.take_pending()
        return store


@pytest.fixture(scope="module")
def tree(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release before."""
    folder = tmp_path_factory.mktemp("before")
    command = ["git", "archive", "-o", str(folder / "tree.tar"), BEFORE, "edge_agent", "pipelines", "schemas"]
    done = subprocess.run(command, cwd=repository_root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the commit of the release before is not in this checkout: {done.stderr.strip()[:200]}")
    shutil.unpack_archive(folder / "tree.tar", folder / "tree")
    return folder / "tree"


@pytest.fixture
def releases(tree: Path, tmp_path: Path) -> Releases:
    return Releases(tree, tmp_path)


def test_rules_go_on_over_an_upgrade_and_a_way_back_of_core_and_agent(releases: Releases) -> None:
    assert releases.old_agent(releases.old_core(3) / "policy") == [3, 0, ""]
    store = releases.new_agent()  # the agent is upgraded first
    assert store.report().version == 3
    store = releases.new_agent(releases.old_core(4) / "policy")
    assert store.report().version == 4
    store = releases.new_agent(releases.new_core(4), releases.new_core(5))  # then the core
    assert (store.report().version, store.report().refused) == (5, 0)
    assert read_seen(releases.state, releases.public_key) == 5
    # The agent goes back: it finds the counter, and takes the core's messages as they come.
    assert releases.old_agent(releases.old_core(2) / "policy") == [
        5,
        1,
        "version 2 is not newer than version 5, which is in force",
    ]
    assert releases.old_agent(releases.new_core(6)) == [6, 0, ""]


def test_the_agent_of_the_release_before_follows_the_directors_desired_states(releases: Releases) -> None:
    director = FakeDirector()
    from schemas.rollout import encode_signed_desired
    from schemas.signed_document import decode_message

    path = releases.folder / "desired"
    models = DesiredModels((wanted(7),))
    path.write_bytes(encode_signed_desired(decode_message(director.order(5, 7)), models))
    assert releases.run_old(OLD_DESIRED, path) == "7"
    assert decode_desired((releases.old_core(1) / "desired").read_bytes()) == wanted(2)
