"""The package for Debian and Ubuntu: built, installed into a root of its own, used, removed."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from schemas.ids import StreamName
from tests.fakes.built_deb import build_deb, why_no_deb
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def package(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = why_no_deb()
    if reason:
        pytest.skip(reason)
    package, _ = build_deb(repository_root, tmp_path_factory.mktemp("deb"))
    return package


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root for dpkg that shares nothing with this machine's."""
    folder = tmp_path / "root"
    for name in ("var/lib/dpkg/updates", "var/lib/dpkg/info", "var/log"):
        (folder / name).mkdir(parents=True)
    (folder / "var/lib/dpkg/status").touch()
    return folder


def dpkg(root: Path, *arguments: str) -> str:
    # The root is empty, so what the package depends on is not there; scripts run with this machine's shell.
    options = (f"--root={root}", "--force-depends", "--force-script-chrootless")
    return run("dpkg", *options, *arguments, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}).stdout


def agent(root: Path, *arguments: str, **more: Any) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return run(str(root / "opt/catchment/bin/edge-agent"), *arguments, env=environment, **more).stdout


def test_it_is_installed_used_and_removed_and_keeps_what_nobody_confirmed(
    package: Path, root: Path, broker: RunningBroker
) -> None:
    fields = run("dpkg-deb", "--field", str(package)).stdout
    assert "Depends: python3 (>= 3." in fields
    output = dpkg(root, "--install", str(package))
    assert "edge-agent check" in output
    assert (root / "usr/bin/edge-agent").readlink() == Path("/opt/catchment/bin/edge-agent")
    assert not (root / "opt/catchment/lib/pipelines").exists()
    assert "_edge_agent_completion" in (root / "usr/share/bash-completion/completions/edge-agent").read_text()
    for name in ("line-camera", "vehicle", "switch"):
        assert "source" in agent(root, "check", "-c", str(root / f"usr/share/doc/catchment-agent/agent.{name}.toml"))
    loose = [p for p in root.joinpath("opt").rglob("*") if not p.is_symlink() and stat.S_IMODE(p.stat().st_mode) & 0o022]
    assert loose == []

    work = root / "etc/catchment"
    (work / "table.csv").write_text(
        "event_time,speed_mps\n" + "".join(f"2024-05-01T00:00:{n % 60:02}Z,{n}\n" for n in range(200))
    )
    (work / "agent.toml").write_text(
        f'device = "line-3"\nstate_dir = "{root}/var/lib/catchment"\n[broker]\nport = {broker.port}\n'
        '[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\noptions = { path = "/dev/null" }\n'.replace(
            "/dev/null", str(work / "table.csv")
        )
    )
    with FakeCore(broker.host, broker.port) as core:
        agent(root, "run", "-c", str(work / "agent.toml"), "--until-settled", timeout=120)
        assert sum(ranges.count for ranges in core.landed_seqs(StreamName("vehicle_telemetry")).values()) == 200
    assert json.loads(agent(root, "books", "-c", str(work / "agent.toml"), "--json"))["is_balanced"]

    dpkg(root, "--install", str(package))
    assert "is kept" in dpkg(root, "--purge", "catchment-agent")
    assert not (root / "opt/catchment").exists()
    assert not (root / "lib/systemd/system/catchment-agent.service").exists()
    assert (root / "var/lib/catchment/spool/spool.db").exists()
    assert (work / "agent.toml").exists()
    assert "catchment-agent" not in (root / "var/lib/dpkg/status").read_text()


def test_the_unit_in_it_is_one_that_systemd_understands(package: Path, root: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here; it comes with systemd")
    dpkg(root, "--install", str(package))
    unit = root / "lib/systemd/system/catchment-agent.service"
    # The command it starts is looked for below /, where this package is not installed.
    unit.write_text(unit.read_text().replace("/opt/catchment/bin/edge-agent", "/bin/true"))
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "catchment-agent.service" in line]
    assert ours == []
