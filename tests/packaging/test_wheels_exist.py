"""A device without a compiler can install the agent: every locked package is there ready-made."""

import subprocess
import sys
from pathlib import Path

import pytest

EXIT_RETRY = 75
WANTED = [(python, machine) for python in ("3.11", "3.12", "3.13") for machine in ("aarch64", "x86_64")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("python", "machine"), WANTED)
def test_every_locked_package_of_the_agent_has_a_wheel(repository_root: Path, python: str, machine: str) -> None:
    command = [sys.executable, str(repository_root / "scripts/check_wheels.py"), "--python", python, "--machine", machine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_RETRY:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


def test_a_package_without_a_wheel_is_named(repository_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of an index that has nothing at all, it names what is missing and does not call it a broken network."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    command = [sys.executable, str(repository_root / "scripts/check_wheels.py"), "--python", "3.13", "--machine", "riscv64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No matching distribution found for annotated-doc" in done.stderr
