"""Power cuts: whatever of its unsynced writes a disk kept, the spool opens, and holds all it was promised and nothing else."""

import os
from pathlib import Path

import pytest

from tests.faults import call_faults, opening_faults, powercut
from tests.faults.shim import COMPILER_MISSING, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason=COMPILER_MISSING)
IN_ALL = 20_000
SHARES = 8
PARTS = 8


@pytest.mark.slow
def test_after_hundreds_of_power_cuts_nothing_acknowledged_is_lost_nothing_invented_nothing_double() -> None:
    done = powercut.in_a_process(seed=1, wanted=250)
    assert done["states"] >= 200
    assert done["promises"] > 50


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("share", range(SHARES))
def test_after_thousands_of_power_cuts_nothing_acknowledged_is_lost_nothing_invented_nothing_double(share: int) -> None:
    """All shares together are 20,000 states; `make power-cuts` tries 100,000."""
    wanted = IN_ALL // SHARES
    states = 0
    for seed in range(1_000 * (share + 1), 1_000 * (share + 1) + 20):
        done = powercut.in_a_process(seed, max(100, wanted - states))
        states += done["states"]
        if states >= wanted:
            return
    pytest.fail(f"only {states} states")


@pytest.mark.slow
def test_a_spool_that_does_not_sync_would_be_caught(tmp_path: Path) -> None:
    """The simulator is no rubber stamp: without the syncs of body files it must find a loss."""
    with pytest.raises(AssertionError, match=r"No such file|body differs|invented"):
        powercut.in_a_process(seed=3, wanted=250, sabotage="bodies")
    with pytest.raises(AssertionError, match=r"lost: |resumes at"):
        powercut.in_a_process(seed=3, wanted=250, sabotage="database")


@pytest.mark.parametrize(("mode", "stride"), [("exit", 17), ("io-error", 89), ("no-space", 89), ("short", 89), ("sync-error", 9)])
def test_a_call_that_fails_or_ends_the_process_costs_nothing_that_was_acknowledged(mode: str, stride: int) -> None:
    assert "0 lost, 0 damaged" in call_faults.in_a_process(mode, stride)


@pytest.mark.parametrize(("database_is", "stride"), [("sound", 1), ("damaged", 7)])
@pytest.mark.parametrize("mode", ["no-space", "io-error"])
def test_a_start_on_a_disk_that_refuses_leaves_all_to_the_next_start(mode: str, database_is: str, stride: int) -> None:
    assert "nothing lost" in opening_faults.in_a_process(mode, database_is, stride)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("part", range(PARTS if os.environ.get("CATCHMENT_THOROUGH") == "1" else 1))
@pytest.mark.parametrize("mode", list(call_faults.MODES))
def test_every_single_call_may_fail_or_end_the_process(mode: str, part: int) -> None:
    """Each write, sync, truncation and name of the workload, one at a time. One part of eight in CI, all if thorough."""
    assert "0 lost, 0 damaged" in call_faults.in_a_process(mode, stride=PARTS, first=part + 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["no-space", "io-error"])
def test_a_disk_that_refuses_for_a_while_costs_nothing_that_was_acknowledged(mode: str) -> None:
    assert "0 lost, 0 damaged" in call_faults.in_a_process(mode, stride=193, many=60)
