"""Halt means halt: a device that has taken in a halt neither installs nor activates the halted version, whatever happens."""

import hashlib
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from edge_agent.errors import ModelError
from edge_agent.models import loader, updater
from edge_agent.models.config import ModelConfig
from edge_agent.models.fetcher import TrustedModel
from edge_agent.models.updater import ModelUpdater
from pipelines.config import load_core_config
from pipelines.director import DesiredOrders, director_folder, first_director
from pipelines.rollout import server
from pipelines.rollout.fleet import sign_orders
from pipelines.rollout.rollouts import Rollout, RolloutStore
from pipelines.rollout.server import ModelServer
from schemas.model import ModelSpec
from schemas.reported import ModelReport, Reported, encode_reported
from schemas.rollout import Desired, DesiredModels
from schemas.signed_document import DocumentKind, decode_body, decode_document, decode_message
from tests.fakes import model_repository as fake
from tests.fakes.director import HandClock, OrderTaker

DEVICES = ("a", "b")
VERSIONS = (1, 2)
# Thousands of synced files: where they lie in memory it is a minute, not ten.
IN_MEMORY = next((str(path) for path in [Path("/dev/shm")] if path.is_dir()), None)


class FakeProcess:
    """A model that always loads."""

    pid = 1

    def __init__(self, path: Path, spec: ModelSpec, config: ModelConfig) -> None:
        del path, config
        self.spec = spec

    def start(self) -> None: ...

    def close(self) -> None: ...

    def peak_mib(self) -> int:
        return 1

    def answers_to_golden(self) -> list[float]:
        return [0.0]


class SlowTrust:
    """A download that ends when the test says so."""

    made: ClassVar[list[Any]] = []

    def __init__(self, *_: object, **_more: object) -> None:
        SlowTrust.made.append(self)
        self.began = threading.Event()
        self.release = threading.Event()
        self.is_killed = False

    def fetch(self, desired: Desired, into: Path, held: object) -> TrustedModel:
        del held
        self.began.set()
        assert self.release.wait(60)
        self.began.clear()
        self.release.clear()
        if self.is_killed:
            raise ModelError("the agent is gone")
        body = b"version %d" % desired.version
        into.write_bytes(body)
        spec = ModelSpec(desired.name, desired.version, fake.IMAGE)
        return TrustedModel(into, hashlib.sha256(body).hexdigest(), spec)


class FakeLink:
    """A connection whose messages the test carries."""

    made: ClassVar[list[Any]] = []
    is_ready, connections = True, 1

    def __init__(self, _config: object, _client_id: str, _filters: object, handler: Any, *_: object) -> None:
        FakeLink.made.append(self)
        self.hear = handler
        self.send: Any = None

    def publish(self, topic: str, body: bytes, **_: object) -> None:
        self.send(topic.split("/")[2], body)


@dataclass(frozen=True)
class Sent:
    """An order on its way: for whom, its bytes, and which versions were halted when it was signed, after how many changes."""

    device: str
    body: bytes
    change: int
    halted: frozenset[int]


@dataclass
class FleetDevice:
    """One device: its agent's part for models, and what it has taken in."""

    name: str
    state: Path
    root: Path
    key: str
    clock: HandClock
    is_online: bool = True
    pending: list[Sent] = field(default_factory=list)
    known: Sent | None = None

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.pending = []
        orders = OrderTaker(self.state, self.key, device=self.name, clock=self.clock).inbox
        config = ModelConfig("bright", str(self.root), ("camera_frame",), probation_s=600.0)
        self.updater = ModelUpdater(config, self.state, lambda _request: None, self.clock, orders=orders)
        self.trust = SlowTrust.made.pop()

    def receive(self, sent: Sent) -> None:
        self.pending.append(sent)
        self.updater.on_desired(sent.body)

    def note_decided(self) -> None:
        for sent in self.pending:
            if self.known is None or sent.change >= self.known.change:
                self.known = sent
        self.pending = []

    @property
    def version(self) -> int:
        return self.updater.report()[0].version

    @property
    def worker(self) -> threading.Thread | None:
        worker = self.updater.worker
        return worker if worker is not None and worker.is_alive() else None

    def round(self) -> None:
        self.updater.run_once(wait_s=0.0)
        self.note_decided()
        if (worker := self.worker) is not None:
            while worker.is_alive() and not self.trust.began.wait(0.005):
                pass

    def finish(self) -> None:
        worker, before, heard = self.worker, self.version, [*self.pending]
        if worker is None:
            return
        self.trust.release.set()
        worker.join(60)
        assert not worker.is_alive()
        self.note_decided() if heard else None
        if self.version != before:
            assert self.known is not None
            assert self.version not in self.known.halted, f"{self.name} installed version {self.version} after its halt"

    def kill(self) -> None:
        """Drop everything that is not on disk."""
        self.trust.is_killed = True
        self.trust.release.set()
        if (worker := self.worker) is not None:
            worker.join(60)
        self.begin()


