"""A stream of committed rows, made the way runs make it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.contracts.arrow import table_schema
from pipelines.lake.commit import commit_once
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import lake_at
from pipelines.policy.engine import Tagger
from schemas.contract import builtin_contract
from schemas.policy import Policy

CONTRACT = builtin_contract("vehicle_telemetry")
TABLE = "streams/vehicle_telemetry"


def vehicle_table(count: int, run: int, policies: list[Policy]) -> pa.Table:
    pick = np.random.default_rng(run)
    times = pa.array(np.arange(count) * 100_000 + 1_790_000_000_000_000).cast(pa.timestamp("us", "UTC"))
    known = {
        "device": pa.array([f"car-{index % 3}" for index in range(count)], pa.string()),
        "epoch": pa.repeat(pa.scalar(7, pa.int64()), count),
        "seq": pa.array(np.arange(count) + run * 1_000_000),
        "event_time": times,
        "received_at": times,
        "run": pa.repeat(pa.scalar(run, pa.int64()), count),
        "contract_version": pa.repeat(pa.scalar(CONTRACT.version), count),
        "speed_mps": pa.array(pick.uniform(0, 40, count), mask=pick.random(count) < 0.1),
        "yaw_rate_dps": pa.array(pick.normal(0, 10, count)),
    }
    schema = table_schema(CONTRACT)
    for field in schema:
        known.setdefault(field.name, pa.nulls(count, field.type))
    known["tags"], known["tag_rules"] = Tagger.compile(policies, CONTRACT).tag(pa.table(known))
    return pa.table([known[name] for name in schema.names], schema=schema)


@pytest.fixture
def commit_rows(tmp_path: Path) -> Callable[..., Path]:
    """Commits run `run` of `count` vehicle rows, tagged by `policies`; gives the lake root."""

    def commit(run: int, count: int = 1_000, policies: tuple[Policy, ...] = ()) -> Path:
        root = tmp_path / "lake"
        root.mkdir(exist_ok=True)
        written = write_table_file(lake_at(root), TABLE, f"{run:012d}-0.parquet", vehicle_table(count, run, list(policies)))
        commit_once(lake_at(root), TABLE, [written], table_schema(CONTRACT), run)
        return root

    return commit
