"""Two hosts and a wire between them, over which 200 ms pass each way and back and one packet of twenty is lost."""

import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from schemas.ids import StreamName
from tests.fakes.fake_core import FakeCore
from tests.fakes.real_network import Host, Wire, why_not
from tests.fakes.small_authority import SmallAuthority

pytestmark = [pytest.mark.slow, pytest.mark.broker]
STREAM = StreamName("vehicle_telemetry")
FIRST, SECOND = "192.0.2.1", "192.0.2.3"
BROKER = """\
listener 8883
user root
cafile {ca}/ca.pem
certfile {ca}/server.pem
keyfile {ca}/server.key
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
max_queued_messages 100000
"""
ROWS = 2_000
RATE_HZ = 120
# One that the test makes, and at most two that twice as many lost packets in a row make of a short keep-alive.
MOST_CONNECTIONS = 4


def eventually(is_so: Callable[[], bool], describe: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline_s, describe()
        time.sleep(0.05)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    device = Host(tmp_path, "device", "192.0.2.2")
    plant = Host(tmp_path, "plant", FIRST)
    device.hosts_file.write_text(f"127.0.0.1 localhost\n{FIRST} broker.example\n")
    yield device, plant
    device.close()
    plant.close()


@pytest.fixture
def authority(tmp_path: Path) -> SmallAuthority:
    made = SmallAuthority(tmp_path, host="broker.example")
    for name in ("car-1", "core"):
        made.issue(name)
    return made


def core_on(plant: Host, authority: SmallAuthority) -> FakeCore:
    context = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    context.check_hostname = False  # it sits next to the broker and uses the loopback
    context.load_cert_chain(authority.folder / "core.pem", authority.folder / "core.key")
    with plant.entered():
        return FakeCore("127.0.0.1", 8883, tls=context)


def agent_config(folder: Path, authority: SmallAuthority) -> Path:
    (folder / "table.csv").write_text(
        "event_time,speed_mps\n" + "".join(f"2024-05-01T00:00:00Z,{n % 100}\n" for n in range(ROWS))
    )
    ca = authority.folder
    path = folder / "agent.toml"
    path.write_text(
        'device = "car-1"\nstate_dir = "state"\n[broker]\nhost = "broker.example"\nport = 8883\nkeepalive_s = 5\n'
        f'tls = {{ ca = "{ca}/ca.pem", cert = "{ca}/car-1.pem", key = "{ca}/car-1.key" }}\n'
        f'[[source]]\nkind = "replay"\nstream = "{STREAM}"\nmax_samples = 10\n'
        f'options = {{ path = "{folder}/table.csv", rate_hz = {RATE_HZ}.0 }}\n'
    )
    return path


def test_everything_arrives_once_though_packets_are_lost_the_wire_is_cut_and_the_broker_moves(
    hosts: tuple[Host, Host], authority: SmallAuthority, tmp_path: Path, make_broker: Callable[..., object]
) -> None:
    device, plant = hosts
    mosquitto = str(make_broker().binary)  # type: ignore[attr-defined]  # where it is, or the reason why it is not
    (tmp_path / "mosquitto.conf").write_text(BROKER.format(ca=authority.folder))
    config, log = agent_config(tmp_path, authority), tmp_path / "agent.log"
    program = [sys.executable, "-c", "from edge_agent.cli import main; main()"]
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(device, plant, delay_s=0.1, loss=0.05))
        log_file = stack.enter_context(log.open("wb"))
        broker = stack.enter_context(
            subprocess.Popen(plant.command(mosquitto, "-c", str(tmp_path / "mosquitto.conf")), stderr=log_file)
        )
        stack.callback(broker.kill)
        eventually(lambda: b"running" in log.read_bytes(), log.read_text)
        core = stack.enter_context(core_on(plant, authority))
        command = device.command(*program, "run", "-c", str(config), "--until-settled")
        agent = stack.enter_context(subprocess.Popen(command, stderr=log_file, env=os.environ))
        stack.callback(agent.kill)

        def arrived() -> int:
            return sum(ranges.count for ranges in core.landed_seqs(STREAM).values())

        def connections() -> int:
            return len(re.findall(r"event=connected", log.read_text()))

        eventually(lambda: arrived() > 100, log.read_text)
        # The interface is down for a while shorter than the keep-alive: the connection can bear it.
        device.ip("link set wire down")
        before = arrived()
        time.sleep(1)
        device.ip("link set wire up")
        eventually(lambda: arrived() > before + 100, log.read_text)
        # The wire is cut, nobody is told, and meanwhile the broker moves to another address under the same name.
        wire.is_cut = True
        plant.ip(f"address del {FIRST}/24 dev wire")
        plant.ip(f"address add {SECOND}/24 dev wire")
        device.hosts_file.write_text(f"127.0.0.1 localhost\n{SECOND} broker.example\n")
        eventually(lambda: "connection_lost" in log.read_text(), log.read_text)
        wire.is_cut = False
        assert agent.wait(60) == 0, log.read_text()
        assert [ranges.spans for ranges in core.landed_seqs(STREAM).values()] == [((0, ROWS),)]
        assert connections() <= MOST_CONNECTIONS, log.read_text()
        assert wire.lost > 0
        ledger = [*program, "books", "-c", str(config), "--json"]
        assert json.loads(subprocess.run(ledger, capture_output=True, text=True, check=True).stdout)["is_balanced"]
