"""The agent as a process over mutual TLS 1.3 and over WebSockets, against the broker and the rules that we deploy."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.ids import StreamName
from tests.fakes.authority import Authority
from tests.fakes.device import eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import DEPLOYED, Broker, free_port, secured_broker

pytestmark = pytest.mark.broker
STREAM = StreamName("vehicle_telemetry")
# Bridge and run in one, as the stand-in is.
CORE_RULES = "\nuser fake-core\ntopic read catchment/#\ntopic readwrite catchment/down/#\n"


# The second listener of the same broker, for those behind a proxy.
WEB_LISTENER = """
listener {port}
protocol websockets
cafile {certs}/ca.crt
certfile {certs}/server.crt
keyfile {certs}/server.key
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
"""


@dataclass
class Secured:
    folder: Path
    authority: Authority
    port: int
    web_port: int
    broker: Broker

    def core(self) -> FakeCore:
        certificate, key = self.authority.issue("fake-core")
        context = self.authority.context()
        context.load_cert_chain(certificate, key)
        return FakeCore("localhost", self.port, tls=context)

    def write_rules(self, text: str) -> None:
        (self.folder / "acl").write_text(text + CORE_RULES)
        self.broker.reload()


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    authority = Authority(tmp_path / "ca")
    authority.issue("server", "subjectAltName = DNS:localhost")
    web_port = free_port()
    (tmp_path / "acl").write_text((DEPLOYED / "acl").read_text() + CORE_RULES)
    web = WEB_LISTENER.format(port=web_port, certs=authority.folder)
    with secured_broker(tmp_path, authority.folder, tmp_path / "acl", extra=web) as broker:
        yield Secured(tmp_path, authority, broker.port, web_port, broker)


class Agent:
    """An agent's process."""

    def __init__(self, folder: Path, broker_table: str, rows: int, head: str = "") -> None:
        self.log_path = folder / "agent.log"
        table = folder / "telemetry.csv"
        table.write_text("event_time,speed_mps\n" + "".join(f"2024-05-01T00:00:{n % 60:02}Z,{n}\n" for n in range(rows)))
        path = folder / "agent.toml"
        path.write_text(
            f'{head}state_dir = "state"\n[broker]\n{broker_table}\n[uplink]\nresend_after_s = 2.0\n'
            f'[[source]]\nkind = "replay"\nstream = "{STREAM}"\nmax_samples = 50\ncompress = true\n'
            f'options = {{ path = "{table}" }}\n'
        )
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", "edge_agent", "-c", str(path), "--until-settled"]
            self.process = subprocess.Popen(command, stderr=log)

    def log(self) -> str:
        return self.log_path.read_text()

    def ended(self) -> int:
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            pytest.fail(self.log())


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def start(*arguments: Any, **named: Any) -> Agent:
        started.append(Agent(tmp_path, *arguments, **named))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def tls_table(secured: Secured, name: str = "device") -> str:
    folder = secured.authority.folder
    return (
        f'host = "localhost"\nport = {secured.port}\n'
        f'tls = {{ ca = "{folder}/ca.crt", cert = "{folder}/{name}.crt", key = "{folder}/{name}.key" }}\n'
    )


def use_certificate(secured: Secured, authority: Authority, common_name: str) -> None:
    """What the device holds from now on."""
    for made, kept in zip(authority.issue(common_name), ("device.crt", "device.key"), strict=True):
        shutil.copy(made, secured.authority.folder / kept)


def test_a_device_known_by_its_certificate_alone_delivers_over_mutual_tls(secured: Secured, agent: Callable[..., Agent]) -> None:
    use_certificate(secured, secured.authority, "dev-a")
    with secured.core() as core:
        running = agent(tls_table(secured), 2_000)
        assert running.ended() == 0, running.log()
        assert [ranges.spans for ranges in core.landed_seqs(STREAM).values()] == [((0, 2_000),)]
        assert {head.device for head, _ in core.landed} == {"dev-a"}
        assert {head.encoding for head, _ in core.landed} == {"zstd"}


@pytest.mark.slow
def test_a_certificate_that_is_renewed_is_taken_without_a_new_start(
    secured: Secured, agent: Callable[..., Agent], tmp_path: Path
) -> None:
    use_certificate(secured, Authority(tmp_path / "stranger"), "dev-a")
    with secured.core() as core:
        running = agent(tls_table(secured), 100)
        eventually(lambda: "broker_unavailable" in running.log())
        assert not core.landed
        use_certificate(secured, secured.authority, "dev-a")
        assert running.ended() == 0, running.log()
        assert sum(ranges.count for ranges in core.landed_seqs(STREAM).values()) == 100


def test_a_broker_of_another_authority_is_not_spoken_to(secured: Secured, agent: Callable[..., Agent], tmp_path: Path) -> None:
    use_certificate(secured, secured.authority, "dev-a")
    stranger = Authority(tmp_path / "stranger")
    table = tls_table(secured).replace(f"{secured.authority.folder}/ca.crt", f"{stranger.folder}/ca.crt")
    running = agent(table, 10)
    eventually(lambda: "certificate verify failed" in running.log())
    assert "connected " not in running.log()


def test_what_the_rules_forbid_waits_in_the_spool_until_they_allow_it(secured: Secured, agent: Callable[..., Agent]) -> None:
    use_certificate(secured, secured.authority, "dev-a")
    rules = (secured.folder / "acl").read_text().replace(CORE_RULES, "")
    with secured.core() as core:
        right = "pattern write catchment/up/%u/+\n"
        assert right in rules
        secured.write_rules(rules.replace(right, ""))
        running = agent(tls_table(secured), 300)
        eventually(lambda: "samples_not_taken" in running.log() and "0x87" in running.log())
        assert not core.landed
        assert "parked" not in running.log()
        secured.write_rules(rules)
        assert running.ended() == 0, running.log()
        assert sum(ranges.count for ranges in core.landed_seqs(STREAM).values()) == 300


def test_the_agent_delivers_over_websockets(make_broker: Callable[..., Any], agent: Callable[..., Agent]) -> None:
    port = free_port()
    broker = make_broker(extra=f"listener {port}\nprotocol websockets\n")
    with FakeCore(broker.host, broker.port) as core:
        table = f'host = "127.0.0.1"\nport = {port}\ntransport = "websockets"\n'
        running = agent(table, 2_000, head='device = "dev-a"\n')
        assert running.ended() == 0, running.log()
        assert [ranges.spans for ranges in core.landed_seqs(STREAM).values()] == [((0, 2_000),)]


@pytest.mark.slow
def test_the_agent_delivers_over_websockets_in_tls(secured: Secured, agent: Callable[..., Agent]) -> None:
    use_certificate(secured, secured.authority, "dev-a")
    with secured.core() as core:
        running = agent('transport = "websockets"\n' + tls_table(secured).replace(str(secured.port), str(secured.web_port)), 500)
        assert running.ended() == 0, running.log()
        assert {head.device for head, _ in core.landed} == {"dev-a"}
        assert [ranges.spans for ranges in core.landed_seqs(STREAM).values()] == [((0, 500),)]
