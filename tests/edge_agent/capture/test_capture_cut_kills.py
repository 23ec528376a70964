"""A log that is copied and cut under a real agent's source, with SIGKILLs at any moment: each row once."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.edge_agent.capture.test_capture_zeek_kills import _child, _stored, _until_looked, _until_stored
from tests.fakes.log_writer import CutWriter


@pytest.mark.slow
@pytest.mark.parametrize("appends", [True, False], ids=["append", "own place"])
def test_copy_and_cut_with_packing_and_sigkill_at_any_moment_gives_each_row_once(tmp_path: Path, appends: bool) -> None:
    log, spool_dir = tmp_path / "conn.log", tmp_path / "spool"
    dice = random.Random(7)
    writer = CutWriter(log, appends=appends, buffer=100)
    child = _child(spool_dir, log)
    _until_looked(spool_dir)  # what was rotated before the first look is old, and left alone
    kills = rotations = 0
    while writer.n < 1_500:
        writer.rows(dice.randrange(10, 120), pad=dice.randrange(60))
        time.sleep(dice.choice([0, 0.01, 0.2]))
        if dice.random() < 0.4:
            rotations += 1
            writer.rotate()
            if dice.random() < 0.4:
                writer.pack(dice.choice(["gz", "zst"]))
        if dice.random() < 0.3:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            child = _child(spool_dir, log)
    writer.close()
    _until_stored(spool_dir, writer.n)
    child.kill()
    child.wait()
    assert kills >= 3
    assert rotations >= 5
    assert sorted(_stored(spool_dir)) == sorted(writer.written)
