"""The device's part of policies: compiled, numbered and signed in the core, taken and applied by the real agent."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import publish, subscribe
from paho.mqtt.client import MQTTv5
from typer.testing import CliRunner

from pipelines.commands.policy import policy_app
from pipelines.contracts.registry import ContractSet
from pipelines.director import parse_key, write_key
from pipelines.errors import ExpressionError, NotFoundError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.policy.documents import active_policies, apply_policy, parse_policy
from pipelines.policy.edge import edge_rules, numbered_policy
from schemas.edge_policy import EdgeAction, decode_edge_policy, decode_signed_edge_policy
from schemas.reported import Reported, encode_reported
from tests.plant.broker import RunningBroker

TEXT = """
id: thin
streams: [vehicle_telemetry]
keep: [{when: acceleration_mps2 < -5}]
sample:
  - {when: speed_mps < 1, rate: 0}
  - {when: speed_mps < 20, rate: 0.25, pressure: 0.5}
priority: [{when: speed_mps > 30, priority: 900}]
"""
CONTRACTS = ContractSet.load("")


def test_keep_comes_before_sample_and_sample_before_priority_over_all_policies() -> None:
    other = parse_policy("id: a\nstreams: [vehicle_telemetry]\nsample: [{when: 'seq >= 0', rate: 0.5}]\n")
    rules = edge_rules([parse_policy(TEXT), other], CONTRACTS)["vehicle_telemetry"]
    assert [(rule.id, rule.action) for rule in rules] == [
        ("thin-keep-1", EdgeAction.KEEP),
        ("a-sample-1", EdgeAction.SAMPLE),
        ("thin-sample-1", EdgeAction.DROP),
        ("thin-sample-2", EdgeAction.SAMPLE),
        ("thin-priority-1", EdgeAction.PRIORITY),
    ]
    assert (rules[3].rate, rules[3].pressure, rules[4].priority) == (0.25, 0.5, 900)


def test_a_rule_that_no_device_can_judge_is_refused_by_name() -> None:
    policy = parse_policy("id: a\nstreams: [vehicle_telemetry]\nkeep: [{when: \"regexp_like(device, 'x')\"}]\n")
    with pytest.raises(ExpressionError, match="policy a, keep rule 1, stream vehicle_telemetry"):
        edge_rules([policy], CONTRACTS)


def test_the_number_grows_with_every_change_and_only_then(tmp_path: Path) -> None:
    rules = edge_rules([parse_policy(TEXT)], CONTRACTS)
    versions = [numbered_policy(lake_at(tmp_path), each, 5).version for each in (rules, rules, {}, rules)]
    assert versions == [1, 1, 2, 3]


def test_a_key_is_its_owner_s_alone_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    assert len(write_key(path)) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RefusedError, match="already"):
        write_key(path)
    with pytest.raises(RefusedError, match="keygen"):
        parse_key(b"no key")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(policy_app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


def wait_for(condition: Callable[[], Any], limit_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come about"
        time.sleep(0.05)


@pytest.mark.broker
def test_a_real_agent_takes_what_the_core_pushes(broker: RunningBroker, tmp_path: Path) -> None:
    lake, key, core = tmp_path / "lake", tmp_path / "key.pem", tmp_path / "core.toml"
    lake.mkdir()
    core.write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n')
    policy_table = run("keygen", str(key))
    agent = tmp_path / "agent.toml"
    agent.write_text(f'device = "car-1"\nstate_dir = "state"\n[broker]\nport = {broker.port}\n' + policy_table)
    apply_policy(lake_at(lake), parse_policy(TEXT), "ada", 1)
    with pytest.raises(NotFoundError, match="keygen"):
        run("push", "-c", str(core), "--key", str(tmp_path / "none"), "--device", "car-1")
    assert "thin-keep-1: keep" in run("push", "-c", str(core), "--key", str(key), "--dry-run")
    with subprocess.Popen([sys.executable, "-m", "edge_agent", "-c", str(agent)], stderr=subprocess.DEVNULL) as process:
        assert "version 1" in run("push", "-c", str(core), "--key", str(key), "--device", "car-1")
        kept = tmp_path / "state" / "policy.json"
        wait_for(kept.exists)
        process.terminate()
    message = subscribe.simple("catchment/down/car-1/policy", hostname=broker.host, port=broker.port, protocol=MQTTv5)
    assert message.retain
    policy = decode_edge_policy(decode_signed_edge_policy(message.payload).policy)
    assert policy.streams["vehicle_telemetry"][0].id == "thin-keep-1"
    assert "thin-keep-1" in json.dumps(kept.read_text())


@pytest.mark.broker
def test_apply_with_a_key_reaches_core_and_devices_at_once_or_nobody(broker: RunningBroker, tmp_path: Path) -> None:
    lake, key, core, rules = (tmp_path / name for name in ("lake", "key.pem", "core.toml", "thin.yaml"))
    lake.mkdir()
    core.write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n')
    rules.write_text(TEXT)
    run("keygen", str(key))
    with pytest.raises(NotFoundError, match="keygen"):
        run("apply", str(rules), "-c", str(core), "--key", str(tmp_path / "none"))
    assert not active_policies(lake_at(lake))
    report = encode_reported(Reported("car-1", 1, "0.1.0"))
    publish.single("catchment/reported/car-1", report, 1, retain=True, hostname=broker.host, port=broker.port, protocol=MQTTv5)
    assert "sent to 1 devices" in run("apply", str(rules), "-c", str(core), "--key", str(key))
    assert [each.id for each in active_policies(lake_at(lake))] == ["thin"]
    message = subscribe.simple("catchment/down/car-1/policy", hostname=broker.host, port=broker.port, protocol=MQTTv5)
    policy = decode_edge_policy(decode_signed_edge_policy(message.payload).policy)
    assert policy.streams["vehicle_telemetry"][0].id == "thin-keep-1"
