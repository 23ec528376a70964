"""A core that publishes models, and a device that takes them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import model_repository as fake


@pytest.fixture
def core(tmp_path: Path) -> "fake.Core":
    return fake.Core(tmp_path / "core")


@pytest.fixture
def device(core: "fake.Core", tmp_path: Path) -> Iterator["fake.Device"]:
    device = fake.Device(core, tmp_path / "state")
    yield device
    device.close()
