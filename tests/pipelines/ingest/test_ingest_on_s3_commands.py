# ruff: noqa: F401, F811  # fixtures of a neighbour
"""The commands on a lake in a bucket: maintenance, policies, quarantine, books. The server is real."""

import json
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from pipelines import heartbeat
from pipelines.bridge.landing import RemoteLanding
from pipelines.commands.root import app
from pipelines.config import RunConfig
from pipelines.errors import NotFoundError, RefusedError
from pipelines.heartbeat import Heartbeats, ProcessHealth
from pipelines.ingest.loop import load_state
from pipelines.ingest.quarantine import DISCARD, Request, look_again, open_requests, write_request
from pipelines.lake.books import EpochKey
from pipelines.lake.compact import compact_all
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from pipelines.lake.quarantined import Where, heads
from pipelines.lake.remote import bind
from pipelines.lake.rollup import roll_up_all
from pipelines.maintenance.maintain import only_maintenance
from pipelines.maintenance.vacuum import Keep, Vacuum
from pipelines.policy.documents import active_policies, newest_number
from pipelines.policy.edge import numbered_policy
from pipelines.status.health import assess
from pipelines.status.survey import survey
from pipelines.training.open import open_set
from schemas.edge_policy import EdgeAction, EdgeRule
from schemas.ranges import Ranges
from tests.pipelines.ingest.test_ingest_on_s3 import RemoteCore, core, make_core, s3
from tests.plant.core import MakeEnvelope, MakeFrames

TELEMETRY, FRAMES = "streams/vehicle_telemetry", "streams/camera_frame"
POLICY = """
id: drive
streams: [vehicle_telemetry]
rules:
  - tag: fast
    when: speed_mps > {speed}
"""


def configured(core: RemoteCore, folder: Path, more: str = "") -> str:
    """A configuration of a machine that has seen nothing of the lake yet."""
    template = core.remote.config
    path = folder / "core.toml"
    path.write_text(
        f'lake = "elsewhere"\n{more}\n[remote]\nurl = "{template.url}"\nendpoint = "{template.endpoint}"\nclaim_s = 1\n',
        encoding="utf-8",
    )
    return str(path)


def run_command(*words: str) -> Any:
    with patch.object(sys, "argv", ["catchment", *words]):
        done = CliRunner().invoke(app, [*words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1]) if "--json" in words else done.stdout


def names(core: RemoteCore, folder: str, suffix: str = ".parquet") -> set[str]:
    return {file.name for file in core.remote.listed(folder) if file.name.endswith(suffix)}


