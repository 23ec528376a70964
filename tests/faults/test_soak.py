"""The soak, as CI runs it; `make soak` runs the long one."""

from pathlib import Path

import pytest

from tests.faults.soak import soak


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hundred_kills_of_agent_broker_and_bridge_neither_lose_nor_double_nor_change_a_sample(
    broker: object, tmp_path: Path
) -> None:
    figures = soak(tmp_path, samples=200_000, kills=100, seed=1)
    print(figures)  # noqa: T201 # the figures
    assert (figures["lost"], figures["double"], figures["wrong"]) == (0, 0, 0), figures
    assert figures["is_balanced"], figures
    assert (figures["captured"], figures["settled"], figures["spooled"], figures["dropped"]) == (200_000, 200_000, 0, {}), figures
    assert sum(figures["kills"].values()) == 100
