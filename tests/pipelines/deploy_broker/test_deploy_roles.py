"""Each role does its whole job under the broker files that are shipped, known by its certificate alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from PIL import Image

from pipelines.config import load_core_config
from pipelines.rollout.golden import try_model
from pipelines.rollout.keys import KeyFolder, KeyPlan
from pipelines.rollout.repository import ModelRepository
from pipelines.rollout.server import ModelServer
from schemas.ids import is_role_name
from schemas.receipts import decode_receipt
from schemas.reported import ModelReport, Reported, encode_reported
from schemas.rollout import PieceRequest, decode_desired, encode_piece_request
from tests.fakes import model_repository as fake
from tests.fakes.secured_broker import DEADLINE_S, Peer, Secured, after_tick, running_secured, until

pytestmark = pytest.mark.broker
CORE = [sys.executable, "-m", "pipelines"]


@dataclass
class Site:
    """One broker with mutual TLS, one lake, a configuration file for each role."""

    folder: Path
    broker: Secured
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def write(self, file: str, role: str, more: str = "") -> Path:
        certificate, key = self.broker.authority.issue(role)
        path = self.folder / f"{file}.toml"
        path.write_text(
            f'lake = "lake"\nmodels = "keys"\n[broker]\nhost = "localhost"\nport = {self.broker.port}\n[broker.tls]\n'
            f'ca = "{self.broker.authority.folder / "ca.crt"}"\ncert = "{certificate}"\nkey = "{key}"\n{more}'
        )
        return path

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([*CORE, *command, "-c", str(self.folder / f"{name}.toml")], stdout=log, stderr=log)
        self.running.append(process)
        return process

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def do(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CORE, *command, "-c", str(self.folder / f"{name}.toml")], capture_output=True, text=True, check=False, timeout=60
        )

    def device(self, name: str) -> Peer:
        peer = self.broker.peer(name)
        for topic in (f"catchment/down/{name}/+", f"catchment/models/data/{name}"):
            peer.subscribe(topic)
        return peer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository_root: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("roles")
    with running_secured(folder) as broker:
        found = Site(folder, broker)
        found.write("bridge", "bridge-0", "[bridge]\nseal_ms = 50\n")
        found.write("run", "core", "[run]\nworker_processes = 0\ninterval_ms = 50\n")
        found.write("models", "models")
        repository = ModelRepository(folder / "lake/models", KeyFolder(folder / "keys"), fake.Clock())
        repository.init(KeyPlan())
        body = fake.tiny_model()
        repository.publish("bright", body, fake.IMAGE, labels=fake.LABELS, golden=try_model(body, fake.IMAGE).golden)
        yield found
        for process in found.running:
            process.terminate()
        for process in found.running:
            process.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def bridge_and_loop(site: Site) -> None:
    site.start("bridge", "bridge")
    site.start("run", "run")
    until(lambda: "connected " in site.log("bridge"))


@pytest.fixture(scope="module")
def model_server(site: Site) -> subprocess.Popen[bytes]:
    process = site.start("models", "model", "serve")
    until(lambda: "model_server_ready" in site.log("models") or process.poll() is not None)
    assert process.poll() is None, site.log("models")
    return process


def heard(peer: Peer, kind: str) -> list[bytes]:
    return [body for topic, body in peer.heard if topic.endswith(kind)]


def report(name: str, *models: ModelReport) -> bytes:
    return encode_reported(Reported(name, 0, "test", models=models))


@pytest.mark.slow
def test_bridge_core_and_agent_settle_samples_and_large_payloads(site: Site, bridge_and_loop: None, tmp_path: Path) -> None:
    certificate, key = site.broker.authority.issue("line-1")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.frombytes("RGB", (300, 300), os.urandom(270_000)).save(pictures / "a.png")
    (tmp_path / "telemetry.csv").write_text(
        "event_time,speed_mps\n" + "".join(f"2024-05-01T00:00:{n:02}Z,{n}\n" for n in range(50))
    )
    config = tmp_path / "agent.toml"
    config.write_text(
        f'state_dir = "state"\n[broker]\nhost = "localhost"\nport = {site.broker.port}\n[broker.tls]\n'
        f'ca = "{site.broker.authority.folder / "ca.crt"}"\ncert = "{certificate}"\nkey = "{key}"\n'
        "[spool]\npart_threshold_bytes = 65536\n[uplink]\nreport_interval_s = 0.2\nresend_after_s = 3.0\n"
        f'[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\noptions = {{ path = "{tmp_path / "telemetry.csv"}" }}\n'
        f'[[source]]\nkind = "directory"\nstream = "camera_frame"\n'
        f'options = {{ path = "{pictures}", pattern = "*.png", settle_ms = 100, end_when_idle = true }}\n'
    )
    command = [sys.executable, "-m", "edge_agent", "-c", str(config), "--until-settled"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr + site.log("bridge") + site.log("run")
    log_text = site.log("bridge") + site.log("run") + done.stderr
    assert "refuse" not in log_text, log_text
    assert len(list((site.folder / "lake/objects").glob("?" * 64))) == 1
    core = site.device("line-1")
    until(lambda: bool(heard(core, "/receipts")))
    settled = decode_receipt(heard(core, "/receipts")[-1]).settled
    assert settled.keys() == {"vehicle_telemetry", "camera_frame"}


@pytest.mark.slow
def test_the_core_role_gives_devices_their_rules(site: Site, bridge_and_loop: None) -> None:
    device = site.device("line-5")
    key = site.folder / "policy.pem"
    keygen = [*CORE, "policy", "keygen", str(key)]
    subprocess.run(keygen, check=True, capture_output=True, timeout=60)
    device.client.publish("catchment/reported/line-5", report("line-5"), qos=1, retain=True).wait_for_publish(DEADLINE_S)
    done = site.do("run", "policy", "push", "--key", str(key))
    assert done.returncode == 0, done.stderr
    until(lambda: bool(heard(device, "/policy")))


@pytest.mark.slow
def test_the_model_server_hears_reports_orders_models_and_hands_out_their_bytes(
    site: Site, model_server: subprocess.Popen[bytes]
) -> None:
    early, late = site.device("cam-1"), site.device("cam-2")
    early.client.publish("catchment/reported/cam-1", report("cam-1"), qos=1, retain=True).wait_for_publish(DEADLINE_S)
    done = site.do("models", "rollout", "start", "bright", "--cohort", "all")
    assert done.returncode == 0, done.stderr
    until(lambda: bool(heard(early, "/desired")))
    assert decode_desired(heard(early, "/desired")[-1]).name == "bright"
    late.client.publish("catchment/reported/cam-2", report("cam-2"), qos=1, retain=True).wait_for_publish(DEADLINE_S)
    until(lambda: bool(heard(late, "/desired")))

    request = encode_piece_request(PieceRequest("metadata/timestamp.json", 0, 65_536))
    until(lambda: ask(late, "cam-2", request))
    assert json.loads(heard(late, "models/data/cam-2")[0])["signed"]["_type"] == "timestamp"

    failed = ModelReport("bright", 0, "refused", "boom", (1,))
    for name in ("cam-1", "cam-2", "cam-3"):
        peer = site.device(name)
        peer.client.publish(f"catchment/reported/{name}", report(name, failed), qos=1, retain=True).wait_for_publish(DEADLINE_S)
    until(lambda: "rollout_halted" in site.log("models"))
    assert "broker_refused" not in site.log("models")
    shown = json.loads(site.do("models", "rollout", "status", "--json").stdout.splitlines()[-1])
    assert shown["rollouts"][0]["state"] == "halted"
    assert set(shown["devices"]) >= {"cam-1", "cam-2", "cam-3"}


def ask(peer: Peer, name: str, request: bytes) -> bool:
    """Ask for a piece again and again: one that comes while the server reconnects is lost."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = b"q"
    peer.client.publish(f"catchment/models/get/{name}", request, qos=1, properties=properties).wait_for_publish(DEADLINE_S)
    return bool(heard(peer, f"models/data/{name}"))


def test_every_user_of_the_access_rules_is_a_name_no_device_may_have(repository_root: Path) -> None:
    rules = (repository_root / "deploy/broker/acl").read_text().splitlines()
    users = [line.split()[1] for line in rules if line.startswith("user ")]
    assert users
    assert [user for user in users if not is_role_name(user)] == []


def test_a_model_server_with_the_cores_certificate_says_that_no_request_reaches_it(site: Site) -> None:
    config = load_core_config(site.write("other", "core"))
    clock = fake.Clock()
    server = ModelServer(config, clock)
    server.open()
    try:
        server.tick()
        clock.ahead_s += 11
        until(after_tick(server, lambda: "delivers no requests of devices to the role 'core'" in server.health().trouble))
        assert not server.health().is_ready
    finally:
        server.close()


def test_a_model_server_with_its_own_certificate_hears_its_own_request(site: Site) -> None:
    clock = fake.Clock()
    server = ModelServer(load_core_config(site.write("third", "models")), clock)
    server.open()
    try:
        until(after_tick(server, lambda: server._probe._is_heard))
        clock.ahead_s += 60
        assert server.health().trouble == ""
    finally:
        server.close()
