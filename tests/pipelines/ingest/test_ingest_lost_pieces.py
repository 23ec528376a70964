"""Pieces of a lake that somebody took away, put back too old, or changed with other tools: told, and nothing lost in silence."""

import shutil
from typing import Any

import pytest
from deltalake import DeltaTable, TableFeatures, write_deltalake

from catchment.runtime.clock import SystemClock
from pipelines.bridge.landing import Landing, resume_number
from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.compact import compact_table
from pipelines.lake.lake import lake_at
from pipelines.lake.rollup import roll_up_all
from tests.plant.core import Core, MakeEnvelope

STREAM = "streams/vehicle_telemetry"


def run_each(core: Core, *envelopes: Any) -> None:
    for each in envelopes:
        core.landing.seal([each])
        core.run()


def test_a_lake_without_its_commits_does_not_begin_anew_over_its_tables(core: Core, envelope: MakeEnvelope) -> None:
    run_each(core, *(envelope(10 * n) for n in range(3)))
    shutil.rmtree(core.root / "commits")
    core.landing.seal([envelope(30)])
    with pytest.raises(CorruptLakeError, match=r"commits/ ends at run 0, .*vehicle_telemetry/ holds run 3 already"):
        core.run()


def test_commits_put_back_from_an_older_copy_are_noticed(core: Core, envelope: MakeEnvelope) -> None:
    run_each(core, envelope(0))
    shutil.copytree(core.root / "commits", core.root.parent / "copy")
    run_each(core, envelope(10), envelope(20))
    shutil.rmtree(core.root / "commits")
    shutil.copytree(core.root.parent / "copy", core.root / "commits")
    with pytest.raises(CorruptLakeError, match="put back"):
        core.run()


def test_a_segment_that_was_taken_away_is_passed_over_with_a_word_and_not_waited_for(core: Core, envelope: MakeEnvelope) -> None:
    lost = [core.landing.seal([envelope(10 * n)]) for n in range(3)]
    core.landing.seal([envelope(30)])
    for path in lost[1:]:
        path.unlink()
    loop = core.run()
    assert loop.segments_skipped == 2
    assert [(row["stage"], row["count"]) for row in core.rows("quarantine")] == [("landing", 0)] * 2
    run_each(core, envelope(10, 20))
    assert sorted(row["seq"] for row in core.rows(STREAM)) == list(range(40))


def test_a_bridge_whose_landing_folder_is_gone_goes_on_where_the_runs_wait(core: Core, envelope: MakeEnvelope) -> None:
    run_each(core, *(envelope(10 * n) for n in range(2)))
    shutil.rmtree(core.root / "landing")
    folder = core.root / "landing" / core.landing.bridge
    landing = Landing(folder, 10**6, 10**6, SystemClock(), first_number=resume_number(core.root, core.landing.bridge))
    landing.append([envelope(20)])
    landing.close()
    core.run()
    assert core.table(STREAM).num_rows == 30
    assert resume_number(core.root, "another") == 1


def test_files_that_another_tool_rewrote_are_compacted_with_ours(core: Core, envelope: MakeEnvelope) -> None:
    run_each(core, envelope(0))
    write_deltalake(core.root / STREAM, DeltaTable(core.root / STREAM).to_pyarrow_table(), mode="overwrite")
    run_each(core, envelope(10))
    before = core.table(STREAM).sort_by("seq")
    assert compact_table(lake_at(core.root), STREAM, min_files=2) is not None
    assert len(DeltaTable(core.root / STREAM).file_uris()) == 1
    assert core.table(STREAM).sort_by("seq").equals(before)


def test_a_feature_that_another_tool_switched_on_is_named_by_maintenance(core: Core, envelope: MakeEnvelope) -> None:
    run_each(core, envelope(0))
    DeltaTable(core.root / STREAM).alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
    run_each(core, envelope(10))
    with pytest.raises(RefusedError, match=r"vehicle_telemetry/?: .*deletionVectors"):
        roll_up_all(lake_at(core.root))
