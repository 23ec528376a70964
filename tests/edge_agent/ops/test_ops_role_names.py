"""No device is enrolled under the name of one of the core's roles: its certificate would have the core's rights."""

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.checking import check_file
from edge_agent.commands.root import app
from edge_agent.errors import ConfigError
from edge_agent.identity import enrol
from edge_agent.process import FILE_NAME, claim
from schemas.errors import IdError
from schemas.ids import DeviceId, enrolled_id, is_role_name
from tests.fakes.small_authority import documented_commands

ROLES = ("core", "models", "bridge-0", "bridge-17", "bridge-plant-a", "bridge-")
OTHERS = ("core-1", "score", "bridge", "bridges-0", "models-2", "a-bridge-0", "line-3")


@pytest.mark.parametrize("name", ROLES)
def test_a_role_name_is_refused_wherever_a_device_is_enrolled(name: str, tmp_path: Path) -> None:
    with pytest.raises(IdError, match="name of the core's own"):
        enrolled_id(name)
    with pytest.raises(IdError, match="name of the core's own"):
        enrol(DeviceId(name), tmp_path / "device.key", tmp_path / "device.csr")
    done = CliRunner().invoke(app, ["enrol", name, "--folder", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    with pytest.raises(ConfigError, match="give the device another"):
        claim(tmp_path, name, 0)
    assert list(tmp_path.iterdir()) == []
    config = tmp_path / "agent.toml"
    config.write_text(f'device = "{name}"\nstate_dir = "state"\n')
    assert [fault for fault in check_file(config).faults if "name of the core's own" in fault.message]


@pytest.mark.parametrize("name", ROLES)
def test_who_signs_refuses_it_too(name: str, tmp_path: Path) -> None:
    script = documented_commands("device").split("\n", 1)[0]
    done = subprocess.run(["sh", "-euc", script], env={"DEVICE": name}, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("name", OTHERS)
def test_names_that_are_like_a_role_s_are_a_device_s(name: str, tmp_path: Path) -> None:
    assert not is_role_name(name)
    assert enrolled_id(name) == name
    claim(tmp_path, name, 0)
    script = documented_commands("device").split("\n", 1)[0]
    subprocess.run(["sh", "-euc", script], env={"DEVICE": name}, check=True, capture_output=True)


def test_a_device_that_has_such_a_name_already_keeps_its_data(tmp_path: Path) -> None:
    assert DeviceId("bridge-7") == "bridge-7"  # what the lake and receipts hold of it is read as before
    claim(tmp_path, "bridge-7", 12)  # samples of before names were noted
    claim(tmp_path, "bridge-7", 0)
    assert (tmp_path / FILE_NAME).read_text() == "bridge-7"