class HaltMachine(RuleBasedStateMachine):
    """Two servers, a command line, a broker and two devices, in any order."""

    @initialize()
    def begin(self) -> None:
        home = self.home = Path(tempfile.mkdtemp(dir=IN_MEMORY))
        (home / "core.toml").write_text('lake = "lake"\n')
        (home / "root.json").write_bytes(b"{}")
        self.config = load_core_config(home / "core.toml")
        (key,) = first_director(director_folder(self.config)).public_keys
        self.clock = HandClock()
        self.store = RolloutStore(home / "lake/models/rollouts")
        self.changes = 0
        self.wires: dict[str, list[Sent]] = {"server 1": [], "server 2": [], "command": []}
        self.links: dict[str, FakeLink] = {}
        self.servers = {name: self.new_server(name) for name in ("server 1", "server 2")}
        self.retained: dict[str, Sent] = {}
        self.devices = {name: FleetDevice(name, home / name, home / "root.json", key, self.clock) for name in DEVICES}

    def teardown(self) -> None:
        if hasattr(self, "devices"):
            try:
                self.end()
            finally:
                shutil.rmtree(self.home, ignore_errors=True)

    def end(self) -> None:
        """Let everything arrive, and look at what the broker keeps."""
        for device in self.devices.values():
            device.is_online = True
        for _ in range(2):
            for name in self.servers:
                self.tick(name)
            for name in self.wires:
                while self.wires[name]:
                    self.broker_takes(name)
        halted = self.halted()
        for sent in self.retained.values():
            assert not {desired.version for desired in models_of(sent.body)} & halted, (
                "the broker keeps an order of a halted rollout"
            )
        for device in self.devices.values():
            device.round()
            device.finish()
            device.kill()

    def new_server(self, name: str) -> ModelServer:
        self.wires[name] = []
        made = ModelServer(self.config, self.clock)
        self.links[name] = FakeLink.made.pop()
        self.links[name].send = partial(self.send, name)
        return made

    def send(self, name: str, device: str, body: bytes) -> Any:
        self.wires[name].append(Sent(device, body, self.changes, self.halted()))

    def halted(self) -> frozenset[int]:
        return frozenset(rollout.version for rollout in self.store.all() if rollout.state == "halted")

    def passes(self) -> None:
        self.clock.sleep(1.0)

    @rule(version=st.sampled_from(VERSIONS), cohort=st.sampled_from(["a", "a,b"]), is_sent=st.booleans())
    def start_or_widen(self, version: int, cohort: str, is_sent: bool) -> None:
        self.changes += 1
        self.passes()
        issued_ms = self.clock.now_ms()
        self.store.save(Rollout(f"bright-{version}", "bright", version, f"bright/{version}.onnx", cohort, issued_ms))
        self.command_sends(is_sent)

    @rule(name=st.sampled_from(DEVICES), version=st.sampled_from(VERSIONS))
    def begin_a_download(self, name: str, version: int) -> None:
        self.come_back(name)
        self.start_or_widen(version, "a,b", is_sent=True)
        self.device_works(name)

    @rule(name=st.sampled_from(DEVICES), version=st.sampled_from(VERSIONS), is_sent=st.booleans())
    def halt_in_the_middle(self, name: str, version: int, is_sent: bool) -> None:
        self.begin_a_download(name, version)
        self.halt(version, is_sent)
        self.download_ends(name)

    @rule(version=st.sampled_from(VERSIONS), is_sent=st.booleans())
    def halt(self, version: int, is_sent: bool) -> None:
        if any(rollout.version == version for rollout in self.store.all()):
            self.changes += 1
            self.store.halt(f"bright-{version}", "by hand")
            self.command_sends(is_sent)

    def command_sends(self, is_sent: bool) -> None:
        if is_sent:
            reports: dict[str, tuple[ModelReport, ...]] = {name: each.updater.report() for name, each in self.devices.items()}
            for device, body in sign_orders(DEVICES, reports, self.store, DesiredOrders.open(self.config, self.clock)).items():
                self.send("command", device, body)
                self.broker_takes("command")  # a command ends when the broker has acknowledged

    @rule(name=st.sampled_from(["server 1", "server 2"]))
    def tick(self, name: str) -> None:
        self.passes()
        for device, each in self.devices.items():
            body = encode_reported(Reported(device, 1, "0", models=each.updater.report()))
            self.links[name].hear(SimpleNamespace(topic=f"catchment/reported/{device}", payload=body, retain=True))
        self.servers[name].tick()

    @rule(name=st.sampled_from(["server 1", "server 2"]))
    def restart_server(self, name: str) -> None:
        self.servers[name] = self.new_server(name)

    @rule(name=st.sampled_from(["server 1", "server 2"]))
    def broker_takes(self, name: str) -> None:
        if self.wires[name]:
            sent = self.wires[name].pop(0)
            self.retained[sent.device] = sent
            if self.devices[sent.device].is_online:
                self.devices[sent.device].receive(sent)

    @rule(name=st.sampled_from(DEVICES))
    def device_works(self, name: str) -> None:
        self.passes()
        self.devices[name].round()

    @rule(name=st.sampled_from(DEVICES))
    def download_ends(self, name: str) -> None:
        self.devices[name].finish()

    @rule(name=st.sampled_from(DEVICES))
    def probation_passes(self, name: str) -> None:
        self.clock.sleep(700.0)
        self.devices[name].round()

    @rule(name=st.sampled_from(DEVICES))
    def kill(self, name: str) -> None:
        self.devices[name].kill()
        if self.devices[name].is_online and name in self.retained:
            self.devices[name].receive(self.retained[name])

    @rule(name=st.sampled_from(DEVICES))
    def go_offline(self, name: str) -> None:
        self.devices[name].is_online = False

    @rule(name=st.sampled_from(DEVICES))
    def come_back(self, name: str) -> None:
        if not self.devices[name].is_online:
            self.devices[name].is_online = True
            if name in self.retained:
                self.devices[name].receive(self.retained[name])


def models_of(body: bytes) -> tuple[Desired, ...]:
    document = decode_document(decode_message(body).document, DocumentKind.DESIRED, DesiredModels)
    return decode_body(document, DesiredModels).models


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_in_200_interleavings_no_device_installs_a_version_after_it_has_taken_in_its_halt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "ModelProcess", FakeProcess)
    monkeypatch.setattr(updater, "ModelFetcher", SlowTrust)
    monkeypatch.setattr(server, "BrokerLink", FakeLink)
    run_state_machine_as_test(HaltMachine, settings=settings(max_examples=200, stateful_step_count=30, deadline=None))


def test_an_order_of_a_server_that_was_slow_does_not_take_the_place_of_a_halt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "ModelProcess", FakeProcess)
    monkeypatch.setattr(updater, "ModelFetcher", SlowTrust)
    monkeypatch.setattr(server, "BrokerLink", FakeLink)
    fleet = HaltMachine()
    fleet.begin()
    fleet.halt_in_the_middle(name="a", version=1, is_sent=True)
    fleet.tick(name="server 2")  # its order arrives last, after the halt of the restarted rollout
    fleet.begin_a_download(name="a", version=1)
    fleet.halt_in_the_middle(name="a", version=1, is_sent=False)
    fleet.teardown()
