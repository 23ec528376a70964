"""The doctor finds what is wrong with a real broker, real certificates and a real disk, and says what to do."""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from edge_agent.commands.doctor import examine
from edge_agent.commands.doctor.examine import examine_rules, filesystem_of
from edge_agent.commands.doctor.findings import CheckResult, Diagnosis
from edge_agent.commands.exits import EXIT_UNHEALTHY
from edge_agent.commands.root import app
from edge_agent.config import AgentConfig, PolicyConfig
from edge_agent.health.file import Health, write_health
from pipelines.contracts.json_rows import rows_from_json
from schemas.contract import builtin_contract
from schemas.reported import PolicyReport
from tests.edge_agent.ops.conftest import Site
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import MakeBroker, RunningBroker

DEVICE = "line-3"
PLAIN = 'device = "line-3"\nstate_dir = "state"\n[spool]\nmax_bytes = 16777216\n[broker]\nport = {port}\n'


class FixedClock(SystemClock):
    """A wall clock that stands elsewhere."""

    def __init__(self, moment: dt.datetime) -> None:
        self._now_ms = int(moment.timestamp() * 1000)

    def now_ms(self) -> int:
        return self._now_ms


@pytest.fixture(autouse=True)
def _kept_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "kernel_says_synchronised", lambda: True)


def diagnose(path: Path, *, is_probing: bool = False, clock: SystemClock | None = None) -> Diagnosis:
    """For tests in which no answer comes: it is not waited for as long."""
    return examine.diagnose(path, is_probing=is_probing, clock=clock, answer_within_s=0.2)


def message_of(diagnosis: Diagnosis, what: str, *verdicts: CheckResult) -> str:
    return " | ".join(
        f"{f.message} -> {f.fix}" for f in diagnosis.findings if f.what == what and f.verdict in (verdicts or tuple(CheckResult))
    )


def bad(diagnosis: Diagnosis) -> list[str]:
    """What failed or warns, each with a fix."""
    found = [finding for finding in diagnosis.findings if finding.verdict in (CheckResult.FAILED, CheckResult.WARNING)]
    assert all(finding.fix for finding in found)
    return [finding.what for finding in found]


def test_a_healthy_device_is_reported_as_such_and_one_heartbeat_is_all_that_was_sent(site: Site) -> None:
    config = site.write_config(DEVICE)
    (config.parent / "state").mkdir()
    with FakeCore(site.broker.host, site.broker.port) as core:
        found = examine.diagnose(config)
        assert bad(found) == [], found
        assert [finding.what for finding in found.findings if finding.verdict is CheckResult.GOOD].count("topic rights") == 3
        assert core.landed == []
        assert core.objects == {}
        ((head, body),) = core.unnumbered
        assert (head.device, head.stream) == (DEVICE, "agent_heartbeat")
        rows = rows_from_json(body, builtin_contract(head.stream), received_us=0)
        assert (rows.batch.num_rows, rows.rejected) == (1, ())
    assert found.is_healthy
    assert found.device == DEVICE


def test_the_command_answers_with_json_and_an_exit_code(site: Site) -> None:
    config = site.write_config(DEVICE)
    runner = CliRunner()
    with FakeCore(site.broker.host, site.broker.port):
        whole = runner.invoke(app, ["doctor", "-c", str(config), "--json"])
        assert whole.exit_code == 0
        assert {finding["what"] for finding in json.loads(whole.stdout)["findings"]} >= {"disk", "clock", "certificate", "broker"}
    site.broker.stop()
    ill = runner.invoke(app, ["doctor", "-c", str(config)])
    assert ill.exit_code == EXIT_UNHEALTHY
    assert "nothing listens there" in ill.stdout
    assert "fix:" in ill.stdout


def test_a_running_agent_is_not_thrown_off_without_probe(site: Site) -> None:
    config = site.write_config(DEVICE)
    state = config.parent / "state/health.json"
    with FakeCore(site.broker.host, site.broker.port) as core:
        with subprocess.Popen([sys.executable, "-m", "edge_agent", "-c", str(config)], stderr=subprocess.DEVNULL) as process:
            deadline_s = time.monotonic() + 40
            while not (state.exists() and json.loads(state.read_bytes())["is_connected"]):
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            log = site.broker.log_path.read_text().count(f"as {DEVICE}")
            assert "the agent is connected" in message_of(examine.diagnose(config), "topic rights", CheckResult.GOOD)
            assert site.broker.log_path.read_text().count(f"as {DEVICE}") == log
            assert "may publish" in message_of(examine.diagnose(config, is_probing=True), "topic rights", CheckResult.GOOD)
            process.terminate()
        assert core.landed == []


