"""All of it, in the order in which things must work."""

from pathlib import Path

from catchment.runtime.clock import Clock, SystemClock
from edge_agent.checking import check_file
from edge_agent.commands.doctor.broker import RIGHTS, examine_reach, examine_rights
from edge_agent.commands.doctor.certificate import examine_certificate
from edge_agent.commands.doctor.clock import examine_clock
from edge_agent.commands.doctor.disk import examine_disk
from edge_agent.commands.doctor.findings import Diagnosis, Finding, Verdict, failed, good, skipped
from edge_agent.commands.doctor.rules import examine_orders, examine_rules
from edge_agent.commands.status_reader import is_alive
from edge_agent.config import AgentConfig, load_agent_config
from edge_agent.errors import AgentError, ConfigError
from edge_agent.health.file import Health, read_health

CONFIGURATION = "configuration"
SOURCES = "sources"


def diagnose(path: Path, *, is_probing: bool = False, clock: Clock | None = None) -> Diagnosis:
    """Examine a device.

    Args:
        path: the agent's configuration.
        is_probing: connect as the device even while its agent is connected, which interrupts that for a moment.
        clock: wall and monotonic time.
    """
    clock = clock or SystemClock()
    findings = list(_configuration(path))
    try:
        config = load_agent_config(path)
    except ConfigError as error:
        known = findings or [failed(CONFIGURATION, str(error), "correct it; edge-agent check tells when it is right")]
        return Diagnosis("", tuple(known))
    findings = findings or [good(CONFIGURATION, f"{path} is right")]
    findings += [*examine_disk(config), examine_clock(clock), *examine_certificate(config.broker, clock)]
    findings += examine_reach(config.broker)
    if all(finding.verdict is not Verdict.FAILED for finding in findings if finding.what == "broker"):
        findings += _rights(config, clock, is_probing=is_probing)
    else:
        findings.append(skipped(RIGHTS, "the broker cannot be reached"))
    findings += _sources(_running(config))
    findings += [examine_rules(config, _running(config)), examine_orders(config, _running(config))]
    return Diagnosis(config.device, tuple(findings))


def _configuration(path: Path) -> list[Finding]:
    try:
        faults = check_file(path).faults
    except ConfigError as error:
        return [failed(CONFIGURATION, str(error), "give the agent's file with -c")]
    return [failed(CONFIGURATION, fault.located(path), "correct that line") for fault in faults]


def _rights(config: AgentConfig, clock: Clock, *, is_probing: bool) -> list[Finding]:
    health = _running(config)
    if health is None or is_probing:
        return list(examine_rights(config, clock))
    if not health.is_connected:
        return list(examine_rights(config, clock))
    since = "never" if health.since_ack_s is None else f"{health.since_ack_s:.0f} s ago"
    told = f"the agent is connected; the broker last took a message {since}; {health.not_sent} were not taken"
    if health.not_sent and health.since_ack_s is None:
        return [
            failed(RIGHTS, told, "the broker lets it connect and takes nothing: --probe tells which topics; is the core running?")
        ]
    return [good(RIGHTS, f"{told} (--probe looks closer and interrupts it for a moment)")]


def _sources(health: Health | None) -> list[Finding]:
    """Sources that fail at this moment; only a running agent knows."""
    told = {} if health is None else health.failing
    return [
        failed(SOURCES, f"{name}: {said}", "correct what it says; the agent tries again by itself") for name, said in told.items()
    ]


def _running(config: AgentConfig) -> Health | None:
    try:
        health = read_health(config.state_dir)
    except AgentError:
        return None  # damaged: nothing is known of the running agent, so it is examined from outside
    return health if health is not None and is_alive(health.pid) else None
