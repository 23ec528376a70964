"""A program that tells its position goes on after it, whatever killed whom."""

import sys
from typing import cast

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SourceEndedError, SourceError
from edge_agent.sources.registry import GuardedSource, build_source
from schemas.contract import builtin_contract

TELEMETRY = builtin_contract("vehicle_telemetry")
COUNTS = """
import json, os
start = int(os.environ.get("CATCHMENT_RESUME_POSITION", -1)) + 1
for n in range(start, 200):
    print(json.dumps({"speed_mps": float(n), "event_time": n, "resume_position": str(n)}), flush=True)
    if n - start == 60:
        os.kill(os.getpid(), 9)
"""


def start(program: str, position: bytes | None) -> GuardedSource:
    return build_source("exec", {"command": [sys.executable, "-c", program]}, TELEMETRY, SystemClock(), position)


def test_a_program_killed_again_and_again_neither_skips_nor_repeats() -> None:
    seen: list[float] = []
    position, kills = None, 0
    while True:
        source = start(COUNTS, position)
        try:
            while True:
                batch = source.read(7)
                if batch is not None:
                    seen += [cast("float", speed) for speed in batch.columns["speed_mps"]]
                    position = batch.position
        except SourceEndedError:
            break
        except SourceError:
            kills += 1
        finally:
            source.close()
    assert seen == [float(n) for n in range(200)]
    assert kills == 3


@pytest.mark.parametrize("cell", ["7", "null", '"a\\u0000b"', '"' + "x" * 5000 + '"'])
def test_a_position_that_is_none_is_counted_and_the_sample_kept(cell: str) -> None:
    source = start(f"print('{{\"speed_mps\": 1.0, \"resume_position\": ' + {cell!r} + '}}')", None)
    batch = None
    while batch is None:
        batch = source.read(10)
    assert batch.columns["speed_mps"] == [1.0]
    assert batch.position is None
    assert sum(source.rejected.values()) == 1
    source.close()


def test_a_program_that_tells_no_position_finds_none() -> None:
    source = start("import os; print('{\"speed_mps\": %d}' % ('CATCHMENT_RESUME_POSITION' in os.environ))", None)
    batch = None
    while batch is None:
        batch = source.read(10)
    assert batch.columns["speed_mps"] == [0.0]
    source.close()