@pytest.mark.slow
def test_rights_that_are_missing_are_named_with_their_topic(site: Site) -> None:
    config = site.write_config(DEVICE)
    acl = site.folder / "acl"
    rules = acl.read_text()
    acl.write_text(rules.replace("pattern write catchment/up/%u/+", "").replace("pattern read catchment/down/%u/+", ""))
    site.broker.restart()
    with FakeCore(site.broker.host, site.broker.port):
        found = examine.diagnose(config)
    assert f"may not publish to catchment/up/{DEVICE}/" in message_of(found, "topic rights", CheckResult.FAILED)
    assert "0x87" in message_of(found, "topic rights", CheckResult.FAILED)
    assert f"may publish to catchment/parts/{DEVICE}/" in message_of(found, "topic rights", CheckResult.GOOD)
    assert "nothing came down" in message_of(found, "topic rights", CheckResult.WARNING)
    assert not found.is_healthy


def test_a_revoked_certificate_is_noticed_by_the_broker_alone(site: Site) -> None:
    config = site.write_config(DEVICE)
    site.authority.revoke(DEVICE)
    site.broker.restart()
    found = diagnose(config)
    assert "vouches for it" in message_of(found, "certificate", CheckResult.GOOD)
    assert "refuses the certificate" in message_of(found, "broker", CheckResult.FAILED) or "log says" in message_of(
        found, "broker", CheckResult.FAILED
    )


@pytest.mark.parametrize(
    ("days", "verdict", "words"),
    [
        (0, CheckResult.GOOD, "holds until"),
        (800, CheckResult.WARNING, "days"),
        (900, CheckResult.FAILED, "expired"),
        (-10, CheckResult.FAILED, "only from"),
    ],
)
def test_dates_are_judged_by_the_devices_clock(site: Site, days: int, verdict: CheckResult, words: str) -> None:
    config = site.write_config(DEVICE)
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    assert words in message_of(diagnose(config, clock=FixedClock(moment)), "certificate", verdict)


def test_a_key_of_another_certificate_and_a_foreign_authority_are_distinguished(site: Site) -> None:
    config = site.write_config(DEVICE)
    other = site.device_files("car-1")
    mine = {name: config.parent / f"device.{end}" for name, end in (("key", "key"), ("cert", "pem"))}
    kept = mine["key"].read_bytes()
    shutil.copy(other["key"], mine["key"])
    assert "does not belong to" in message_of(diagnose(config), "certificate", CheckResult.FAILED)
    mine["key"].write_bytes(kept)
    foreign = config.parent / "foreign.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Foreign", "-keyout", str(foreign), "-out",
         str(config.parent / "ca.pem")], check=True, capture_output=True,
    )  # fmt: skip
    found = diagnose(config)
    assert "does not vouch for" in message_of(found, "certificate", CheckResult.FAILED)
    assert "broker's certificate is not believed" in message_of(found, "broker", CheckResult.FAILED)


def test_a_key_that_others_can_read_is_a_warning(site: Site) -> None:
    config = site.write_config(DEVICE)
    (config.parent / "device.key").chmod(0o644)
    assert "chmod 600" in message_of(diagnose(config), "certificate", CheckResult.WARNING)


def test_an_encrypted_key_is_reported_and_nobody_has_to_type_its_password(site: Site) -> None:
    config = site.write_config(DEVICE)
    key = config.parent / "device.key"
    command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    found = diagnose(config)
    assert "is encrypted" in message_of(found, "certificate", CheckResult.FAILED)
    assert "encrypted" in message_of(found, "broker", CheckResult.FAILED)


def test_sources_that_fail_at_this_moment_are_reported(broker: RunningBroker, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(PLAIN.format(port=broker.port))
    health = Health(0, 1 << 30, True, 1, 0, 0, 0, 0, None, 0, 0, 0, failing={"nmea:position:{}": "it is gone"})
    (tmp_path / "state").mkdir()
    write_health(tmp_path / "state", health)
    assert "sources" not in [finding.what for finding in diagnose(config).findings]  # no agent runs: it is an old look
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "edge_agent"])
    write_health(tmp_path / "state", msgspec.structs.replace(health, pid=child.pid))
    try:
        assert "nmea:position:{}: it is gone" in message_of(diagnose(config), "sources", CheckResult.FAILED)
    finally:
        child.kill()
        child.wait()


def test_files_that_are_not_there_are_named(site: Site) -> None:
    config = site.write_config(DEVICE)
    (config.parent / "device.key").unlink()
    assert "device.key: No such file" in message_of(diagnose(config), "certificate", CheckResult.FAILED)