def check(core: RemoteCore) -> None:
    """Every row once, every payload where its row says."""
    assert sorted(row["seq"] for row in core.rows(TELEMETRY)) == list(range(20))
    held = core.rows(FRAMES)
    assert len(held) == 6
    for row in held:
        read_payload(lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"])


@pytest.fixture
def filled(core: RemoteCore, envelope: MakeEnvelope, frames: MakeFrames) -> RemoteCore:
    """Two runs with rows of two streams."""
    core.pull = lambda: None  # type: ignore[method-assign]  # payloads stay in the bucket
    core.config = msgspec.structs.replace(core.config, run=RunConfig(max_segments=1))
    for run in range(2):
        core.landing.seal([envelope(run * 10, 10), envelope(run * 3, 3, stream="camera_frame", body=frames(run * 3, 3))])
    core.run()
    return core


@pytest.mark.slow
def test_a_bucket_is_compacted_vacuumed_and_run_on_and_every_row_and_payload_is_there(
    filled: RemoteCore, envelope: MakeEnvelope, tmp_path: Path
) -> None:
    config = configured(filled, tmp_path, "[maintain]\nkeep_versions_h = 0\nkeep_landing_h = 0\nkeep_objects_h = 0")
    elsewhere = tmp_path / "elsewhere"
    assert run_command("compact", "-c", config, "--json") == []  # not worth it, and the folder is a working copy now
    small = names(filled, TELEMETRY) | names(filled, "payload")
    assert len(small) == 4
    with only_maintenance(lake_at(elsewhere)):
        roll_up_all(lake_at(elsewhere))
        done = {one.table: one for one in compact_all(lake_at(elsewhere), 2)}
    assert (done[FRAMES].files_before, done[FRAMES].files_after) == (2, 1)
    check(filled)
    assert small < names(filled, TELEMETRY) | names(filled, "payload")  # for who reads an older version
    filled.remote.put(f"{FRAMES}/000000000001-9.parquet", b"left by a crash")
    filled.remote.put("payload/camera_frame/000000000001-9.parquet", b"left by a crash")
    filled.remote.put("objects/" + "a" * 64, b"no row tells of it")
    would = run_command("vacuum", "-c", config, "--now", "--dry-run", "--json")
    deleted = run_command("vacuum", "-c", config, "--now", "--json")
    assert would == deleted
    assert {"payload_shards": 3, "segments": 2, "objects": 1}.items() <= {row["kind"]: row["files"] for row in deleted}.items()
    assert len(names(filled, TELEMETRY)) == len(names(filled, "payload")) == 1
    assert not names(filled, "landing", ".arrows")
    check(filled)
    assert not [path for path in elsewhere.rglob("*") if path.suffix in {".parquet", ".arrows", ".tmp"}]
    build_and_bring(filled, config, elsewhere, tmp_path)
    # A bridge whose disk and landed segments are gone must not begin below the runs' cursor.
    assert RemoteLanding(lake_at(elsewhere), filled.landing.bridge).next_number() == 3
    filled.landing.seal([envelope(30, 10)])
    filled.run()
    assert sorted(row["seq"] for row in filled.rows(TELEMETRY)) == [*range(20), *range(30, 40)]
    assert sum(row["count"] for row in filled.rows("rollups/vehicle_telemetry") if row["column"] == "speed_mps") == 20
    filled.landing.seal([envelope(40, 10)])
    check_reports(config)


def build_and_bring(core: RemoteCore, config: str, elsewhere: Path, tmp_path: Path) -> None:
    """A set that is built on one machine is read on another, picture for picture."""
    built = run_command("set", "build", "views", "--from", "camera_frame", "--split", "train=1", "-c", config, "--json")
    shutil.rmtree(elsewhere / "sets" / "views" / "1")
    assert (
        run_command("set", "build", "views", "--from", "camera_frame", "--split", "train=1", "-c", config, "--json")["version"]
        == 2
    )
    third = tmp_path / "third"
    third.mkdir()
    config = configured(core, third)
    assert [(one["version"], one["rows"]) for one in run_command("set", "ls", "-c", config, "--json")] == [(1, 6), (2, 6)]
    assert run_command("set", "show", "views/1", "-c", config, "--json")["shards"] == built["shards"]
    run_command("set", "verify", "views/1", "-c", config)
    got = open_set(third / "elsewhere" / "sets" / "views" / "1")
    assert len(got) == 6
    assert sorted(len(got[place].payload) for place in range(6)) == sorted(row["payload_length"] for row in core.rows(FRAMES))


def check_reports(config: str) -> None:
    """Books, gaps, streams and status, with one segment waiting."""
    books = {row["stream"]: row for row in run_command("books", "-c", config, "--json")}
    assert (books["vehicle_telemetry"]["committed"], books["vehicle_telemetry"]["balanced"]) == (30, True)
    assert [(row["low"], row["high"]) for row in run_command("gaps", "-c", config, "--json")] == [(20, 30)]
    row_counts = {row["stream"]: row["rows"] for row in run_command("streams", "-c", config, "--json")}
    assert row_counts == {"camera_frame": 6, "vehicle_telemetry": 30}
    assert run_command("contract", "quality", "vehicle_telemetry", "-c", config, "--json")
    status = run_command("status", "-c", config, "--json")
    assert status["ready"], status["alarms"]
    assert [one["segments"] for one in status["waiting"]] == [1]
    assert {one["stream"]: one["waiting"] for one in status["streams"]} == {"camera_frame": 0, "vehicle_telemetry": 10}


def test_maintenance_of_a_bucket_is_one_at_a_time_on_whatever_machine(make_core: Callable[..., RemoteCore]) -> None:
    one, other = make_core("one", claim_s=1), make_core("other", claim_s=1)
    with (
        only_maintenance(lake_at(one.root)),
        pytest.raises(RefusedError, match="another maintenance or retag"),
        only_maintenance(lake_at(other.root)),
    ):
        pass
    with only_maintenance(lake_at(other.root)):
        pass


def test_a_policy_applied_on_one_machine_is_in_force_on_another_and_retags_history_there_and_back(
    core: RemoteCore, envelope: MakeEnvelope, tmp_path: Path
) -> None:
    config = configured(core, tmp_path)
    core.landing.seal([envelope(0, 40)])
    loop = core.run()
    before = loop.rules.digest
    policy = tmp_path / "drive.yaml"

    def tagged() -> set[int]:
        return {row["seq"] for row in core.rows(TELEMETRY) if row["tags"] == ["fast"]}

    policy.write_text(POLICY.format(speed=20), encoding="utf-8")
    run_command("policy", "apply", str(policy), "-c", config)
    assert loop.rules.refresh() != before
    assert not tagged()
    output = run_command("policy", "retag", "vehicle_telemetry", "-c", config)
    assert "tagged vehicle_telemetry: 40 rows in 1 files" in output
    assert tagged() == set(range(21, 40))
    assert "already" in run_command("policy", "retag", "vehicle_telemetry", "-c", config)
    assert run_command("policy", "explain", "car-1/7/30", "-s", "vehicle_telemetry", "-c", config).count("fast")
    assert run_command("policy", "preview", str(policy), "--json", "-c", config)
    assert [row["action"] for row in run_command("policy", "history", "--json", "-c", config)] == ["apply"]
    run_command("policy", "retag", "vehicle_telemetry", "--undo", "-c", config)
    assert not tagged()
    run_command("policy", "withdraw", "drive", "-c", config)
    assert newest_number(lake_at(core.root)) == 2
    assert active_policies(lake_at(core.root)) == ()
    assert len(core.rows(TELEMETRY)) == 40
    assert not list((tmp_path / "elsewhere").rglob("*.parquet"))


def test_two_machines_number_the_rules_of_devices_one_after_the_other(make_core: Callable[..., RemoteCore]) -> None:
    one, other = make_core("one"), make_core("other")
    rule = EdgeRule("drive", "1", EdgeAction.KEEP)
    assert numbered_policy(lake_at(one.root), {}, 1).version == 1
    assert numbered_policy(lake_at(other.root), {}, 2).version == 1
    assert numbered_policy(lake_at(other.root), {"s": (rule,)}, 3).version == 2
    assert numbered_policy(lake_at(one.root), {}, 4).version == 3


@pytest.mark.slow
def test_refused_samples_of_a_bucket_are_replayed_and_discarded_from_another_machine(
    core: RemoteCore,
    envelope: MakeEnvelope,
    tmp_path: Path,
) -> None:
    config = configured(core, tmp_path)
    core.landing.seal([envelope(0, 10), envelope(0, 5, body=b"garbage", device="car-2")])
    loop = core.run()
    found = run_command("quarantine", "ls", "-c", config, "--json")
    assert [row["samples"] for row in found] == [5]
    shown = run_command("quarantine", "show", "vehicle_telemetry", "-c", config, "--json")
    replayed = run_command("quarantine", "replay", "--id", shown[0]["id"], "-c", config, "--json")
    assert replayed[0]["refused_again"] == 5
    with pytest.raises(NotFoundError):
        run_command("quarantine", "discard", "--id", shown[0]["id"], "--yes", "-c", config)
    there = tmp_path / "elsewhere"
    write_request(lake_at(there), Request("discard", tuple(heads(lake_at(there), Where()).column("id").to_pylist()), 1))
    look_again(lake_at(core.root))  # as the hundredth look would
    while loop.step():
        pass
    assert run_command("quarantine", "ls", "-c", config, "--json") == []
    assert open_requests(lake_at(core.root)) == []
    assert names(core, "landing/.replay", ".arrows")
    assert loop.ledger.run == 3
    assert load_state(lake_at(there)).ledger.books == loop.ledger.books
    assert not loop.ledger.unbalanced()
    assert len(core.rows(TELEMETRY)) == 10


@pytest.mark.slow
def test_status_tells_of_the_processes_of_other_machines(core: RemoteCore, tmp_path: Path) -> None:
    config = configured(core, tmp_path)
    here = Heartbeats(lake_at(core.root), "bridge", "b0", SystemClock(), lambda: ProcessHealth(True, counters={"messages": 3}))
    with patch.object(socket, "gethostname", return_value="far"), here:
        while core.remote.size("status/bridge-b0.json") is None:
            time.sleep(0.05)
        assert here_and_there(core.root) == ([("bridge", "b0")], [])
        plain = run_command("status", "--json", "-c", config)
        (remote_beat,) = plain["remote_heartbeats"]
        origin = tuple(remote_beat[key] for key in ("role", "name", "host"))
        assert (origin, remote_beat["is_ready"], plain["heartbeats"]) == (("bridge", "b0", "far"), True, [])
        assert "far" in run_command("status", "-c", config)
    found = survey(lake_at(tmp_path / "elsewhere"), SystemClock().now_ms() * 1_000 + 3_600_000_000)
    assert "bridge b0 on far is silent" in " ".join(assess(found).alarms)
    assert assess(found).is_alive
    assert [one.trouble for one in found.remote_heartbeats] == ["stopped in order"]


def here_and_there(root: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    found = survey(lake_at(root), SystemClock().now_ms() * 1_000)
    return [(one.role, one.name) for one in found.heartbeats], [(one.role, one.name) for one in found.remote_heartbeats]


@pytest.mark.slow
def test_a_ledger_of_what_has_changed_is_read_elsewhere_with_its_base_which_nobody_deletes(
    core: RemoteCore, make_core: Callable[..., RemoteCore], envelope: MakeEnvelope, tmp_path: Path
) -> None:
    core.landing.seal([envelope(0, 10, device=f"car-{number}") for number in range(20)])
    core.run()
    core.landing.seal([envelope(10, 10, device="car-7")])
    loop = core.run()
    assert (loop.ledger.run, loop.ledger.bases) == (2, (1,))
    other = make_core("other")
    assert load_state(lake_at(other.root)).ledger == loop.ledger
    assert not list(other.root.rglob("*.parquet"))
    Vacuum(lake_at(other.root), Keep(0, 0, 0, 0)).sweep()
    assert load_state(lake_at(other.root)).ledger.of(["car-7"]).ranges() == {
        EpochKey("car-7", "vehicle_telemetry", 7): Ranges(((0, 20),))
    }
