"""A whole plant for each end-to-end test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plant.broker import RunningBroker
from tests.plant.programs import Plant


@pytest.fixture
def plant(broker: RunningBroker, tmp_path: Path) -> Iterator[Plant]:
    """A plant on a broker of its own; everything that it started is killed at the end."""
    folder = tmp_path / "plant"
    folder.mkdir()
    made = Plant(folder, broker)
    made.write_core()
    yield made
    for name in list(made.running):
        made.kill(name)
