"""What each run looks like is kept once, and drift is told against earlier runs."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.commands.contract import contract_app
from pipelines.contracts.registry import ContractSet
from pipelines.lake.lake import lake_at
from pipelines.quality.profile import NULLS, bounds_of, drift
from pipelines.quality.store import keep_quality, read_quality
from tests.fakes.run_core import RunCore
from tests.plant.core import Core, MakeEnvelope

DOCUMENT = """
apiVersion: v3.2.0
kind: DataContract
id: urn:test:drive
version: 1.0.0
status: active
schema:
- name: drive
  logicalType: object
  properties:
  - {name: speed, logicalType: number, logicalTypeOptions: {minimum: 0}}
  - {name: gear, logicalType: string}
  - {name: trip, logicalType: integer, unique: true}
  - {name: lat, logicalType: number, customProperties: [{property: pii, value: location}]}
  quality:
  - {name: sane, type: custom, engine: catchment, implementation: speed / (trip - 3) < 1000}
"""
FAST = "id: fast\nstreams: [drive]\nrules:\n  - {tag: fast, when: speed > 30}\n"


@dataclass(frozen=True)
class Drive:
    """A lake of one stream, and a run of it: its number, and the mean of its speeds."""

    core: Core
    run: Callable[[int, float], None]


@pytest.fixture
def drive(core: Core, envelope: MakeEnvelope, tmp_path: Path) -> Drive:
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "drive.odcs.yaml").write_text(DOCUMENT)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "fast.yaml").write_text(FAST)
    (tmp_path / "core.toml").write_text(f'lake = "{core.root}"\ncontracts = "contracts"\npolicies = "policies"\n')
    core.config = type(core.config)(
        lake=str(core.root), contracts=str(tmp_path / "contracts"), policies=str(tmp_path / "policies")
    )
    pick = random.Random(4)

    def run(number: int, mean: float) -> None:
        rows = [
            {"event_time": "2026-09-01T00:00:00Z", "speed": max(0.0, pick.gauss(mean, 4)), "gear": pick.choice("DDDN"),
             "trip": n % 40, "lat": 48.0, **({"speed": -1.0} if n == 49 else {"speed": None} if n % 10 == 1 else {})}
            for n in range(50)
        ]  # fmt: skip
        body = json.dumps(rows).encode()
        core.landing.seal([envelope(number * 50, 50, stream="drive", body=body, content_type="application/json")])
        core.run()

    return Drive(core, run)


def test_every_run_is_kept_once_and_drift_is_reported_by_column(drive: Drive, tmp_path: Path) -> None:
    for number in range(3):
        drive.run(number, 20.0)
    contract = ContractSet.load(str(tmp_path / "contracts")).get("drive", None)
    assert contract is not None
    assert keep_quality(lake_at(drive.core.root), contract) == 3
    assert keep_quality(lake_at(drive.core.root), contract) == 0
    drive.run(3, 34.0)
    run = CliRunner().invoke(contract_app, ["quality", "drive", "-c", str(tmp_path / "core.toml"), "--runs", "1", "--json"])
    assert run.exit_code == 0, run.output
    document = json.loads(run.output)
    lines = {line["column"]: line for line in document["columns"]}
    assert (document["runs"], document["reference"]) == ([4], [1, 2, 3])
    assert {name: line["reading"] for name, line in lines.items()} == {
        "*": "", "speed": "drifted", "gear": "stable", "trip": "stable", "lat": "stable", "tags": "drifted",
        "quality rule sane": "stable",
    }  # fmt: skip
    assert (lines["*"]["rows"], lines["*"]["refused"]) == (49, 1)
    assert (lines["speed"]["nulls"], lines["trip"]["repeated"], lines["tags"]["most"]) == (5, 9, "fast")
    assert (lines["lat"]["minimum"], lines["trip"]["maximum"]) == (None, 39.0)
    assert lines["quality rule sane"]["errors"] == 2
    kept = read_quality(lake_at(drive.core.root), "drive")
    assert kept["run"].unique().to_list() == [1, 2, 3, 4]
    reasons = kept.filter(column="*")["bins"].to_list()
    assert all("speed: below the minimum" in bins[0]["bin"] for bins in reasons)


def test_a_run_tells_for_how_many_rows_each_of_its_tagging_rules_failed(drive: Drive, tmp_path: Path) -> None:
    policy = tmp_path / "policies" / "steep.yaml"
    policy.write_text("id: steep\nstreams: [drive]\nrules:\n  - {tag: steep, when: speed / (trip - 3) > 5}\n")
    drive.run(0, 20.0)
    policy.write_text("id: steep\nstreams: [drive]\nrules:\n  - {tag: steep, when: speed / trip > 5}\n")
    drive.run(1, 20.0)
    contract = ContractSet.load(str(tmp_path / "contracts")).get("drive", None)
    assert contract is not None
    assert keep_quality(lake_at(drive.core.root), contract) == 2
    kept = read_quality(lake_at(drive.core.root), "drive").filter(column="tag rule steep: steep")
    rows = [(line["run"], line["rows"], line["nulls"], line["errors"]) for line in kept.to_dicts()]
    assert [(run, count) for run, count, _, _ in rows] == [(1, 49), (2, 49)]
    assert [errors for _, _, _, errors in rows] == [2, 2]  # trip is 3 twice; 0 twice
    assert all(nulls >= errors for _, _, nulls, errors in rows)
    shown = CliRunner().invoke(contract_app, ["quality", "drive", "-c", str(tmp_path / "core.toml"), "--json"])
    lines = {line["column"]: line for line in json.loads(shown.output)["columns"]}
    assert lines["tag rule steep: steep"]["errors"] == 4


def test_the_command_fails_above_a_bound_and_shows_a_table(drive: Drive, tmp_path: Path, run_core: RunCore) -> None:
    drive.run(0, 20.0)
    drive.run(1, 40.0)
    command = ["quality", "drive", "-c", str(tmp_path / "core.toml"), "--runs", "1"]
    assert CliRunner().invoke(contract_app, [*command, "--fail-above", "0.25"]).exit_code == 1
    shown = CliRunner().invoke(contract_app, [*command, "--reference", "1..1"])
    assert (shown.exit_code, "drifted" in shown.output) == (0, True)
    assert run_core("contract", *command, "--reference", "one").code == 2
    assert run_core("contract", "quality", "nothing", "-c", str(tmp_path / "core.toml")).code == 3


def test_the_index_is_nought_for_equal_spreads_and_grows_with_the_distance() -> None:
    same = {str(5_000 + n): 100 for n in range(20)}
    assert drift(same, same, is_numeric=True).psi == 0  # type: ignore[union-attr]
    moved = [drift(same, {str(5_000 + n + step): 100 for n in range(20)}, is_numeric=True) for step in (1, 3, 9)]
    values = [each.psi for each in moved if each is not None]
    assert values == sorted(values)
    assert values[-1] > 0.25
    nulls = drift({"a": 90, NULLS: 10}, {"a": 10, NULLS: 90}, is_numeric=False)
    assert nulls is not None
    assert nulls.reading == "drifted"
    assert drift({}, same, is_numeric=True) is None


def test_a_bin_is_reported_as_numbers() -> None:
    assert (bounds_of("0"), bounds_of("5000"), bounds_of("-5004")) == ("0", "1 to 1.19", "-2.38 to -2")
