"""The units under a real systemd as PID 1: broker, core and agent installed as the pages say, on a machine that is thrown away.

`make systemd-units` prepares the machine's root, once, and runs this.
"""

import json
import os
import random
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.fakes.booted_machine import ROOT_VARIABLE, BootedMachine, booted, why_not
from tests.fakes.built_deb import build_deb, why_no_deb
from tests.fakes.small_authority import ROOT, SmallAuthority

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AGENT, BRIDGE, RUN = "catchment-agent", "catchment-bridge", "catchment-run"
ROLES = ("bridge-0", "core", "models")
WITHIN_S = 90.0
AGENT_CONFIG = """\
device = "line-3"
state_dir = "/var/lib/catchment"
[broker]
host = "localhost"
port = 8883
[broker.tls]
ca = "/etc/catchment/ca.pem"
cert = "/etc/catchment/device.pem"
key = "/run/credentials/catchment-agent.service/device.key"
[spool]
max_bytes = 1073741824
[health]
port = 9311
[[source]]
kind = "exec"
stream = "vehicle_telemetry"
options = { command = ["/usr/local/bin/read-bus"], restart = true }
"""
READ_BUS = '#!/bin/sh\nn=0\nwhile :; do n=$(((n+1)%100)); echo "{\\"speed_mps\\": $n}"; sleep 0.2; done\n'


