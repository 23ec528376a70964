"""A contract's retention is not enforced yet: every process that could says so when it starts."""

import signal
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from pipelines.commands import supervisor
from pipelines.commands.maintenance import maintain
from pipelines.commands.root import app
from pipelines.config import CoreConfig, RunConfig
from pipelines.contracts.odcs import to_odcs
from pipelines.contracts.registry import ContractSet, requested_retention, warn_of_retention
from pipelines.ingest.loop_process import run_loop
from schemas.contract import Column, ColumnType, Contract

TRIP = Contract("trip", "1.0.0", (Column("speed", ColumnType.FLOAT64),), retention_days=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    there = tmp_path / "contracts"
    there.mkdir()
    (there / "trip.odcs.yaml").write_text(to_odcs(TRIP))
    (tmp_path / "core.toml").write_text(f'lake = "{tmp_path / "lake"}"\ncontracts = "{there}"\n')
    return there


def warned(logs: Any) -> list[dict[str, int]]:
    found = [line for line in logs if line["event"] == "retention_not_enforced"]
    assert all(line["log_level"] == "warning" for line in found)
    return [line["days_by_stream"] for line in found]


def test_the_run_loop_says_at_its_start_which_retention_nothing_enforces(folder: Path, tmp_path: Path) -> None:
    config = CoreConfig(lake=str(tmp_path / "lake"), contracts=str(folder), run=RunConfig(worker_processes=0))
    with capture_logs() as logs:
        run_loop(config, Event(), SystemClock(), once=True)
    (days,) = warned(logs)
    assert days["trip"] == 7


def test_maintenance_says_so_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with capture_logs() as logs:
        maintain(tmp_path / "core.toml")
    assert [days["trip"] for days in warned(logs)] == [7]
    assert folder.is_dir()


def test_up_says_so_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "supervise", lambda *_arguments, **_named: 0)
    with capture_logs() as logs:
        done = CliRunner().invoke(app, ["up", "-c", str(tmp_path / "core.toml")])
    assert done.exit_code == 0, done.output
    assert [days["trip"] for days in warned(logs)] == [7]
    assert folder.is_dir()


def test_the_newest_contract_of_each_stream_counts_and_none_is_no_warning() -> None:
    later = msgspec.structs.replace(TRIP, version="1.1.0", retention_days=None)
    assert requested_retention(ContractSet((TRIP,))) == {"trip": 7}
    assert requested_retention(ContractSet((TRIP, later))) == {}


def test_a_broken_folder_is_left_for_others_to_report(folder: Path) -> None:
    (folder / "broken.odcs.yaml").write_text("no: contract")
    assert warn_of_retention(str(folder)) == {}
