"""Logs stay short: old entries and names of removed files go, what people look back to stays, every fact is archived first."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.config import load_core_config
from pipelines.errors import ConfigError, CorruptLakeError, RefusedError
from pipelines.ingest.plan import read_plan
from pipelines.lake import delta_log
from pipelines.lake.commit import commit_once, live_sizes
from pipelines.lake.compact import compact_all
from pipelines.lake.delta_log import DeltaLogFile, KeepLog, LogKind, first_kept, log_files, read_removed, superfluous
from pipelines.lake.files import write_table_file
from pipelines.lake.lake import lake_at
from pipelines.maintenance.archive import archive_runs, archived_run
from pipelines.maintenance.log_trim import trim_log, trim_logs
from pipelines.maintenance.maintain import LogShortener, maintain, only_maintenance
from pipelines.maintenance.vacuum import Keep, Vacuum
from tests.fakes.lake_files import files, orphans
from tests.faults.deaths import Deaths
from tests.plant.core import Core, MakeEnvelope, MakeFrames

TELEMETRY, FRAMES = "streams/vehicle_telemetry", "streams/camera_frame"
NOTHING = Keep(0, 0, 0, 0, 0)
HOUR_S = 3_600


def entries(root: Path, table: str) -> list[int]:
    return [file.version for file in log_files(lake_at(root), table) if file.kind is LogKind.ENTRY]


def tombstones(root: Path, table: str) -> int:
    newest = [file for file in log_files(lake_at(root), table) if file.kind is LogKind.CHECKPOINT][-1]
    removes = pq.read_table(root / newest.name, columns=["remove.path"]).column(0)
    return len(removes) - int(removes.null_count)


def fill(root: Path, table: str, runs: range) -> None:
    for run in runs:
        rows = pa.table({"device": ["car-1"], "seq": pa.array([run], pa.int64())})
        commit_once(
            lake_at(root), table, [write_table_file(lake_at(root), table, f"{run:012d}-0.parquet", rows)], rows.schema, run
        )


def age(root: Path, table: str, hours: float, versions: range) -> None:
    for version in versions:
        path = root / table / "_delta_log" / f"{version:020d}.json"
        at_s = path.stat().st_mtime - hours * HOUR_S
        os.utime(path, (at_s, at_s))


@pytest.fixture
def lake(core: Core, envelope: MakeEnvelope, frames: MakeFrames) -> Any:
    """Six runs with rows of two streams."""
    for run in range(6):
        core.landing.seal([envelope(run * 10, 10), envelope(run * 3, 3, stream="camera_frame", body=frames(run * 3, 3))])
        core.run()
    return core


def test_a_log_of_many_commits_is_cut_and_the_table_reads_as_before(tmp_path: Path) -> None:
    fill(tmp_path, "streams/x", range(1, 71))
    before = DeltaTable(tmp_path / "streams/x")
    done = trim_log(lake_at(tmp_path), "streams/x", KeepLog(168 * HOUR_S, 10, 0), time.time() + 1)
    assert done is not None
    assert entries(tmp_path, "streams/x") == list(range(61, 71))
    after = DeltaTable(tmp_path / "streams/x")
    assert (after.version(), after.transaction_version("ingest")) == (before.version(), 70)
    assert live_sizes(after) == live_sizes(before)
    for version in range(61, 71):
        assert len(live_sizes(DeltaTable(tmp_path / "streams/x", version=version))) == version
    fill(tmp_path, "streams/x", range(71, 95))
    assert DeltaTable(tmp_path / "streams/x").to_pyarrow_table().num_rows == 94
    assert not commit_once(lake_at(tmp_path), "streams/x", [], pa.schema([("seq", pa.int64())]), 94)


def test_entries_go_by_age_too_and_none_within_the_grace(tmp_path: Path) -> None:
    fill(tmp_path, "streams/x", range(1, 31))
    now_s = (tmp_path / "streams/x/_delta_log" / f"{30:020d}.json").stat().st_mtime
    assert trim_log(lake_at(tmp_path), "streams/x", KeepLog(0, 1, 600), now_s) is None
    age(tmp_path, "streams/x", 200, range(12))
    assert trim_log(lake_at(tmp_path), "streams/x", KeepLog(168 * HOUR_S, 500, 600), now_s) is not None
    assert entries(tmp_path, "streams/x") == list(range(12, 31))


def test_a_checkpoint_holds_no_names_of_replaced_files_and_a_vacuum_still_knows_them(lake: Core) -> None:
    pinned = DeltaTable(lake.root / FRAMES).version()
    compact_all(lake_at(lake.root))
    trim_logs(lake_at(lake.root), KeepLog(168 * HOUR_S, 500, 600))
    assert tombstones(lake.root, FRAMES) == 0
    assert read_removed(lake_at(lake.root), FRAMES).num_rows == 6
    Vacuum(lake_at(lake.root), Keep(grace_s=0)).sweep()
    assert DeltaTable(lake.root / FRAMES, version=pinned).to_pyarrow_table().num_rows == 18
    maintain(lake_at(lake.root), NOTHING)
    assert len(list((lake.root / FRAMES).glob("*.parquet"))) == 1
    assert orphans(lake.root) == set()


def test_names_of_replaced_files_do_not_come_back_with_later_checkpoints(tmp_path: Path) -> None:
    fill(tmp_path, "streams/x", range(1, 11))
    write_deltalake(tmp_path / "streams/x", DeltaTable(tmp_path / "streams/x").to_pyarrow_table(), mode="overwrite")
    trim_log(lake_at(tmp_path), "streams/x", KeepLog(168 * HOUR_S, 500, 600), time.time())
    assert tombstones(tmp_path, "streams/x") == 0
    fill(tmp_path, "streams/x", range(11, 60))
    newest = max(file.version for file in log_files(lake_at(tmp_path), "streams/x") if file.kind is LogKind.CHECKPOINT)
    assert newest > 40
    assert tombstones(tmp_path, "streams/x") == 0


def test_a_checkpoint_by_which_the_table_reads_otherwise_is_taken_away_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "streams/x", range(1, 31))
    before = {file.name for file in log_files(lake_at(tmp_path), "streams/x")}
    monkeypatch.setattr(delta_log, "live_files_at", lambda *_: frozenset())
    with pytest.raises(CorruptLakeError, match="reads otherwise"):
        trim_log(lake_at(tmp_path), "streams/x", KeepLog(0, 1, 0), time.time() + 1)
    assert {file.name for file in log_files(lake_at(tmp_path), "streams/x")} == before
    assert DeltaTable(tmp_path / "streams/x").to_pyarrow_table().num_rows == 30


def test_a_log_with_checkpoints_of_another_form_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, "streams/x", range(1, 31))
    (tmp_path / "streams/x/_delta_log" / f"{20:020d}.checkpoint.0000000001.0000000002.parquet").write_bytes(b"half")
    assert trim_logs(lake_at(tmp_path), KeepLog(0, 1, 0)) == []
    assert entries(tmp_path, "streams/x") == list(range(31))


def test_a_hint_to_a_checkpoint_that_is_gone_does_not_keep_the_table_from_opening(tmp_path: Path) -> None:
    fill(tmp_path, "streams/x", range(1, 50))
    hint = tmp_path / "streams/x/_delta_log/_last_checkpoint"
    trim_log(lake_at(tmp_path), "streams/x", KeepLog(0, 1, 0), time.time() + 1)
    hint.write_text('{"version":19,"size":22}')
    assert DeltaTable(tmp_path / "streams/x").version() == 49
    hint.unlink()
    assert DeltaTable(tmp_path / "streams/x").version() == 49


def test_the_plan_of_what_stays_keeps_the_newest_a_suffix_and_what_is_pinned() -> None:
    def of(version: int, kind: LogKind = LogKind.ENTRY, at_s: float = 0) -> DeltaLogFile:
        return DeltaLogFile(f"{version}.{kind}", version, kind, 1, at_s)

    log = [of(version, at_s=float(version)) for version in range(10)]
    assert first_kept(log, KeepLog(1e9, 3, 0), 10) == 7
    assert first_kept(log, KeepLog(0, 3, 0), 10) == 9
    assert first_kept(log, KeepLog(0, 3, 5), 10) == 6
    assert first_kept(log, KeepLog(1e9, 100, 0), 10) is None
    assert first_kept([], KeepLog(0, 1, 0), 10) is None
    states = [of(3, LogKind.CHECKPOINT), of(5, LogKind.CHECKPOINT), of(7, LogKind.CHECKPOINT)]
    gone = superfluous([*log, *states], 7, [4])
    assert {(file.version, file.kind) for file in [*log, *states] if file not in gone} == {
        (3, LogKind.CHECKPOINT),
        (4, LogKind.ENTRY),
        (7, LogKind.CHECKPOINT),
        *((version, LogKind.ENTRY) for version in (7, 8, 9)),
    }
    with pytest.raises(ValueError, match="at least one"):
        KeepLog(0, 0, 0)


def archive(root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = DeltaTable(root / "archive").to_pyarrow_table().sort_by("run").to_pylist()
    return rows


def test_which_run_read_which_segments_by_which_rules_is_archived_once_before_plans_go(lake: Core) -> None:
    plans = {run: read_plan(lake_at(lake.root), run) for run in range(1, 7)}
    assert archive_runs(lake_at(lake.root)) == 6
    assert archive_runs(lake_at(lake.root)) == 0
    archived = [(row["run"], row["pins"], row["bridge"], row["segment"]) for row in archive(lake.root)]
    assert archived == [(run, plan.pins, "b0", run) for run, plan in plans.items() if plan is not None]
    for name in files(lake.root, "runs/00000000000[1-3].json"):
        (lake.root / name).unlink()
    maintain(lake_at(lake.root), NOTHING)
    assert archived_run(lake_at(lake.root)) == 6
    assert len(archive(lake.root)) == 6


@pytest.mark.slow
def test_no_plan_goes_before_it_is_archived(core: Core, envelope: MakeEnvelope) -> None:
    for run in range(25):
        core.landing.seal([envelope(run, 1)])
        core.run()
    Vacuum(lake_at(core.root), NOTHING).sweep()
    assert read_plan(lake_at(core.root), 1) is None
    assert [row["run"] for row in archive(core.root)] == list(range(1, 26))
    assert {row["segment"] for row in archive(core.root)} == set(range(1, 26))


def test_a_lake_whose_oldest_plans_are_gone_already_archives_the_others(lake: Core) -> None:
    (lake.root / "runs" / f"{1:012d}.json").unlink()
    assert archive_runs(lake_at(lake.root)) == 5
    assert [row["run"] for row in archive(lake.root)] == [2, 3, 4, 5, 6]
    assert archived_run(lake_at(lake.root)) == 6


def test_a_run_loop_shortens_the_logs_of_a_lake_that_nobody_maintains(lake: Core) -> None:
    shortener = LogShortener(lake_at(lake.root), replace(NOTHING, versions=2), long_log_entries=6, look_every_runs=3)
    before = {name: lake.table(name).num_rows for name in (TELEMETRY, FRAMES, "commits")}
    shortener.after_run(6)
    assert all(len(entries(lake.root, name)) <= 2 for name in (TELEMETRY, FRAMES, "commits"))
    assert {name: lake.table(name).num_rows for name in (TELEMETRY, FRAMES, "commits")} == before
    assert archived_run(lake_at(lake.root)) == 6


def test_a_log_that_is_short_enough_or_was_just_looked_at_is_left_to_maintenance(lake: Core) -> None:
    shortener = LogShortener(lake_at(lake.root), replace(NOTHING, versions=1), long_log_entries=8, look_every_runs=3)
    shortener.after_run(6)
    fill(lake.root, "commits", range(7, 10))
    shortener.after_run(8)
    assert len(entries(lake.root, "commits")) > 8
    with only_maintenance(lake_at(lake.root)):
        shortener.after_run(9)  # maintenance is at work already: it is left to that one
    assert len(entries(lake.root, "commits")) > 8
    shortener.after_run(12)
    assert len(entries(lake.root, "commits")) == 1


def test_maintenance_waits_for_a_loop_that_shortens_logs_and_is_not_refused(tmp_path: Path) -> None:
    lake, entered = lake_at(tmp_path), threading.Event()

    def maintains() -> None:
        with only_maintenance(lake):
            entered.set()

    with only_maintenance(lake, is_run_loop=True):
        other = threading.Thread(target=maintains)
        other.start()
        with pytest.raises(RefusedError), only_maintenance(lake, is_run_loop=True):
            pass
        assert not entered.is_set()
    other.join(30)
    assert entered.is_set()


@pytest.mark.slow
def test_maintenance_that_is_killed_archives_each_run_once_and_leaves_every_table_whole(lake: Core, deaths: Deaths) -> None:
    rows = {name: lake.table(name).num_rows for name in (TELEMETRY, FRAMES, "commits")}
    names: list[str] = []

    def check(name: str) -> None:
        names.append(name)
        assert {name: lake.table(name).num_rows for name in rows} == rows
        maintain(lake_at(lake.root), NOTHING)
        assert {name: lake.table(name).num_rows for name in rows} == rows
        assert [row["run"] for row in archive(lake.root)] == [1, 2, 3, 4, 5, 6]
        assert orphans(lake.root) == set()

    steps = deaths.steps("maintenance", _copy(lake.root))
    about = [place for place, name in enumerate(steps) if "archive" in name or "_delta_log" in name or "runs/removed" in name]
    assert len(about) > 60
    deaths.at_each("maintenance", lake.root, slice(about[0], about[-1] + 1, max(1, len(about) // 6)), check)
    assert names


def _copy(root: Path) -> Path:
    import shutil

    there = root.with_name("copy")
    shutil.copytree(root, there)
    return there


def test_a_core_that_would_keep_no_version_is_refused_with_the_key(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_text("[maintain]\nkeep_versions = 0")
    with pytest.raises(ConfigError, match="keep_versions is at least 1"):
        load_core_config(path)
