"""What is handed out for installation is read, checked and weighed, so that it works where nobody looks on."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent.checking import check_file
from edge_agent.config import load_agent_config, load_contract
from edge_agent.sources.registry import built_in_kinds
from pipelines.config import load_core_config

AGENTS = ("line-camera", "vehicle", "switch")
# systemd's own scale from 0 (can do nothing) to 10: how much harm a unit could do.
MAX_EXPOSURE = {
    "edge/catchment-agent": 2.0,
    "core/catchment-bridge": 2.5,
    "core/catchment-run": 2.5,
    "core/catchment-models": 2.5,
    "core/catchment-maintain": 2.5,
    "core/catchment-watch": 2.5,
}


@pytest.mark.parametrize("name", AGENTS)
def test_an_example_for_the_agent_is_a_valid_configuration(repository_root: Path, name: str) -> None:
    config = load_agent_config(repository_root / f"deploy/edge/agent.{name}.toml")
    assert config.source
    for source in config.source:
        assert source.kind in built_in_kinds()
        contract = load_contract(source)
        renamed = source.options.get("rename", {})
        assert [column for column in renamed.values() if column != "event_time" and contract.column(column) is None] == []


def test_the_example_for_the_core_is_a_valid_configuration(repository_root: Path) -> None:
    config = load_core_config(repository_root / "deploy/core/core.example.toml")
    assert config.broker.tls is not None


@pytest.mark.parametrize("name", AGENTS)
def test_an_example_for_the_agent_passes_its_own_check(repository_root: Path, name: str) -> None:
    found = check_file(repository_root / f"deploy/edge/agent.{name}.toml")
    assert found.faults == ()
    assert len(found.report_lines) >= 2


def test_the_agents_container_copies_what_is_there_and_starts_a_command_the_wheel_offers(repository_root: Path) -> None:
    text = (repository_root / "deploy/edge/Containerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()]
    assert len(copied) >= 6
    assert [name for name in copied if not (repository_root / name).exists()] == []
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert '"/opt/catchment/bin/edge-agent"' in text


def test_the_agents_unit_may_ask_whether_the_clock_is_right(repository_root: Path) -> None:
    """Or every sample would be marked as taken by an unsynchronised clock."""
    text = (repository_root / "deploy/edge/catchment-agent.service").read_text()
    assert "\nSystemCallFilter=adjtimex" in text
    assert "\nProtectClock=yes" not in text


@pytest.mark.parametrize("unit", MAX_EXPOSURE)
def test_a_unit_may_do_very_little(repository_root: Path, unit: str) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here; it comes with systemd")
    path = repository_root / "deploy" / f"{unit}.service"
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(path)], capture_output=True, text=True, check=False
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot weigh a unit file offline; systemd 250 or newer can")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found.group(1)) <= MAX_EXPOSURE[unit]


@pytest.mark.parametrize("unit", MAX_EXPOSURE)
def test_a_unit_starts_a_command_the_wheel_offers(repository_root: Path, unit: str) -> None:
    text = (repository_root / "deploy" / f"{unit}.service").read_text()
    (command,) = re.findall(r"^ExecStart=/opt/catchment/bin/(\S+)", text, re.MULTILINE)
    assert f'\n{command} = "' in (repository_root / "pyproject.toml").read_text()