def documented(page: str, step: str) -> str:
    """The shell block of a page that begins with `# <step>`."""
    (block,) = re.findall(rf"```sh\n# {step}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    return str(block)


def eventually(is_so: Callable[[], bool], describe: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < deadline_s, describe()
        time.sleep(0.3)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    reason = why_not() or why_no_deb()
    if reason:
        pytest.skip(reason)
    root = Path(os.environ[ROOT_VARIABLE])
    folder = tmp_path_factory.mktemp("handed")
    build_deb(ROOT, folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    prepare_identities(folder)
    for name, edge_px in (("small", 64), ("large", 1400)):
        noise = Image.frombytes("RGB", (edge_px, edge_px), random.Random(1).randbytes(3 * edge_px * edge_px))
        noise.save(folder / f"{name}.jpg", quality=95)
    # The core's packages are those this test runs with: the same lock, the same Python.
    shown = {folder: "/mnt", Path(sysconfig.get_paths()["purelib"]): "/opt/locked"}
    with booted(root, shown, folder / "boot.log") as one:
        if one.run("python3", "-c", "import sys; print(*sys.version_info[:2])").split() != [str(n) for n in sys.version_info[:2]]:
            pytest.skip("the root's Python is not this one's, for which the core's packages are")
        one.write("/etc/hosts", "127.0.0.1 localhost\n")
        install_broker(one)
        install_core(one)
        install_agent(one)
        yield one


def prepare_identities(folder: Path) -> None:
    authority = SmallAuthority(folder)
    for name in (*ROLES, "line-3"):
        authority.issue(name)
    example = (ROOT / "deploy/core/core.example.toml").read_text().replace("broker.plant.example", "localhost")
    (authority.folder / "bridge.toml").write_text(example)
    for role, file in (("core", "run"), ("models", "models")):
        (authority.folder / f"{file}.toml").write_text(re.sub(r"bridge-0\.(pem|key)", rf"{role}.\1", example))


def install_broker(machine: BootedMachine) -> None:
    machine.run("bash", "-euc", "cd /mnt/ca; DEPLOY=/mnt/deploy/broker\n" + documented("operator/install.md", "broker: install"))


def install_core(machine: BootedMachine) -> None:
    site = machine.run(
        "bash",
        "-euc",
        "python3 -m venv --without-pip /opt/catchment; cd /opt/catchment/lib/python3*/site-packages; "
        "python3 -m zipfile -e /mnt/catchment-*.whl .; echo /opt/locked > locked.pth; pwd",
    )
    assert "site-packages" in site
    program = "#!/opt/catchment/bin/python\nfrom pipelines.cli import main\nmain()\n"
    machine.write("/opt/catchment/bin/catchment", program, "0755")
    machine.run("bash", "-euc", "cd /mnt/ca; DEPLOY=/mnt/deploy/core\n" + documented("data-engineer/install.md", "core: units"))


def install_agent(machine: BootedMachine) -> None:
    output = machine.run("bash", "-c", "apt-get install -y --no-install-recommends /mnt/catchment-agent_*.deb 2>&1")
    assert "edge-agent check" in output, output
    machine.write("/usr/local/bin/read-bus", READ_BUS, "0755")
    for there, here, mode in (
        ("ca.pem", "ca.pem", "0644"),
        ("device.pem", "line-3.pem", "0644"),
        ("device.key", "line-3.key", "0600"),
    ):
        machine.run("install", "-D", "-m", mode, f"/mnt/ca/{here}", f"/etc/catchment/{there}")
    configure(machine, "")
    machine.run("edge-agent", "check", "-c", "/etc/catchment/agent.toml")
    assert machine.shows(AGENT, "ActiveState") == "inactive", "a package starts nothing that nobody configured"
    machine.run("systemctl", "enable", "--now", AGENT)


def configure(machine: BootedMachine, more: str) -> None:
    machine.write("/etc/catchment/agent.toml", AGENT_CONFIG + more)


def drop_in(machine: BootedMachine, name: str, lines: str) -> None:
    machine.write(f"/etc/systemd/system/{AGENT}.service.d/{name}.conf", f"[Service]\n{lines}")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", AGENT)


def is_running(machine: BootedMachine, unit: str, not_as: str) -> bool:
    return machine.shows(unit, "SubState") == "running" and machine.shows(unit, "MainPID") != not_as


def catchment(machine: BootedMachine, *words: str) -> str:
    owner = ("runuser", "-u", "catchment", "--", "/opt/catchment/bin/catchment")
    return machine.run(*owner, *words, "-c", "/etc/catchment/run.toml")


def rows(machine: BootedMachine, stream: str = "vehicle_telemetry") -> int:
    """What is committed, by the core's own books, which must balance."""
    lines = json.loads(catchment(machine, "books", "--json"))
    assert all(line["balanced"] and line["quarantined"] == 0 for line in lines), lines
    return sum(line["committed"] for line in lines if line["stream"] == stream)


def more_rows_arrive(machine: BootedMachine, stream: str = "vehicle_telemetry") -> None:
    before = rows(machine, stream)
    eventually(lambda: rows(machine, stream) > before, machine.journal)


def test_what_the_agent_captures_becomes_rows_and_its_books_balance(machine: BootedMachine) -> None:
    more_rows_arrive(machine)
    assert json.loads(machine.run("edge-agent", "books", "-c", "/etc/catchment/agent.toml", "--json"))["is_balanced"]
    for unit in (AGENT, BRIDGE, RUN, "catchment-watch", "mosquitto"):
        assert machine.shows(unit, "SubState") == "running", machine.journal("-u", unit)
        assert machine.shows(unit, "NRestarts") == "0", machine.journal("-u", unit)
    # Nobody else may read the spool, and the key is not in it.
    assert machine.run("stat", "-c", "%a %U", "/var/lib/private").split() == ["700", "root"]
    assert machine.run("stat", "-c", "%a %U", "/etc/catchment/device.key").split() == ["600", "root"]


def test_agent_and_core_on_one_machine_leave_each_other_alone(machine: BootedMachine) -> None:
    """With one state folder for both, systemd moved the agent's spool away under its feet."""
    machine.run("systemctl", "restart", BRIDGE, RUN)
    machine.run("systemctl", "restart", AGENT)
    more_rows_arrive(machine)
    assert "migrating" not in machine.journal()
    assert machine.run("readlink", "/var/lib/catchment").strip() == "private/catchment"
    assert machine.run("stat", "-c", "%U", "/var/lib/catchment-core/lake").strip() == "catchment"


def test_a_reload_takes_a_new_source_and_keeps_the_process(machine: BootedMachine) -> None:
    before = machine.shows(AGENT, "MainPID")
    configure(machine, '[[source]]\nkind = "syslog"\nstream = "log_line"\noptions = { listen = ["udp://127.0.0.1:5514"] }\n')
    machine.run("systemctl", "reload", AGENT)
    eventually(lambda: "configuration_reloaded" in machine.journal("-u", AGENT), machine.journal)
    line = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'<13>Oct 11 22:14:15 box su: x', ('127.0.0.1', 5514))"
    eventually(lambda: bool(machine.run("python3", "-c", line) + "x") and rows(machine, "log_line") > 0, machine.journal)
    assert machine.shows(AGENT, "MainPID") == before


@pytest.mark.parametrize("unit", [AGENT, BRIDGE, RUN])
def test_what_is_killed_is_back_by_itself_and_nothing_is_lost(machine: BootedMachine, unit: str) -> None:
    before = machine.shows(unit, "MainPID")
    machine.run("systemctl", "kill", "--signal=SIGKILL", unit)
    eventually(lambda: is_running(machine, unit, before), machine.journal)
    more_rows_arrive(machine)


def test_an_agent_that_hangs_is_started_again_by_the_watchdog(machine: BootedMachine) -> None:
    drop_in(machine, "watchdog", "WatchdogSec=20s\nTimeoutAbortSec=1s\n")
    before = machine.shows(AGENT, "MainPID")
    machine.run("kill", "-STOP", before)
    eventually(lambda: is_running(machine, AGENT, before), machine.journal)
    assert "Watchdog timeout" in machine.journal("-u", AGENT)
    more_rows_arrive(machine)


@pytest.mark.parametrize("unit", [AGENT, BRIDGE, RUN, "catchment-watch"])
def test_a_stop_is_clean_and_in_time(machine: BootedMachine, unit: str) -> None:
    machine.run("systemctl", "stop", unit, timeout_s=100)
    assert machine.shows(unit, "Result") == "success", machine.journal("-u", unit)
    machine.run("systemctl", "start", unit)
    more_rows_arrive(machine)


def test_a_drop_in_as_documented_lets_the_agent_take_pictures_from_a_folder_of_a_group(machine: BootedMachine) -> None:
    machine.run("bash", "-euc", "groupadd camera; install -d -m 2770 -g camera /var/spool/camera")
    drop_in(
        machine,
        "camera",
        "ReadWritePaths=/var/spool/camera\nSupplementaryGroups=camera\nIPAddressDeny=any\nIPAddressAllow=localhost\n",
    )
    options = '{ path = "/var/spool/camera", done = "delete", columns = { camera = "one" } }'
    configure(machine, f'[[source]]\nkind = "directory"\nstream = "camera_frame"\noptions = {options}\n')
    machine.run("systemctl", "reload", AGENT)
    machine.run("sh", "-c", "umask 027; cp /mnt/small.jpg /mnt/large.jpg /var/spool/camera")
    eventually(lambda: rows(machine, "camera_frame") == 2, machine.journal)
    assert machine.run("ls", "/var/spool/camera") == ""


def test_addresses_that_the_unit_forbids_cannot_be_reached(machine: BootedMachine) -> None:
    """Of an agent that is allowed the loopback alone, to an address of the same machine that is none."""
    if not machine.shows(AGENT, "IPEgressBytes").isdigit():
        pytest.skip("this kernel or its control groups have no rules for a unit's addresses")
    machine.run("bash", "-c", "ip link set lo up; ip address replace 192.0.2.1/32 dev lo")
    drop_in(machine, "camera", "IPAddressDeny=any\nIPAddressAllow=localhost\n")
    machine.run("sed", "-i", "s/localhost/192.0.2.1/", "/etc/catchment/agent.toml")
    machine.run("systemctl", "restart", AGENT)
    eventually(lambda: "192.0.2.1:8883 cannot be reached" in machine.journal("-u", AGENT), machine.journal)
    machine.run("rm", f"/etc/systemd/system/{AGENT}.service.d/camera.conf")
    configure(machine, "")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", AGENT)
    more_rows_arrive(machine)


def test_maintenance_runs_from_its_timer_and_watch_shows_what_goes_on(machine: BootedMachine) -> None:
    assert machine.shows("catchment-maintain.timer", "ActiveState") == "active"
    machine.run("systemctl", "start", "catchment-maintain", timeout_s=100)
    assert machine.shows("catchment-maintain", "Result") == "success", machine.journal("-u", "catchment-maintain")
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9109/metrics').read().decode())"
    assert "catchment_" in machine.run("python3", "-c", fetch)
    more_rows_arrive(machine)


def test_the_model_server_starts_under_its_unit(machine: BootedMachine) -> None:
    machine.run("bash", "-euc", "cd /mnt/ca; install -m 0644 models.pem models.toml /etc/catchment/")
    machine.run("bash", "-euc", "cd /mnt/ca; install -m 0600 -o catchment models.key /etc/catchment/")
    machine.run("systemctl", "start", "catchment-models")
    eventually(lambda: "as models" in machine.journal("-u", "mosquitto"), machine.journal)
    machine.run("systemctl", "stop", "catchment-models")
    assert machine.shows("catchment-models", "Result") == "success"


def test_a_broker_that_is_started_again_is_found_again(machine: BootedMachine) -> None:
    machine.run("systemctl", "restart", "mosquitto")
    more_rows_arrive(machine)


def test_an_upgrade_restarts_what_runs_and_a_removal_keeps_what_nobody_confirmed(machine: BootedMachine) -> None:
    before = machine.shows(AGENT, "MainPID")
    machine.run("bash", "-c", "dpkg --install /mnt/catchment-agent_*.deb")
    eventually(lambda: is_running(machine, AGENT, before), machine.journal)
    machine.run("apt-get", "remove", "-y", "catchment-agent")
    assert machine.try_run("systemctl", "is-active", AGENT).stdout.strip() == "inactive"
    assert "spool.db" in machine.run("ls", "/var/lib/catchment/spool")
    machine.run("bash", "-c", "dpkg --install /mnt/catchment-agent_*.deb")
    machine.run("systemctl", "enable", "--now", AGENT)
    more_rows_arrive(machine)
    assert "is kept" in machine.run("apt-get", "purge", "-y", "catchment-agent")
    assert "spool.db" in machine.run("ls", "/var/lib/catchment/spool")
    assert machine.try_run("test", "-e", "/opt/catchment/lib/edge_agent").returncode != 0
    assert machine.run("systemctl", "--failed", "--no-legend", "--plain") == ""
