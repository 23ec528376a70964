"""The soak, as CI runs it; `make soak` runs the long one."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.soak import is_true, soak


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_of_agent_broker_bridge_and_run_loop_neither_lose_nor_double_nor_change_a_sample(
    broker: object, kills: Callable[[int], None], tmp_path: Path
) -> None:
    figures = soak(tmp_path, samples=200_000, kills=100, seed=1)
    sys.stdout.write(f"{figures}\n")
    assert is_true(figures), figures
    assert sum(figures["kills"].values()) == 100
    assert set(figures["kills"]) == {"agent", "broker", "bridge", "run"}
    kills(100)
