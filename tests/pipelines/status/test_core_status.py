"""What the core says of itself: lag, health, metrics; and that a standstill is not called ready."""

import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from pipelines.commands.status import status
from pipelines.config import AlarmConfig
from pipelines.heartbeat import FOLDER, Heartbeat, Heartbeats, ProcessHealth, read_heartbeats
from pipelines.ingest.fault_breaker import FaultStreak, keep_faults
from pipelines.inspect.suspended import SuspensionBook
from pipelines.lake.lake import lake_at
from pipelines.policy.documents import apply_policy, withdraw_policy
from pipelines.status.health import assess
from pipelines.status.server import exposition, serving
from pipelines.status.survey import Survey, survey
from schemas.policy import Policy, Rule
from tests.plant.core import Core, MakeEnvelope

NOW_US = 1_790_000_500_000_000


def heartbeat(root: Path, role: str, **changes: Any) -> None:
    found = Heartbeat(role, "one", 1, NOW_US // 1_000, NOW_US // 1_000, True, counters={"messages": 3})
    (root / FOLDER).mkdir(exist_ok=True)
    (root / FOLDER / f"{role}-one.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(found, **changes)))


@pytest.fixture
def lake(core: Core, envelope: MakeEnvelope) -> Any:
    core.landing.seal([envelope(0, 10), envelope(0, 4), envelope(10, 5, body=b"garbage")])
    core.run()
    heartbeat(core.root, "bridge")
    heartbeat(core.root, "run")
    return core


def test_a_survey_tells_what_waits_per_stream_and_what_was_committed(lake: Core, envelope: MakeEnvelope) -> None:
    lake.landing.seal([envelope(20, 7), envelope(0, 3, stream="network_flow", body=b"x")])
    found = survey(lake_at(lake.root), NOW_US)
    streams = {stream.stream: stream for stream in found.streams}
    telemetry = streams["vehicle_telemetry"]
    assert (telemetry.counts.committed, telemetry.rows, telemetry.waiting, telemetry.recent_samples) == (10, 10, 7, 10)
    assert (streams["network_flow"].waiting, streams["network_flow"].last_commit_us) == (3, None)
    assert [(one.bridge, one.segments) for one in found.waiting] == [("b0", 1)]
    assert found.quarantined_open == {"decode": 5}
    assert found.run == 1


def test_a_survey_tells_what_is_suspended(lake: Core) -> None:
    rules = Policy("words", ("vehicle_telemetry",), (Rule("car", "matches(device, 'c')"),))
    apply_policy(lake_at(lake.root), rules, "ada", 1)
    SuspensionBook(lake_at(lake.root)).suspend_policy(rules.label, "vehicle_telemetry", "it was late")
    found = survey(lake_at(lake.root), NOW_US)
    assert [(one.name, one.reason) for one in found.suspended] == [(rules.label, "it was late")]
    assert "catchment_suspended 1" in exposition(found)
    result = assess(found)
    assert (result.alarms, result.is_ready) == ((f"policy {rules.label} is suspended: it was late",), True)
    assert assess(found, AlarmConfig(suspended=False)).alarms == ()
    withdraw_policy(lake_at(lake.root), "words", "ada", 2)
    assert survey(lake_at(lake.root), NOW_US).suspended == ()


def test_a_core_that_gets_on_is_ready(lake: Core) -> None:
    assert assess(survey(lake_at(lake.root), NOW_US)).alarms == ()


@pytest.mark.parametrize(
    ("changes", "alarm", "alive"),
    [
        ({"at_ms": NOW_US // 1_000 - 60_000}, "run one is silent for 60 s", False),
        ({"is_ready": False, "trouble": "run 7: away"}, "run one: run 7: away", True),
    ],
)
def test_a_process_that_is_silent_or_stuck_is_an_alarm(lake: Core, changes: Any, alarm: str, alive: bool) -> None:
    heartbeat(lake.root, "run", **changes)
    result = assess(survey(lake_at(lake.root), NOW_US))
    assert (result.alarms, result.is_alive, result.is_ready) == ((alarm,), alive, False)


def test_waiting_work_that_no_run_takes_is_an_alarm(lake: Core, envelope: MakeEnvelope) -> None:
    import os

    path = lake.landing.seal([envelope(20, 7)])
    os.utime(path, ns=((NOW_US - 200_000_000) * 1_000,) * 2)
    assert assess(survey(lake_at(lake.root), NOW_US)).alarms == ("a sealed segment waits for 200 s and no run takes it",)


def test_books_that_do_not_balance_or_rows_too_many_are_alarms(lake: Core) -> None:
    found = survey(lake_at(lake.root), NOW_US)
    (stream,) = found.streams
    more: Survey = replace(found, unbalanced=("car-1/vehicle_telemetry",), streams=(replace(stream, rows=11),))
    assert len(assess(more).alarms) == 2
    assert "catchment_books_unbalanced 1" in exposition(more)


def test_rules_that_cannot_be_read_are_an_alarm_and_no_standstill(lake: Core) -> None:
    heartbeat(lake.root, "run", trouble="drive.yaml: no such column", counters={"rules_broken": 1.0})
    result = assess(survey(lake_at(lake.root), NOW_US))
    assert result.alarms == ("the rules cannot be read, those before them stay in force: drive.yaml: no such column",)
    assert result.is_ready


def test_a_large_share_of_quarantined_samples_is_an_alarm_from_a_count_on(lake: Core) -> None:
    found = survey(lake_at(lake.root), NOW_US)
    (stream,) = found.streams
    assert (stream.recent_samples, stream.recent_quarantined) == (10, 5)
    assert assess(found).alarms == ()
    result = assess(found, AlarmConfig(quarantine_count=5))
    assert "33% of what the last runs settled went to quarantine (5 samples)" in result.alarms[0]
    assert result.is_ready
    assert assess(found, AlarmConfig(quarantine_count=5, quarantine_share=0.4)).alarms == ()
    assert assess(found, AlarmConfig(quarantine_count=5, quarantine_share=0)).alarms == ()


def test_a_run_that_is_held_back_is_an_alarm_that_outlives_its_process(lake: Core) -> None:
    keep_faults(lake_at(lake.root), FaultStreak(), FaultStreak(stopped_run=2, at_us=NOW_US - 9_000_000, reason="TypeError: ours"))
    found = survey(lake_at(lake.root), NOW_US)
    result = assess(found)
    assert "run 2 is paused for 9 s" in result.alarms[0]
    assert not result.is_ready
    page = exposition(found)
    assert "catchment_run_paused 2" in page
    assert 'catchment_alarms_of_kind{kind="fault_breaker"} 1' in page


def test_metrics_are_prometheus_text(lake: Core) -> None:
    text = exposition(survey(lake_at(lake.root), NOW_US))
    assert 'catchment_samples_committed_total{stream="vehicle_telemetry"} 10' in text
    assert 'catchment_bridge_messages{name="one"} 3' in text
    assert "catchment_ready 1" in text
    names = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) > 10


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_live_ready_and_metrics_are_served(lake: Core) -> None:
    clock = SystemClock()
    heartbeat(lake.root, "bridge", at_ms=clock.now_ms())
    heartbeat(lake.root, "run", at_ms=clock.now_ms(), is_ready=False, trouble="away")
    with serving(lake_at(lake.root), "127.0.0.1", 0, clock) as port:
        base = f"http://127.0.0.1:{port}"
        assert get(f"{base}/live")[0] == 200
        code, body = get(f"{base}/ready")
        assert (code, json.loads(body)["alarms"]) == (503, ["run one: away"])
        assert "catchment_ready 0" in get(f"{base}/metrics")[1]
        assert get(f"{base}/secret")[0] == 404


def test_a_heart_beats_and_says_why_it_stopped(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="no more"),
        Heartbeats(lake_at(tmp_path), "run", "one", SystemClock(), lambda: ProcessHealth(True)),
    ):
        raise ValueError("no more")
    (last,) = read_heartbeats(lake_at(tmp_path))
    assert (last.is_ready, last.trouble) == (False, "stopped: no more")


def test_the_command_ends_with_one_where_something_is_wrong(lake: Core, tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(status)
    config = tmp_path / "core.toml"
    config.write_text('lake = "lake"\n')
    result = CliRunner().invoke(app, ["-c", str(config)])
    assert result.exit_code == 1
    assert "ALARM: bridge one is silent" in result.stdout
    assert "Suspended" not in result.stdout
    rules = Policy("words", ("vehicle_telemetry",), (Rule("car", "matches(device, 'c')"),))
    apply_policy(lake_at(lake.root), rules, "ada", 1)
    SuspensionBook(lake_at(lake.root)).suspend_policy(rules.label, "vehicle_telemetry", "it was late")
    result = CliRunner().invoke(app, ["-c", str(config)])
    assert "it was late" in result.stdout
    assert "`catchment policy apply` of a new version lifts it" in result.stdout
    document = json.loads(CliRunner().invoke(app, ["--json", "-c", str(config)]).stdout)
    assert document["streams"][0]["stream"] == "vehicle_telemetry"
    assert document["alive"] is False
