"""Promise 4 for runs: end the process at any durable step, start again, and every sample is one row."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.upkeep.vacuum import Keep, Vacuum
from tests.fakes.inventory import every_file, referenced

SCRIPT = Path(__file__).with_name("dies_at_step.py")
ROOT = Path(__file__).resolve().parents[3]
# The parts let the test's workers share the steps: every fourth in CI, all of them if thorough (`make core-kills`).
PARTS = 2
STRIDE = 1 if os.environ.get("CATCHMENT_THOROUGH") else 4


def start(lake: Path, dies_at: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(lake), str(dies_at)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def fill(core: Any, envelope: Any) -> None:
    core.landing.seal([envelope(0, 10), envelope(5, 10), envelope(15, 5, body=b"garbage")])
    core.landing.seal([envelope(0, 10, device="car-2")])


def check(core: Any) -> None:
    loop = core.run()
    rows = sorted((row["device"], row["seq"]) for row in core.rows("streams/vehicle_telemetry"))
    assert rows == [("car-1", seq) for seq in range(15)] + [("car-2", seq) for seq in range(10)]
    assert sum(row["count"] for row in core.rows("quarantine")) == 5
    assert len(core.rows("commits")) == loop.ledger.run == 1
    assert not loop.ledger.unbalanced()
    books = loop.ledger.books["car-1", "vehicle_telemetry"]
    assert (books.received, books.committed, books.quarantined, books.duplicate) == (25, 15, 5, 5)
    assert len(core.mailbox.messages) == 2
    Vacuum(core.root, Keep(0, 0, 0, 0, 0)).sweep()
    assert every_file(core.root) == referenced(core.root)


def crash_and_check(core: Any, pristine: Path, steps: list[int]) -> None:
    for dies_at in steps:
        shutil.rmtree(core.root)
        shutil.copytree(pristine, core.root)
        died = start(core.root, dies_at)
        assert died.returncode == 137, (dies_at, died.stderr)
        check(core)


@pytest.fixture
def pristine(core: Any, envelope: Any, tmp_path: Path) -> Path:
    fill(core, envelope)
    shutil.copytree(core.root, tmp_path / "pristine")
    return tmp_path / "pristine"


def test_a_run_that_dies_early_or_late_ends_with_every_sample_once(core: Any, pristine: Path) -> None:
    crash_and_check(core, pristine, [5, 25, 60, 100])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(1, PARTS + 1))
def test_a_run_that_dies_at_any_durable_step_ends_with_every_sample_once(core: Any, pristine: Path, first: int) -> None:
    whole = start(core.root, 0)
    steps = int(whole.stdout.split()[-1])
    assert steps > 40
    crash_and_check(core, pristine, list(range(1, steps + 1, STRIDE))[first - 1 :: PARTS])