def test_a_name_that_nobody_knows_and_a_port_that_speaks_no_tls_are_distinguished(site: Site) -> None:
    config = site.write_config(DEVICE)
    right = config.read_text()
    config.write_text(right.replace('"localhost"', '"broker.invalid"'))
    assert "is not known" in message_of(diagnose(config), "broker", CheckResult.FAILED)
    config.write_text(right.replace(str(site.secure_port), str(site.broker.port)))
    assert "no TLS 1.3" in message_of(diagnose(config), "broker", CheckResult.FAILED)


def test_a_broker_that_knows_nobody_is_reported(make_broker: MakeBroker, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("")
    broker = make_broker(extra=f"allow_anonymous false\npassword_file {tmp_path}/passwords")
    config = tmp_path / "agent.toml"
    config.write_text(PLAIN.format(port=broker.port))
    assert "does not know this device" in message_of(diagnose(config), "broker", CheckResult.FAILED)


def test_without_a_core_the_silence_is_a_warning_and_not_a_failure(broker: RunningBroker, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(PLAIN.format(port=broker.port))
    found = diagnose(config)
    assert "is the core's bridge running" in message_of(found, "topic rights", CheckResult.WARNING)
    assert found.is_healthy


def test_the_disk_is_looked_at_as_it_is(broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(PLAIN.format(port=broker.port))
    assert "not there yet" in message_of(diagnose(config), "disk", CheckResult.SKIPPED)
    state = tmp_path / "state"
    state.mkdir()
    assert "can be written and synced" in message_of(diagnose(config), "disk", CheckResult.GOOD)
    assert list(state.iterdir()) == []
    config.write_text(PLAIN.format(port=broker.port).replace("16777216", str(2**49)))
    assert "lower [spool] max_bytes" in message_of(diagnose(config), "disk", CheckResult.FAILED)

    def refuse(*_: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(examine, "write_atomic", refuse)
    assert "read-only" in message_of(diagnose(config), "disk", CheckResult.FAILED)


def test_a_file_system_in_memory_is_reported() -> None:
    mounts = (
        "24 1 0:22 / / rw - ext4 /dev/root rw\n25 24 0:23 / /run rw,nosuid shared:1 - tmpfs tmpfs rw\n"
        "26 24 0:24 / /mnt/my\\040disk rw - xfs /dev/b rw\n27 24 0:25 / /runner rw - btrfs x rw\n"
    )
    assert filesystem_of(Path("/var/lib"), mounts) == "ext4"
    assert filesystem_of(Path("/run/catchment"), mounts) == "tmpfs"
    assert filesystem_of(Path("/mnt/my disk/x"), mounts) == "xfs"
    assert filesystem_of(Path("/runner/x"), mounts) == "btrfs"


def test_a_clock_that_runs_free_or_was_never_set_is_reported(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(PLAIN.format(port=broker.port))
    assert "never set" in message_of(
        diagnose(config, clock=FixedClock(dt.datetime(1970, 1, 2, tzinfo=dt.UTC))), "clock", CheckResult.FAILED
    )
    monkeypatch.setattr(examine, "kernel_says_synchronised", lambda: False)
    assert "running free" in message_of(diagnose(config), "clock", CheckResult.WARNING)


def test_a_wrong_configuration_is_the_first_finding_and_the_only_one(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('devise = "x"\nstate_dir = "s"\n[spool]\nmax_bytes = 1\n')
    found = diagnose(config)
    assert set(bad(found)) == {"configuration"}
    assert len(found.findings) == 3
    assert not found.is_healthy


@pytest.mark.parametrize(
    ("policy", "verdict", "words"),
    [
        (PolicyReport(3), CheckResult.GOOD, "version 3 is in force"),
        (PolicyReport(3, 2, "the signature is not of the trusted key"), CheckResult.WARNING, "2 refused"),
        (PolicyReport(3, suspended={"s/r": "it reads x"}), CheckResult.WARNING, "s/r: it reads x"),
        (None, CheckResult.SKIPPED, "does not run"),
    ],
)
def test_rules_are_reported_as_by_the_running_agent(tmp_path: Path, policy: Any, verdict: CheckResult, words: str) -> None:
    config = AgentConfig(state_dir=tmp_path, device=DEVICE, policy=PolicyConfig(public_key="0" * 64))
    health = Health(0, 1, True, 0, 0, 0, 0, 0, None, 0, 0, 0, policy=policy)
    found = examine_rules(config, health)
    assert (found.verdict, words in found.message) == (verdict, True)
    assert examine_rules(msgspec.structs.replace(config, policy=None), None).verdict is CheckResult.SKIPPED
