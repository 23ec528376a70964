"""A core that publishes models, and a device that takes them."""

from pathlib import Path

import pytest

from tests.fakes import model_repository as fake


@pytest.fixture
def core(tmp_path: Path) -> "fake.Core":
    return fake.Core(tmp_path / "core")


@pytest.fixture
def device(core: "fake.Core", tmp_path: Path) -> "fake.Device":
    return fake.Device(core, tmp_path / "state")
